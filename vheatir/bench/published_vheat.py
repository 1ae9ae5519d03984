"""vHeat as it was published, a baseline to measure against and used by nothing else.

Maps are (B, C, H, W): every norm and every heat layer changes the layout and back, and the decay is a power that is
formed anew in each call. The keys of its state are those of `VHeat`, whose weights it takes.

Source: vHeat, arXiv 2405.16555; written from a description of the network.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vheatir.bench.published_operator import PublishedHeatLayer


class LayerNorm2d(nn.LayerNorm):
    """Norm over the channels of (B, C, H, W) maps, by way of (B, H, W, C)."""

    def forward(self, maps: Tensor) -> Tensor:
        return super().forward(maps.permute(0, 2, 3, 1).contiguous()).permute(0, 3, 1, 2).contiguous()


class _Mlp(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(dim, 4 * dim, 1), nn.Conv2d(4 * dim, dim, 1)

    def forward(self, maps: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(maps)))


class PublishedHeatBlock(nn.Module):
    """Heat layer and MLP with their residuals, on (B, C, H, W) maps of one size; arguments as in `HeatBlock`."""

    def __init__(self, dim: int, height: int, width: int, post_norm: bool = False, layer_scale: float | None = None):
        super().__init__()
        self.post_norm = post_norm
        self.norm1, self.norm2 = LayerNorm2d(dim), LayerNorm2d(dim)
        self.op, self.mlp = PublishedHeatLayer(dim, height, width), _Mlp(dim)
        self.gamma1 = self.gamma2 = None
        if layer_scale is not None:
            self.gamma1, self.gamma2 = (nn.Parameter(torch.full((dim,), layer_scale)) for _ in range(2))

    @staticmethod
    def _scaled(maps: Tensor, gamma: Tensor | None) -> Tensor:
        return maps if gamma is None else gamma[:, None, None] * maps

    def forward(self, maps: Tensor, embedding: Tensor) -> Tensor:
        if self.post_norm:
            maps = maps + self._scaled(self.norm1(self.op(maps, embedding)), self.gamma1)
            return maps + self._scaled(self.norm2(self.mlp(maps)), self.gamma2)
        maps = maps + self._scaled(self.op(self.norm1(maps), embedding), self.gamma1)
        return maps + self._scaled(self.mlp(self.norm2(maps)), self.gamma2)


class _Stem(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.conv1 = nn.Conv2d(3, dim // 2, 3, stride=2, padding=1)
        self.norm1 = nn.Sequential(nn.Identity(), LayerNorm2d(dim // 2, eps=1e-6))
        self.conv2 = nn.Conv2d(dim // 2, dim, 3, stride=2, padding=1)
        self.norm2 = nn.Sequential(nn.Identity(), LayerNorm2d(dim, eps=1e-6))

    def forward(self, image: Tensor) -> Tensor:
        return self.norm2(self.conv2(F.gelu(self.norm1(self.conv1(image)))))


class PublishedVHeat(nn.Module):
    """The classifier in the form that is trained; square images whose side is a multiple of 32, no stochastic depth."""

    def __init__(self, img_size: int, dims: int, depths: tuple[int, ...], **block):
        super().__init__()
        widths = [dims * 2**stage for stage in range(4)]
        sides = [img_size // (4 * 2**stage) for stage in range(4)]
        self.patch_embed = _Stem(dims)
        self.freq_embed = nn.ParameterList(torch.empty(s, s, c) for s, c in zip(sides, widths, strict=True))
        self.layers = nn.ModuleList()
        for stage, (dim, side, depth) in enumerate(zip(widths, sides, depths, strict=True)):
            children = [PublishedHeatBlock(dim, side, side, **block) for _ in range(depth)]
            if stage < 3:
                conv = nn.Conv2d(dim, 2 * dim, 3, stride=2, padding=1, bias=False)
                children.append(nn.Sequential(conv, LayerNorm2d(2 * dim)))
            self.layers.append(nn.ModuleList(children))
        head = LayerNorm2d(widths[-1]), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 1000)
        self.classifier = nn.Sequential(*head)

    def forward(self, image: Tensor) -> Tensor:
        maps = self.patch_embed(image)
        for stage, embedding in zip(self.layers, self.freq_embed, strict=True):
            for child in stage:
                maps = child(maps, embedding) if isinstance(child, PublishedHeatBlock) else child(maps)
        return self.classifier(maps)
