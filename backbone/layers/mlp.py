"""Two pointwise layers with GELU between them, on channels-last maps."""

import torch.nn.functional as F
from torch import Tensor, nn

from vheatir.backbone.layers.packed import ChannelsLastConv2d


class Mlp(nn.Module):
    """Two pointwise convolutions with GELU between, on (B, H, W, C) maps; optionally a depthwise 3x3 in the middle.

    Args:
        dim: channels C.
        hidden: channels between the two convolutions.
        dwconv: add the depthwise convolution (with its own residual), as restoration networks often do.
    """

    def __init__(self, dim: int, hidden: int, dwconv: bool = False):
        super().__init__()
        self.fc1 = ChannelsLastConv2d(dim, hidden, 1)
        self.dwconv = ChannelsLastConv2d(hidden, hidden, 3, padding=1, groups=hidden) if dwconv else None
        self.fc2 = ChannelsLastConv2d(hidden, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.dwconv is None:
            as_built = type(self.fc1) is ChannelsLastConv2d  # an adapter in its place takes x alone, or adds after GELU
            return self.fc2(self.fc1(x, gelu=True) if as_built else F.gelu(self.fc1(x)))
        x = self.fc1(x)
        return self.fc2(F.gelu(x + self.dwconv(x)))


class LinearMlp(nn.Module):
    """Two linear layers with GELU between, on (..., C); the form whose weights are matrices."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))
