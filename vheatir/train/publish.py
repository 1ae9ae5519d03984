"""Weights of a training as files of their own: what a run writes, and .pth files of BasicSR in both directions."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vheatir import weights
from vheatir.archs.networks import build, config_from_state_dict, name_of
from vheatir.backbone.training.loop import DIVERGED
from vheatir.errors import UserError
from vheatir.utils.files import atomic_open, writing
from vheatir.utils.recipes import find_options, load_table
from vheatir.utils.run_metadata import prepare_output

TASKS = {
    "GaussianNoiseDataset": "denoise",
    "JPEGDataset": "jpeg",
    "CameraNoiseDataset": "photo",
    "MovingClipsDataset": "denoise",
    "PairedDataset": weights.PAIRED,
}
CONVERTED = (weights.SUFFIX, ".pth")  # for `vheatir restore`, and for BasicSR
_LICENSE = "depends on the training data; not stated"


def write_weights(table: Mapping[str, Any], folder: Path, name: str, network: nn.Module, iteration: int) -> None:
    """Write a network: safetensors for networks of ours, BasicSR's .pth for others.

    Args:
        table: options of the training set, which the metadata state.
        folder: where to write.
        name: of the file, without its ending.
        network: that is validated and published.
        iteration: after which its weights are these.

    Raises:
        UserError: weights that are not finite, or beyond float16.
    """
    if (arch := name_of(network)) is None:
        _write_pth(folder / f"{name}.pth", network)
        return
    task = TASKS.get(table["type"], weights.PAIRED)
    metadata = {**_metadata(arch, network, task, table), "iteration": str(iteration)}
    try:
        weights.save(folder / f"{name}{weights.SUFFIX}", network.state_dict(), metadata)
    except ValueError as error:
        raise UserError(f"iteration {iteration}: {error}; {DIVERGED}") from error


def _metadata(arch: str, network: Any, task: str, table: Mapping[str, Any]) -> dict[str, str]:
    level = table.get("sigma", table.get("quality", "as in the pairs")) if task != "photo" else "as cameras have it"
    return {
        "arch": arch,
        "config": json.dumps(network.config),
        "task": task,
        "color": "gray" if network.config["in_chans"] == 1 else "color",
        "levels": json.dumps(level),
        "license": _LICENSE,
    }


def _write_pth(path: Path, network: nn.Module) -> None:
    with atomic_open(path) as file:
        torch.save({"params": network.state_dict()}, file)


def to_pth(source: str | Path, target: Path) -> nn.Module:
    """Write weights as BasicSR reads them, float32 under `params`.

    Args:
        source: shipped name or safetensors file.
        target: the .pth file.

    Returns:
        The network, whose `config` belongs under `network_g`.

    Raises:
        UserError: unusable weights.
    """
    network, _ = weights.load(source)
    _write_pth(target, network)
    return network


def to_safetensors(source: Path, target: Path, task: str | None = None, options: str | Path | None = None) -> str:
    """Turn a .pth file of BasicSR's loop into weights for `vheatir restore`, without running code from it.

    Args:
        source: with tensors under `params_ema`, which win, or `params`, or at the top; `module.` of DDP is dropped.
        target: the safetensors file, in float16.
        task: denoise | jpeg | photo | paired; by default what the options say.
        options: file or recipe of the training; by default the one that BasicSR left in the run's folder.

    Returns:
        Where in the file the weights lay.

    Raises:
        UserError: no such file, not the weights of a network of ours, or nothing says what they are for.
    """
    state, key = weights.load_checkpoint(source)
    table: Mapping[str, Any] = {}
    arguments: Mapping[str, Any] = {}
    path = find_options(options) if options is not None else _options_beside(source)
    if path is not None:
        content = load_table(path)
        arguments = _section(content, "network_g")
        table = _section(_section(content, "datasets"), "train")
    task = task or TASKS.get("PairedDataset" if table.get("type") == "PairedImageDataset" else table.get("type", ""))
    if task is None:
        where = "no options file lies in the run's folder" if path is None else f"{path} has no training set of ours"
        raise UserError(
            f"{source}: {where}, so nothing says what these weights are for; add --task "
            f"{', '.join(sorted(set(TASKS.values())))}, or --opt FILE, the options of their training"
        )
    try:
        arch, config = config_from_state_dict(state)
        if arguments.get("type") == arch:  # some arguments cannot be told from shapes
            config |= {name: value for name, value in arguments.items() if name != "type"}
        network = build(arch, config)
        network.load_state_dict(state)
        weights.save(target, state, _metadata(arch, network, task, table))
    except (ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"{source}: {error}") from error
    return key


def convert(source: str | Path, output: Path, task: str | None, opt: str | Path | None) -> str:
    """Turn a .pth file of BasicSR into safetensors, or weights into a .pth file; a line that says what was done.

    Args:
        source: a .pth file; or a shipped name or safetensors file.
        output: the other one.
        task: that the safetensors file states; by default what the options say.
        opt: the options of the training.

    Raises:
        UserError: not the other kind of file, or not the weights of a network of ours.
    """
    is_checkpoint = Path(source).suffix in (".pth", ".pt")
    if is_checkpoint == (output.suffix == ".pth") or output.resolve() == Path(source).resolve():
        raise UserError(
            f"{source}: {output.suffix} files are made of {'safetensors' if is_checkpoint else '.pth'} files"
        )
    if not is_checkpoint and (task is not None or opt is not None):
        raise UserError(f"{output}: a task and options are for converting a .pth file to .safetensors")
    prepare_output(output)
    with writing(output):
        if is_checkpoint:
            key = to_safetensors(Path(source), output, task, opt)
            return f"{output}: the weights under {key} of {source}, in float16"
        network = to_pth(source, output)
    table = {"type": name_of(network), **network.config}
    return f"{output}: under params, for BasicSR with network_g: {json.dumps(table)}"


def _section(table: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = table.get(name)
    return section if isinstance(section, Mapping) else {}


def _options_beside(source: Path) -> Path | None:
    """The options that BasicSR copied into the folder of a run, whose weights lie in models/ below it."""
    files = sorted(source.resolve().parent.parent.glob("*.yml"), key=lambda path: path.stat().st_mtime)
    trained = [path for path in files if _is_of_training(path)]
    return trained[-1] if trained else None


def _is_of_training(path: Path) -> bool:
    """Whether a file holds options of a training; any other file may lie there too."""
    try:
        return "train" in _section(load_table(path), "datasets")
    except (UserError, OSError):
        return False
