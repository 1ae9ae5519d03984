"""Weights of a training as files of their own: what a run writes, and .pth files of BasicSR in both directions."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from vheatir import weights
from vheatir.archs.networks import build, config_from_state_dict, name_of
from vheatir.backbone.training.loop import DIVERGED
from vheatir.errors import UserError
from vheatir.utils.files import at_home, atomic_open, writing
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
_OF_DATA = ("license", "data", "name", "iteration")  # metadata that stay with weights from file to file


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
    untold = "as in the pairs" if table or task == weights.PAIRED else "not stated"
    level = table.get("sigma", table.get("quality", untold)) if task != "photo" else "as cameras have it"
    return {
        "arch": arch,
        "config": json.dumps(network.config),
        "task": task,
        "color": "gray" if network.config["in_chans"] == 1 else "color",
        "levels": json.dumps(level),
        "license": _LICENSE,
    }


def _write_pth(path: Path, network: nn.Module, metadata: Mapping[str, str] | None = None) -> None:
    kept = {} if metadata is None else {weights.METADATA: dict(metadata)}
    with atomic_open(path) as file:
        torch.save({"params": network.state_dict(), **kept}, file)


def to_pth(source: str | Path, target: Path) -> nn.Module:
    """Write weights as BasicSR reads them, float32 under `params`; beside them what the file says of them.

    Args:
        source: shipped name or safetensors file.
        target: the .pth file.

    Returns:
        The network, whose `config` belongs under `network_g`.

    Raises:
        UserError: unusable weights.
    """
    network, metadata = weights.load(source)
    _write_pth(target, network, metadata)
    return network


def to_safetensors(
    source: Path, target: Path, task: str | None = None, options: str | Path | None = None
) -> tuple[str, str]:
    """Turn a .pth file of BasicSR's loop into weights for `vheatir restore`, without running code from it.

    What nothing tells of a network keeps its default: its tensors do not tell how it pads images, for one.

    Args:
        source: with tensors under `params_ema`, which win, or `params`, or at the top; `module.` of DDP is dropped.
        target: the safetensors file, in float16.
        task: denoise | jpeg | photo | paired; by default what the options say.
        options: file or recipe of the training; by default what `to_pth` has written into the file, or the options that
            BasicSR left in the run's folder.

    Returns:
        Where in the file the weights lay, and a remark on what of the network nothing told.

    Raises:
        UserError: no such file, not the weights of a network of ours, or nothing says what they are for.
    """
    state, key = weights.load_checkpoint(source)
    told = _told(source, options)
    task = task or told.task
    if task is None:
        raise UserError(
            f"{source}: {told.lack}, so nothing says what these weights are for; add --task "
            f"{', '.join(sorted(set(TASKS.values())))}, or --opt FILE, the options of their training"
        )
    try:
        arch, config = config_from_state_dict(state)
        is_told = told.network.get("type") == arch
        if is_told:
            config |= {name: value for name, value in told.network.items() if name != "type"}
        network: Any = build(arch, config)
        network.load_state_dict(state)
        weights.save(target, state, {**_metadata(arch, network, task, told.table), **told.metadata})
    except (ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"{source}: {error}") from error
    return key, "" if is_told else _untold(network.config)


class _Told(NamedTuple):
    """What is known of the weights of a .pth file, apart from its tensors.

    Attributes:
        task: None where nothing tells it.
        network: `type` and arguments, as in options.
        table: options of the training set.
        metadata: that stay with the weights from file to file.
        lack: why nothing tells the task.
    """

    task: str | None
    network: Mapping[str, Any]
    table: Mapping[str, Any]
    metadata: Mapping[str, str]
    lack: str = ""


def _told(source: Path, options: str | Path | None) -> _Told:
    """By the options that are given, by the file itself, or by the options in the run's folder."""
    kept = weights.checkpoint_metadata(source)
    metadata = {name: kept[name] for name in _OF_DATA if name in kept}
    if kept and options is None:
        network = {"type": kept["arch"], **json.loads(kept["config"])}
        return _Told(kept["task"], network, {}, {**metadata, "levels": kept["levels"]})
    path = find_options(options) if options is not None else _options_beside(source)
    if path is None:
        return _Told(None, {}, {}, metadata, "no options file lies in the run's folder")
    content = load_table(path)
    table = _section(_section(content, "datasets"), "train")
    kind = "PairedDataset" if table.get("type") == "PairedImageDataset" else table.get("type", "")
    lack = f"{path} has no training set of ours"
    return _Told(TASKS.get(kind), _section(content, "network_g"), table, metadata, lack)


def _untold(config: Mapping[str, Any]) -> str:
    """A remark on the arguments that change what a network makes of images, and leave no trace in its tensors."""
    names = [name for name in ("padding", "resize") if name in config]
    names += ["fixed_k"] if not config.get("learned_k", True) else []
    taken = ", ".join(f"{name}: {config[name]}" for name in names)
    return f"; taken by default, as tensors do not tell it: {taken}; --opt FILE gives the options of the training"


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
    source = at_home(source)
    is_checkpoint = source.suffix in (".pth", ".pt")
    if is_checkpoint == (output.suffix == ".pth") or output.resolve() == source.resolve():
        raise UserError(
            f"{source}: {output.suffix} files are made of {'safetensors' if is_checkpoint else '.pth'} files"
        )
    if not is_checkpoint and (task is not None or opt is not None):
        raise UserError(f"{output}: a task and options are for converting a .pth file to .safetensors")
    prepare_output(output)
    with writing(output):
        if is_checkpoint:
            key, remark = to_safetensors(source, output, task, opt)
            return f"{output}: the weights under {key} of {source}, in float16{remark}"
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
