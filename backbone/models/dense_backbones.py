"""Backbones for dense prediction with the keys and the behavior of the published detection and segmentation code."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vheatir.backbone.layers.common import to_channels_first
from vheatir.backbone.models import unified, vheat
from vheatir.backbone.models.create import list_models
from vheatir.backbone.models.meta_arch import MetaArch
from vheatir.backbone.models.pyramid import Pyramid, built_on
from vheatir.backbone.models.vheat import VHeat

PADDINGS = ("published", "masked")


def _outputs(model: Pyramid, image: Tensor) -> list[Tensor]:
    """The chosen stages' maps, each with its own norm; what goes on to the next stage has none."""
    _, maps = model.features(image, model.out_indices)
    norms = [model.get_submodule(f"{model.norm_name}{index}") for index in model.out_indices]
    return [to_channels_first(norm(one)) for norm, one in zip(norms, maps, strict=True)]


def _add_norms(model: Pyramid, out_indices: Sequence[int], eps: float) -> None:
    stages = len(model.dims)
    if not out_indices or any(not 0 <= index < stages for index in out_indices):
        raise ValueError(f"out_indices must name some of the stages 0 to {stages - 1}, got {tuple(out_indices)}")
    model.out_indices = tuple(sorted(set(out_indices)))
    model.fresh = (model.norm_name,)
    for index in model.out_indices:
        model.add_module(f"{model.norm_name}{index}", nn.LayerNorm(model.dims[index], eps=eps))


class DenseVHeat(VHeat):
    """vHeat for dense prediction: images (B, in_chans, H, W) to the list of the chosen stages' normed maps.

    Args:
        out_indices: stages whose maps are returned.
        resize: how frequency embeddings are brought to other map sizes; "published" is what the published
            detection code does.
        **network: see `VHeat`.
    """

    norm_name = "outnorm"

    def __init__(self, out_indices: Sequence[int] = (0, 1, 2, 3), resize: str = "published", **network):
        super().__init__(num_classes=0, resize=resize, **network)
        self._drop_head()
        _add_norms(self, out_indices, eps=1e-5)

    def forward(self, x: Tensor) -> list[Tensor]:
        return _outputs(self, x)


class DenseMetaArch(MetaArch):
    """A unified network for dense prediction: images to the list of the chosen stages' normed maps.

    Args:
        out_indices: stages whose maps are returned.
        padding: "published" lets attention see the padding of maps to whole windows, "masked" keeps it out.
        **network: see `MetaArch`.
    """

    norm_name = "out_norm_"

    def __init__(self, out_indices: Sequence[int] = (0, 1, 2, 3), padding: str = "published", **network):
        super().__init__(num_classes=0, dense=True, mask_padding=padding == "masked", **network)
        self._drop_head()
        self.stage_norms = nn.ModuleList(nn.Identity() for _ in self.dims)
        _add_norms(self, out_indices, eps=1e-6)

    def forward(self, x: Tensor) -> list[Tensor]:
        return _outputs(self, x)


def dense_backbone(
    name: str,
    padding: str = "published",
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    **network: Any,
) -> DenseVHeat | DenseMetaArch:
    """The dense-prediction backbone of a registered model.

    Its weights have the published keys: the classifier's without head and stage norms, and a norm for each output.
    `load_checkpoint` takes classifier files too, whose lack of output norms is no error.

    Args:
        name: such as "vheat_tiny" or "unified_swin_small".
        padding: "published", or "masked" to keep the padding of maps out of attention; vHeat pads nothing.
        device: where the weights are made.
        dtype: floating type of the weights.
        **network: out_indices, img_size, drop_path_rate and further arguments of the network.

    Raises:
        ValueError: unknown name or padding.
    """
    if padding not in PADDINGS:
        raise ValueError(f"padding must be one of {', '.join(PADDINGS)}, got {padding!r}")
    family, _, rest = name.partition("_")
    mixer, _, size = rest.rpartition("_")
    if family == "vheat" and rest in vheat.SIZES:
        return built_on(DenseVHeat, {**vheat.SIZES[rest], **network}, device, dtype)
    if family == "unified" and size in unified.SIZES.get(mixer, {}):
        arguments = {"padding": padding, **unified.network_arguments(mixer, size, network)}
        return built_on(DenseMetaArch, arguments, device, dtype)
    raise ValueError(f"unknown backbone {name!r}; known: {', '.join(list_models())}")
