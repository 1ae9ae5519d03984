"""Spatial token mixers for the unified architecture, by name."""

from vheatir.backbone.mixers.block import BlockPosition, MixerBlock, Place
from vheatir.backbone.mixers.deformable import DeformableBlock
from vheatir.backbone.mixers.depthwise import DepthwiseBlock
from vheatir.backbone.mixers.halo import HaloBlock
from vheatir.backbone.mixers.heat import UnifiedHeatBlock
from vheatir.backbone.mixers.shifted_window import ShiftedWindowBlock
from vheatir.backbone.mixers.spatial_reduction import SpatialReductionBlock

MIXERS: dict[str, type[MixerBlock]] = {
    "halo": HaloBlock,
    "pvt": SpatialReductionBlock,
    "swin": ShiftedWindowBlock,
    "convnext": DepthwiseBlock,
    "dcn_v3": DeformableBlock,
    "heat": UnifiedHeatBlock,
}

__all__ = ["MIXERS", "BlockPosition", "MixerBlock", "Place", "mixer_named"]


def mixer_named(name: str) -> type[MixerBlock]:
    """The block class of a mixer.

    Raises:
        ValueError: there is no mixer of that name.
    """
    if name not in MIXERS:
        raise ValueError(f"unknown token mixer {name!r}; known: {', '.join(sorted(MIXERS))}")
    return MIXERS[name]
