"""Heat conduction inside the unified architecture: the mixer named heat."""

from typing import ClassVar

from torch import Tensor

from vheatir.backbone.layers.embedding import EmbeddingAt
from vheatir.backbone.layers.heat import HeatBlock
from vheatir.backbone.mixers.block import BlockPosition, MixerBlock


class UnifiedHeatBlock(HeatBlock, MixerBlock):
    """The pre-norm block of vHeat; the blocks of a stage share its frequency embedding.

    Args:
        dim: channels C.
        place: where the block stands.
        mlp_ratio: hidden over outer channels.
        reach: blur lengths in pixels between which the starting diffusivities are spread; None for the published
            start, which hardly conducts.

    Source: vHeat, arXiv 2405.16555.
    """

    shares_embedding: ClassVar = True

    def __init__(
        self, dim: int, place: BlockPosition, *, mlp_ratio: float = 4.0, reach: tuple[float, float] | None = None
    ):
        super().__init__(
            dim,
            mlp_ratio=mlp_ratio,
            post_norm=False,
            layer_scale=place.layer_scale or None,
            drop_path=place.drop_path,
            reach=reach,
        )

    def init_tables(self) -> None:
        self.op.init_reach()

    def forward(self, x: Tensor, embedding: Tensor | EmbeddingAt | None = None) -> Tensor:
        return super().forward(x, embedding)
