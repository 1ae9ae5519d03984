"""Depthwise convolution between two pointwise ones: the mixer named convnext."""

from torch import Tensor, nn

from vheatir.backbone.layers.common import DropPath
from vheatir.backbone.layers.packed import ChannelsLastConv2d
from vheatir.backbone.mixers.block import BlockPosition, MixerBlock, make_factor, scaled


class DepthwiseBlock(MixerBlock):
    """Pointwise, depthwise k x k, pointwise convolution; then an MLP.

    Args:
        dim: channels C.
        place: where the block stands.
        kernel_size: side k of the depthwise convolution, odd.
        mlp_ratio: hidden over outer channels.

    Source: ConvNeXt, arXiv 2201.03545, as unified in arXiv 2211.05781.
    """

    def __init__(self, dim: int, place: BlockPosition, *, kernel_size: int = 7, mlp_ratio: float = 4.0):
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd to keep the map's size, got {kernel_size}")
        hidden = int(dim * mlp_ratio)
        self.dw_norm = nn.LayerNorm(dim, eps=1e-6)
        self.dw_input_proj = ChannelsLastConv2d(dim, dim, 1)
        self.dwconv = ChannelsLastConv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)
        self.dw_out_proj = ChannelsLastConv2d(dim, dim, 1)
        self.gamma_1 = make_factor(place, (1, dim, 1, 1))
        self.pw_norm = nn.LayerNorm(dim, eps=1e-6)
        self.pwconv1 = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.pwconv2 = nn.Linear(hidden, dim)
        self.gamma_2 = make_factor(place, (1, 1, 1, dim))
        self.drop_path = DropPath(place.drop_path)

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.dw_out_proj(self.dwconv(self.dw_input_proj(self.dw_norm(x))))
        x = x + self.drop_path(scaled(mixed, self.gamma_1))
        return x + self.drop_path(scaled(self.pwconv2(self.act(self.pwconv1(self.pw_norm(x)))), self.gamma_2))
