"""Published checkpoints: read without running code, unwrapped, brought to a model's keys and shapes."""

import logging
import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vheatir.backbone.layers.embedding import resize_embedding
from vheatir.backbone.models.checkpoint_files import read_checkpoint

_log = logging.getLogger(__name__)

# Where the weights are kept in a file, the plain ones first; "ema" prefers the others.
_WRAPPERS = {"model": ("model", "state_dict", "module", "net"), "ema": ("model_ema", "state_dict_ema", "ema")}
# Buffers of the published code that are functions of the sizes; ours are made when needed.
STRUCTURAL = ("relative_position_index", "attn_mask")
# The published vHeat code writes the EMA's best accuracy under a misspelled name.
_FACTS = {"epoch": "epoch", "max_accuracy": "max_accuracy", "best_acc": "max_accuracy"}
_FACTS |= {"max_accuracy_ema": "max_accuracy_ema", "max_accuray_ema": "max_accuracy_ema"}

# What DDP, averages and torch.compile put before names.
_WRAPPED = re.compile(r"(?:^|(?<=\.))(?:(?:module|_orig_mod)\.)+")
_SHOWN = 4


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
        entries: other entries of the file, such as the optimizer.
        facts: epoch and accuracies that the file states.
        prefix: what was taken from the front of the file's keys.
    """

    loaded: int = 0
    resized: dict[str, tuple[tuple, tuple]] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    entries: list[str] = field(default_factory=list)
    facts: dict = field(default_factory=dict)
    prefix: str = ""

    def __str__(self) -> str:
        lines = [f"{self.loaded} tensors loaded" + (f", keys without {self.prefix!r}" if self.prefix else "")]
        lines += [f"resized {key}: {a} -> {b}" for key, (a, b) in self.resized.items()]
        lines += [f"not loaded {key}: {why}" for key, why in self.dropped.items()]
        for name in ("missing", "unused", "entries"):
            if getattr(self, name):
                lines.append(f"{name}: {', '.join(getattr(self, name))}")
        return "\n".join(lines)


def unwrap(content: dict, weights: str = "model") -> tuple[dict[str, Tensor], LoadReport]:
    """The state dict inside a file's content, and a report of the rest; names without `module.` and `_orig_mod.`.

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
    tensors = {key: value for key, value in state.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(f"no tensors among the entries of the checkpoint: {', '.join(map(str, content))}")
    report.entries += [str(key) for key in state if key not in tensors]
    plain = {_WRAPPED.sub("", key): value for key, value in tensors.items()}
    if len(plain) < len(tensors):  # two of them would have one name: they are the network's own
        return tensors, report
    found_prefixes = [match[0] for key in tensors if (match := _WRAPPED.match(key))]
    report.prefix = max(found_prefixes, key=len, default="")
    return plain, report


def read_state(path: str | Path, weights: str = "model") -> tuple[dict[str, Tensor], LoadReport]:
    """The state dict in a file; see `read_checkpoint` and `unwrap`.

    Raises:
        FileNotFoundError, ValueError: as these do, naming the file.
    """
    content = read_checkpoint(path)
    try:
        return unwrap(content, weights)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def without_prefix(
    state: dict[str, Tensor], wanted: Collection[str], report: LoadReport, weights: str = "model"
) -> dict[str, Tensor]:
    """The tensors of a network inside a larger one, such as `model.` of Lightning and `backbone.` of mmdetection.

    Args:
        state: tensors by key.
        wanted: the network's keys.
        report: called with what was stripped and what is not used.
        weights: "ema" takes an average where the file has both.

    Returns:
        The state itself where no prefix gives more of the wanted keys.
    """

    def found(prefix: str) -> int:
        return sum(prefix + key in state for key in wanted)

    counts = Counter(key[: -len(name)] for name in list(wanted)[:64] for key in state if key.endswith(f".{name}"))
    averages = weights == "ema"
    best = max(("", *counts), key=lambda one: (found(one), averages == ("ema" in one.lower()), -len(one)))
    if found(best) <= found(""):
        return state
    report.prefix += best
    report.unused += [key for key in state if not key.startswith(best)]
    return {key.removeprefix(best): value for key, value in state.items() if key.startswith(best)}


def lacks(path: str | Path, lacking: Sequence[str], state: Collection[str]) -> str:
    """The message for a file that lacks weights: which, and what its keys look like.

    Args:
        path: the file.
        lacking: names of the weights.
        state: what the file has.
    """
    shown = ", ".join(lacking[:5])
    own = ", ".join(list(state)[:_SHOWN])
    return f"{path} lacks {len(lacking)} of the model's tensors, among them {shown}; the file's keys begin with {own}"


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
        network.unfold_to_load()


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
    advice = "; a folded file serves one image size, give img_size" if key.endswith("k_exp") else ""
    raise ValueError(f"{key} does not fit: {shapes}{advice}")


def fit_state(
    state: dict[str, Tensor],
    model: nn.Module,
    embeddings: str = "relative",
    report: LoadReport | None = None,
    weights: str = "model",
) -> tuple[dict[str, Tensor], LoadReport]:
    """Bring a state dict to the shapes of a model, and a heat network to the form, folded or not, of the state dict.

    Frequency embeddings, bias tables, position embeddings and the first convolution are resized; a head for other
    classes is left out.

    Args:
        state: tensors by key.
        model: one of this package's backbones.
        embeddings: "relative" keeps the frequency of each embedding's entries, "index" their index (published).
        report: report to continue.
        weights: see `without_prefix`.

    Raises:
        ValueError: a tensor does not fit and cannot be resized, or `embeddings` is unknown.
    """
    if embeddings not in EMBEDDINGS:
        raise ValueError(f"embeddings must be one of {', '.join(EMBEDDINGS)}, got {embeddings!r}")
    report = report or LoadReport()
    state = without_prefix(state, model.state_dict(), report, weights)
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
    stored, report = read_state(path, weights)
    try:
        state, report = fit_state(stored, model, embeddings, report, weights)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    fresh: Any = model.fresh
    lacking = [key for key in report.missing if not (fresh and key.startswith(fresh))]
    if not report.loaded or (strict and lacking):
        raise ValueError(lacks(path, lacking, stored))
    state = {key: value.to(model.state_dict()[key].dtype) for key, value in state.items()}
    model.load_state_dict(state, strict=False)
    _log.info("%s: %s", path, report)
    return report


def checkpoint_filter_fn(state: dict, model: nn.Module) -> dict:
    """A published checkpoint with the keys and shapes of a model, which takes the checkpoint's form; called by timm."""
    return fit_state(unwrap(state)[0], model)[0]
