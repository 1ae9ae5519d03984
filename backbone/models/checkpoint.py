"""Published checkpoints: read without running code, unwrapped, brought to a model's keys and shapes."""

import argparse
import logging
import pickle
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from vheatir.backbone.layers.embedding import resize_embedding

_log = logging.getLogger(__name__)

# Where the weights are kept in a file, the plain ones first; "ema" prefers the others.
_WRAPPERS = {"model": ("model", "state_dict", "module", "net"), "ema": ("model_ema", "state_dict_ema", "ema")}
# Buffers of the published code that are functions of the sizes; ours are made when needed.
STRUCTURAL = ("relative_position_index", "attn_mask")
# The published vHeat code writes the EMA's best accuracy under a misspelled name.
_FACTS = {"epoch": "epoch", "max_accuracy": "max_accuracy", "best_acc": "max_accuracy"}
_FACTS |= {"max_accuracy_ema": "max_accuracy_ema", "max_accuray_ema": "max_accuracy_ema"}

# Stand-ins and plain containers that published files hold beside tensors; none of them runs code when built.
_SCALAR = np.float64().__reduce__()[0]  # the function that rebuilds a number; it has no public name
_SCALARS = [(_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
_DTYPES = [type(np.dtype(name)) for name in ("float64", "float32", "int64", "int32", "bool")]
_ALLOWED = [(OrderedDict, "yacs.config.CfgNode"), argparse.Namespace, np.dtype, *_DTYPES, *_SCALARS]


@dataclass
class LoadReport:
    """What became of a checkpoint's content.

    Attributes:
        loaded: number of tensors that the model took.
        resized: key -> shape in the file and shape in the model.
        dropped: key -> why the model keeps its own value.
        missing: keys of the model that the file lacks.
        unused: tensors of the file that the model has no place for.
        ignored: buffers of the published code that hold no weights.
        entries: other entries of the file, such as the optimiser.
        facts: epoch and accuracies that the file states.
    """

    loaded: int = 0
    resized: dict[str, tuple[tuple, tuple]] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    entries: list[str] = field(default_factory=list)
    facts: dict = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{self.loaded} tensors loaded"]
        lines += [f"resized {key}: {a} -> {b}" for key, (a, b) in self.resized.items()]
        lines += [f"not loaded {key}: {why}" for key, why in self.dropped.items()]
        for name in ("missing", "unused", "entries"):
            if getattr(self, name):
                lines.append(f"{name}: {', '.join(getattr(self, name))}")
        return "\n".join(lines)


def read_checkpoint(path: str | Path) -> dict:
    """The content of a .safetensors, .pth or .pt file, without running code that it holds.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds objects that are neither tensors nor plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint {path}; give the path of a .safetensors or .pth file")
    if path.suffix == ".safetensors":
        return load_file(path)
    try:
        with torch.serialization.safe_globals(_ALLOWED):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} is no checkpoint of tensors and plain values, or would run code when loaded; "
            f"save its weights alone with torch.save or safetensors ({str(error).splitlines()[0]})"
        ) from error


def unwrap(content: dict, weights: str = "model") -> tuple[dict[str, Tensor], LoadReport]:
    """The state dict inside a file's content, without the prefix `module.`, and a report of the rest.

    Args:
        content: what `read_checkpoint` returned.
        weights: "model", or "ema" for the averaged weights where the file has both.

    Raises:
        ValueError: unknown `weights`, or no tensors in the file.
    """
    if weights not in _WRAPPERS:
        raise ValueError(f"weights must be 'model' or 'ema', got {weights!r}")
    order = _WRAPPERS[weights] + _WRAPPERS["ema" if weights == "model" else "model"]
    found = next((name for name in order if isinstance(content.get(name), dict)), None)
    state = content
    report = LoadReport()
    if found is not None:
        state = content[found]
        report.facts = {_FACTS[k]: v for k, v in content.items() if k in _FACTS and isinstance(v, int | float)}
        report.entries = [key for key in content if key != found and key not in _FACTS]
    tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(f"no tensors among the entries of the checkpoint: {', '.join(map(str, content))}")
    report.entries += [key for key in state if key not in tensors]
    while all(key.startswith("module.") for key in tensors):
        tensors = {key.removeprefix("module."): value for key, value in tensors.items()}
    return tensors, report


def resize_by_index(embedding: Tensor, size: tuple[int, int]) -> Tensor:
    """Keep each entry's index: zeros after the highest frequencies, or the highest cut off. As published."""
    return F.pad(embedding, (0, 0, 0, size[1] - embedding.shape[1], 0, size[0] - embedding.shape[0]))


def resize_by_frequency(embedding: Tensor, size: tuple[int, int]) -> Tensor:
    """Keep each entry's frequency per pixel."""
    return resize_embedding(embedding, size, "exact")


EMBEDDINGS = {"relative": resize_by_frequency, "index": resize_by_index}


def _kind(key: str) -> str:
    parts = key.split(".")
    return parts[-2] if parts[-1].isdigit() and len(parts) > 1 else parts[-1]


def _match_form(state: dict, model: nn.Module) -> None:
    """Fold or unfold a heat network, as the checkpoint is."""
    network: Any = model  # HeatPyramid, which stands above this file
    if not getattr(network, "freq_embed", None) and not getattr(network, "folded", False):
        return
    folded = any(key.endswith(".op.k_exp") for key in state)
    if folded and not network.folded:
        network.fold()
    elif network.folded and not folded:
        network.unfold()


def _fitted(key: str, value: Tensor, want: torch.Size, model: nn.Module, resizers: dict[str, Callable]) -> Tensor | str:
    """The tensor in the shape that the model wants, or why it has to be dropped."""
    if value.shape == want:
        return value
    shapes = f"{tuple(value.shape)} in the file, {tuple(want)} in the model"
    if key.rpartition(".")[0] == model.head_name:
        return f"another number of classes: {shapes}"
    if key == f"{model.first_conv}.weight" and value.shape[2:] == want[2:] and value.shape[0] == want[0]:
        return value.sum(1, keepdim=True).expand(want) / want[1]
    if _kind(key) in resizers and value.ndim == len(want):
        resized = resizers[_kind(key)](value, tuple(want))
        if resized.shape == want:
            return resized
    advice = "; a merged file serves one image size, give img_size" if key.endswith("k_exp") else ""
    raise ValueError(f"{key} does not fit: {shapes}{advice}")


def fit_state(
    state: dict[str, Tensor], model: nn.Module, embeddings: str = "relative", report: LoadReport | None = None
) -> tuple[dict[str, Tensor], LoadReport]:
    """Bring a state dict to the shapes of a model, and a heat network to the form, merged or not, of the state dict.

    Frequency embeddings, bias tables, position embeddings and the first convolution are resized; a head for other
    classes is left out.

    Args:
        state: tensors by key.
        model: one of this package's backbones.
        embeddings: "relative" keeps the frequency of each embedding's entries, "index" their index (published).
        report: report to continue.

    Raises:
        ValueError: a tensor does not fit and cannot be resized, or `embeddings` is unknown.
    """
    if embeddings not in EMBEDDINGS:
        raise ValueError(f"embeddings must be one of {', '.join(EMBEDDINGS)}, got {embeddings!r}")
    report = report or LoadReport()
    _match_form(state, model)
    own: Any = model.resizers
    resizers = {**own, "freq_embed": lambda value, shape: EMBEDDINGS[embeddings](value, shape[:2])}
    wanted = model.state_dict()
    fitted = {}
    for key, value in state.items():
        if key in wanted:
            result = _fitted(key, value, wanted[key].shape, model, resizers)
            if isinstance(result, str):
                report.dropped[key] = result
                continue
            if result.shape != value.shape:
                report.resized[key] = (tuple(value.shape), tuple(result.shape))
            fitted[key] = result
        elif _kind(key) in STRUCTURAL:
            report.ignored.append(key)
        else:
            report.unused.append(key)
    report.missing = [key for key in wanted if key not in fitted and key not in report.dropped]
    report.loaded = len(fitted)
    return fitted, report


def load_checkpoint(
    model: nn.Module, path: str | Path, *, weights: str = "model", embeddings: str = "relative", strict: bool = True
) -> LoadReport:
    """Load a published checkpoint, or one of this package, into a backbone.

    Args:
        model: the backbone; folded or unfolded as the file is.
        path: .safetensors, .pth or .pt.
        weights: "model", or "ema" for the averaged weights.
        embeddings: see `fit_state`.
        strict: refuse a file that lacks weights of the model (a head for other classes excepted).

    Returns:
        What was loaded, resized and not used; also logged.

    Raises:
        FileNotFoundError, ValueError: see `read_checkpoint` and `fit_state`; or weights are missing.
    """
    state, report = unwrap(read_checkpoint(path), weights)
    state, report = fit_state(state, model, embeddings, report)
    fresh: Any = model.fresh
    lacking = [key for key in report.missing if not (fresh and key.startswith(fresh))]
    if not report.loaded or (strict and lacking):
        raise ValueError(f"{path} lacks {len(lacking)} of the model's tensors, among them {', '.join(lacking[:5])}")
    state = {key: value.to(model.state_dict()[key].dtype) for key, value in state.items()}
    model.load_state_dict(state, strict=False)
    _log.info("%s: %s", path, report)
    return report


def checkpoint_filter_fn(state: dict, model: nn.Module) -> dict:
    """A published checkpoint with the keys and shapes of a model, which takes the checkpoint's form; called by timm."""
    return fit_state(unwrap(state)[0], model)[0]
