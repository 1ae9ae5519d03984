"""Parameters and multiply-accumulates of a backbone, counted without computing anything."""

import copy
from collections import Counter
from collections.abc import Sequence

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vheatir.backbone.models.pyramid import image_size
from vheatir.kernels import ops  # noqa: F401 (registers the operators and what they cost)

_aten = torch.ops.aten


def _elements(shape: Sequence[int]) -> int:
    return torch.Size(shape).numel()


def _per_input(factor: int):
    return lambda shape, *args, out_shape=None, **kwargs: 2 * factor * _elements(shape)


def _norm(shape, *args, out_shape=None, **kwargs) -> int:
    return 2 * 5 * _elements(shape)


def _sampled(*args, out_shape: Sequence[int], **kwargs) -> int:
    return 2 * 4 * _elements(out_shape)


# Flops, two for each multiply-accumulate, of what torch's counter does not know. Norms, pooling and sampling follow
# fvcore's default rules, by which the published numbers are counted, as does the decay in `kernels.flops`.
_FORMULAS = {
    _aten.native_layer_norm: _norm,
    _aten.native_batch_norm: _per_input(2),
    _aten._native_batch_norm_legit: _per_input(2),
    _aten._native_batch_norm_legit_no_training: _per_input(2),
    _aten.cudnn_batch_norm: _per_input(2),
    _aten._batch_norm_impl_index: _per_input(2),
    _aten.mean: _per_input(1),
    _aten.grid_sampler_2d: _sampled,
}
_GROUPS = {
    "layer_norm": ("native_layer_norm",),
    "batch_norm": ("batch_norm",),
    "pooling": ("mean",),
    "sampling": ("grid_sampler",),
    "heat_conduction": ("conduct", "diffuse", "cosine_transform"),
    "convolution": ("convolution",),
    "attention": ("scaled_dot_product", "bmm", "attention"),
    "linear": ("addmm", "mm", "linear"),
}


def _group(name: str) -> str:
    return next((group for group, parts in _GROUPS.items() if any(part in name for part in parts)), "other")


def count_parameters(model: nn.Module) -> dict[str, int]:
    """Parameters in all and those that are trained."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return {"total": sum(n for n, _ in sizes), "trainable": sum(n for n, trained in sizes if trained)}


def count_macs(model: nn.Module, img_size: int | Sequence[int] = 224) -> dict[str, int]:
    """Multiply-accumulates of one image by kind of operation, and their `total`; heat conduction by its definition.

    The model is copied to the "meta" device: nothing is computed, and its weights are not touched.
    """
    height, width = image_size(img_size)
    stand_in = copy.deepcopy(model).to("meta").eval()
    channels = model.in_chans
    if not isinstance(channels, int):
        raise TypeError(f"in_chans of {type(model).__name__} must be its number of input channels, got {channels!r}")
    image = torch.empty(1, channels, height, width, device="meta")
    counter = FlopCounterMode(display=False, custom_mapping=_FORMULAS)
    with counter:
        stand_in(image)
    groups: Counter[str] = Counter()
    for operator, flops in counter.get_flop_counts()["Global"].items():
        groups[_group(str(operator))] += flops // 2
    return {**dict(groups), "total": sum(groups.values())}
