"""The heat operator as it was published: a baseline to measure against, used by nothing else.

Differs from the product on purpose, as the published network does: float32 tables computed in float32, each of the
four products a 1-D convolution with kernel size 1 whose channels are the transformed axis, a copy of the maps wherever
the layout has to change, and the decay as the power E**k, formed anew at every call.

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
    """E = exp(-(w_h^2 + w_w^2)), (height, width), computed in float32."""
    rows = torch.linspace(0.0, math.pi, height + 1, device=device)[:-1]
    columns = torch.linspace(0.0, math.pi, width + 1, device=device)[:-1]
    return torch.exp(-(rows.square()[:, None] + columns.square()[None]))


class PublishedConduction:
    """The operator on (B, H, W, C) maps of one size, with its tables; call it with x and the (H, W, C) decay."""

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
