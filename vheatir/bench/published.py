"""The heat operator and vHeat as they were published: baselines to measure against, used by nothing else.

They differ from the product on purpose, as the published network does: float32 tables computed in float32, each of the
four products a 1-D convolution with kernel size 1 whose channels are the transformed axis, a copy of the maps wherever
the layout has to change, and the decay as the power E**k, formed anew at every call. Maps of the network are
(B, C, H, W): every norm and every heat layer changes the layout and back. The keys of its state are those of `VHeat`,
whose weights it takes.

Source: vHeat, arXiv 2405.16555; written from a description of the computation.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def cosine_table(n: int, device: torch.device | str = "cpu") -> Tensor:
    """(n, n) orthonormal DCT-II matrix, computed in float32."""
    position = (torch.arange(n, dtype=torch.float32, device=device) + 0.5) / n
    frequency = torch.arange(n, dtype=torch.float32, device=device)
    table = torch.cos(math.pi * frequency[:, None] * position[None]) * math.sqrt(2.0 / n)
    table[0] /= math.sqrt(2.0)
    return table


def decay_base(height: int, width: int, device: torch.device | str = "cpu") -> Tensor:
    """E = exp(-(w_h^2 + w_w^2)), (height, width), computed in float32.

    Args:
        height: of the maps.
        width: of the maps.
        device: of the result.
    """
    rows = torch.linspace(0.0, math.pi, height + 1, device=device)[:-1]
    columns = torch.linspace(0.0, math.pi, width + 1, device=device)[:-1]
    return torch.exp(-(rows.square()[:, None] + columns.square()[None]))


class PublishedConduction:
    """The operator on (B, H, W, C) maps of one size, with its tables; call it with x and the (H, W, C) decay.

    Args:
        height, width: of the maps.
        dtype, device: of the tables.
    """

    def __init__(self, height: int, width: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"):
        self._rows = cosine_table(height, device).to(dtype)
        self._columns = cosine_table(width, device).to(dtype)

    @staticmethod
    def _along_height(table: Tensor, maps: Tensor) -> Tensor:
        batch, height, width, channels = maps.shape
        lines = maps.contiguous().view(batch, height, width * channels)
        return F.conv1d(lines, table.contiguous()[:, :, None]).view(batch, height, width, channels)

    @staticmethod
    def _along_width(table: Tensor, maps: Tensor) -> Tensor:
        batch, height, width, channels = maps.shape
        lines = maps.contiguous().view(batch * height, width, channels)
        return F.conv1d(lines, table.contiguous()[:, :, None]).contiguous().view(batch, height, width, channels)

    def __call__(self, x: Tensor, decay: Tensor) -> Tensor:
        spectrum = self._along_width(self._columns, self._along_height(self._rows, x))
        spectrum = torch.einsum("bhwc,hwc->bhwc", spectrum, decay.expand(spectrum.shape[1:]))
        return self._along_width(self._columns.T, self._along_height(self._rows.T, spectrum))


class PublishedHeatLayer(nn.Module):
    """The whole published layer: depthwise convolution, linear, operator, norm, SiLU gate, linear.

    Input and output (B, C, H, W), float32, of the size given here; the frequency embedding is (H, W, C). The keys of
    its state are those of the published network.

    Args:
        channels: C.
        height, width: of the maps.
    """

    def __init__(self, channels: int, height: int, width: int):
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.linear = nn.Linear(channels, 2 * channels)
        self.to_k = nn.Sequential(nn.Linear(channels, channels), nn.ReLU())
        self.out_norm = nn.LayerNorm(channels)
        self.out_linear = nn.Linear(channels, channels)
        self.register_buffer("_base", decay_base(height, width), persistent=False)
        self._conduct = PublishedConduction(height, width)

    def forward(self, x: Tensor, freq_embed: Tensor) -> Tensor:
        maps = self.linear(self.dwconv(x).permute(0, 2, 3, 1).contiguous())
        values, gate = maps.chunk(2, dim=-1)
        decay = torch.pow(self._base[:, :, None], self.to_k(freq_embed))
        conducted = self.out_norm(self._conduct(values, decay))
        return self.out_linear(conducted * F.silu(gate)).permute(0, 3, 1, 2).contiguous()


class LayerNorm2d(nn.LayerNorm):
    """Norm over the channels of (B, C, H, W) maps, by way of (B, H, W, C)."""

    def forward(self, maps: Tensor) -> Tensor:
        return super().forward(maps.permute(0, 2, 3, 1).contiguous()).permute(0, 3, 1, 2).contiguous()


class _Mlp(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.fc1 = nn.Conv2d(dim, 4 * dim, 1)
        self.fc2 = nn.Conv2d(4 * dim, dim, 1)

    def forward(self, maps: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(maps)))


class PublishedHeatBlock(nn.Module):
    """Heat layer and MLP with their residuals, on (B, C, H, W) maps of one size; arguments as in `HeatBlock`.

    Args:
        dim: channels C.
        height, width: of the maps.
        post_norm, layer_scale: see `HeatBlock`.
    """

    def __init__(self, dim: int, height: int, width: int, post_norm: bool = False, layer_scale: float | None = None):
        super().__init__()
        self.post_norm = post_norm
        self.norm1 = LayerNorm2d(dim)
        self.norm2 = LayerNorm2d(dim)
        self.op = PublishedHeatLayer(dim, height, width)
        self.mlp = _Mlp(dim)
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
    """The classifier in the form that is trained; square images whose side is a multiple of 32, no stochastic depth.

    Args:
        img_size: side of the images in pixels.
        dims: channels of the first stage; they double.
        depths: blocks of each stage.
        **block: further arguments of `PublishedHeatBlock`.
    """

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
