"""Weights as safetensors files: names, loading without unpickling, atomic saving, and their cards.

A file holds float16 tensors and, as text, the network's constructor arguments, its task and its license. Loading never
runs code from the file: training checkpoints of BasicSR go through `load_checkpoint`, restoring takes safetensors only.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from vheatir.archs.base import RestorationNetwork
from vheatir.archs.networks import NETWORKS, build
from vheatir.errors import UserError
from vheatir.utils.files import at_home, atomic_open

FOLDER = Path(__file__).resolve().parent
SUFFIX = ".safetensors"
DEFAULTS = {  # task -> colors, or clips where these have weights of their own -> name of the shipped weights
    "denoise": {"color": "denoise_color_blind", "gray": "denoise_gray_blind", "video": "denoise_video_blind"},
    "jpeg": {"color": "jpeg_color_blind", "gray": "jpeg_gray_blind"},
    "photo": {"color": "photo_color_blind", "gray": "photo_color_blind"},
}
FORMAT = "1"
REQUIRED = ("config", "task", "color", "levels", "license")
METADATA = "vheatir"  # key of the metadata in a .pth file that `vheatir export` has written
PAIRED = "paired"  # task of weights from pairs, or from a degradation of the user's own

_MAX_NUMBER = 4096  # in a stranger's configuration; more would only exhaust the memory
_MAX_HEADER = 8  # bytes that hold the header's length


def serve(metadata: Mapping[str, str], task: str) -> bool:
    """Whether weights may be used for a task: their own, or any where the user's own data say what they remove."""
    return metadata["task"] in (task, PAIRED)


def available() -> list[str]:
    """Names of the weights in the package."""
    return sorted(path.stem for path in FOLDER.glob(f"*{SUFFIX}"))


def find(name_or_path: str | Path) -> Path:
    """The file of a shipped name or of a path, in which `~` is the user's home."""
    shipped = FOLDER / f"{name_or_path}{SUFFIX}"
    if str(name_or_path) in available():
        return shipped
    path = at_home(name_or_path)
    if path.is_file():
        return path
    if any(str(name_or_path) in names.values() for names in DEFAULTS.values()):
        raise UserError(f"the package holds no file {shipped.name}; reinstall it, or give a file with --weights PATH")
    known = ", ".join(available()) or "none"
    raise UserError(f"weights {str(name_or_path)!r} are neither a file nor a shipped name; shipped: {known}")


def read(name_or_path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors (floats as float32) and metadata of a safetensors file, checked; the start for fine-tuning."""
    path = find(name_or_path)
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            _check_metadata(path, metadata)
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    except (safetensors.SafetensorError, OSError) as error:
        hint = ""
        if path.suffix in (".pth", ".pt", ".ckpt"):
            hint = f"; a training checkpoint is converted to safetensors by `vheatir export {path} --to safetensors`"
        raise UserError(f"{path}: not a whole safetensors file ({error}){hint}") from error
    state = {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
    broken = sum(int((~torch.isfinite(value)).sum()) for value in state.values() if value.is_floating_point())
    if broken:
        raise UserError(f"{path}: {broken} of the weights are NaN or infinite; the file is damaged")
    return state, metadata


def _check_metadata(path: Path, metadata: Mapping[str, str]) -> None:
    if metadata.get("vheatir_format") != FORMAT or metadata.get("arch") not in NETWORKS:
        raise UserError(
            f"{path}: expected weights of {' or '.join(NETWORKS)} in format {FORMAT}, got arch "
            f"{metadata.get('arch')!r}, format {metadata.get('vheatir_format')!r}; "
            "weights of other networks or newer versions cannot be used"
        )
    missing = [key for key in REQUIRED if key not in metadata]
    if missing:
        raise UserError(f"{path}: the metadata lacks {', '.join(missing)}; write the file with vheatir.weights.save")


def load(name_or_path: str | Path, device: str | torch.device = "cpu") -> tuple[RestorationNetwork, dict[str, str]]:
    """The network in eval mode with float32 weights on `device`, and the file's metadata."""
    path = find(name_or_path)
    state, metadata = read(path)
    config = _config(path, metadata["config"])
    try:
        with torch.device("meta"):  # a configuration that does not fit the file costs no memory
            network = build(metadata["arch"], config)
        network.load_state_dict(state, assign=True)
        if any(one.is_meta for one in (*network.parameters(), *network.buffers())):  # what files do not hold
            network = build(metadata["arch"], config)
            network.load_state_dict(state)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{path}: its tensors and its configuration do not fit together: {error}") from error
    return network.eval().to(device), metadata


def configured(network_g: Mapping[str, Any], source: str | Path | None) -> dict[str, Any]:
    """The `network_g` of options, with the arguments of the weights where it names the type alone.

    Args:
        network_g: `type`, and arguments.
        source: shipped name or safetensors file; other files hold no arguments.
    """
    if source is None or set(network_g) != {"type"} or network_g["type"] not in NETWORKS:
        return dict(network_g)
    if Path(source).suffix in (".pth", ".pt"):
        return dict(network_g)
    network, metadata = load(source)
    return {"type": metadata["arch"], **network.config}


def _config(path: Path, text: str) -> dict[str, Any]:
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:  # the second of tables in tables, a thousand deep
        raise UserError(f"{path}: its configuration is not JSON that can be read ({error})") from error
    if not isinstance(config, dict):
        raise UserError(f"{path}: its configuration is not a table of constructor arguments")
    values = [item for value in config.values() for item in (value if isinstance(value, list) else [value])]
    too_large = [value for value in values if isinstance(value, int | float) and not abs(value) <= _MAX_NUMBER]
    if too_large or len(values) > _MAX_NUMBER:
        raise UserError(f"{path}: its configuration holds {too_large or len(values)}, far beyond any real network")
    return config


def save(path: str | Path, net_state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write weights atomically, floats as float16; the same content always gives the same bytes.

    The format is added to the metadata, and "arch", the network's name in `vheatir.archs.networks`, is VHeatIR where
    it is left out.

    Args:
        path: of the .safetensors file.
        net_state: tensors by name.
        metadata: text under the keys of `REQUIRED` (config as JSON) and any others.
    """
    path = Path(path)
    metadata = {"arch": "VHeatIR", **metadata, "vheatir_format": FORMAT}
    wrong = [key for key in REQUIRED if key not in metadata] + [
        key for key, value in metadata.items() if not isinstance(value, str)
    ]
    if wrong:
        raise ValueError(f"metadata needs text under each of {', '.join(REQUIRED)}; missing or not text: {wrong}")
    tensors = {}
    for key, value in sorted(net_state.items()):
        half = value.detach().cpu().half() if value.is_floating_point() else value.detach().cpu()
        if half.is_floating_point() and not torch.isfinite(half).all():
            raise ValueError(f"{key} holds NaN, infinity or values beyond float16; these weights cannot be stored")
        tensors[key] = half.contiguous().clone()
    with atomic_open(path) as file:
        file.write(_sorted_header(safetensors.torch.save(tensors, metadata)))


def _sorted_header(data: bytes) -> bytes:
    """The same file with the metadata in alphabetical order; safetensors writes it in random order."""
    start = _MAX_HEADER + int.from_bytes(data[:_MAX_HEADER], "little")
    header = json.loads(data[_MAX_HEADER:start])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the tensors stay aligned
    return len(text).to_bytes(_MAX_HEADER, "little") + text + data[start:]


def load_checkpoint(path: str | Path, wanted: str | None = None) -> tuple[dict[str, Tensor], str]:
    """The state dict of a checkpoint and where in it it lay; for training and publishing only.

    The checkpoint is one of BasicSR (.pth), or one that a run of ours resumes from (.pt), whose network is its `params`
    and whose average `params_ema`. Takes what lies under the key `wanted`; without that `params_ema` where there is
    one, else `params`, else the file itself as a state dict. Read with `weights_only=True`: a file that wants to run
    code is refused.
    """
    path = at_home(path)
    content = _of_run(_content(path))
    if wanted is not None and (not isinstance(content, dict) or wanted not in content):
        known = ", ".join(map(str, list(content)[:5])) if isinstance(content, dict) else type(content).__name__
        raise UserError(f"{path}: holds nothing under {wanted!r}, but {known}")
    keys = ("params_ema", "params") if wanted is None else (wanted,)
    key = next((name for name in keys if isinstance(content, dict) and name in content), "")
    state = content[key] if key else content
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path}: expected tensors by name, under params_ema or params or at the top; found none")
    return {name.removeprefix("module."): value for name, value in state.items()}, key or "state dict"


def checkpoint_metadata(path: str | Path) -> dict[str, str]:
    """What `vheatir export` has written beside the tensors of a .pth file: the metadata of the weights it was made of.

    Returns:
        Text under the keys of `REQUIRED` and others; {} for files of other programs.

    Raises:
        UserError: as `load_checkpoint`, or metadata that are no longer whole.
    """
    path = at_home(path)
    content = _content(path)
    found = content.get(METADATA) if isinstance(content, dict) else None
    if not isinstance(found, dict) or not all(isinstance(one, str) for pair in found.items() for one in pair):
        return {}
    _check_metadata(path, found)
    _config(path, found["config"])
    return found


def _content(path: Path) -> Any:
    """What a checkpoint holds, without running code from it."""
    if not path.is_file():
        raise UserError(f"{path}: there is no such checkpoint")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpicklers raise whatever they like on damaged or hostile bytes
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: not a checkpoint that can be read without running code from it ({reason})") from error


def _of_run(content: Any) -> Any:
    """The networks of a checkpoint that a run resumes from, under BasicSR's names; anything else as it is."""
    model = content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, dict) or not isinstance(model.get("network"), dict):
        return content
    names = {"params": "network", "params_ema": "network_ema"}
    return {name: model[key] for name, key in names.items() if key in model}
