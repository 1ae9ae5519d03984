"""UPerNet (arXiv 1807.10221) with an auxiliary head, on maps of four stages."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

from vheatir.backbone.models.feature_maps import MEAN, STD
from vheatir.backbone.segmentation.recipe import Head


def _convolution(inward: int, outward: int, kernel: int) -> nn.Module:
    """Convolution, batch norm, ReLU."""
    return Conv2dNormActivation(inward, outward, kernel, inplace=True)


def _resized(maps: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(maps, size=like.shape[2:], mode="bilinear", align_corners=False)


class PooledContext(nn.Module):
    """Pyramid pooling: a map, and its means over grids of several sizes, brought back to its size and merged.

    Args:
        dim: channels of the map.
        channels: of the result.
        scales: sides of the grids.
    """

    def __init__(self, dim: int, channels: int, scales: Sequence[int]):
        super().__init__()
        self.scales = tuple(scales)
        self.pooled = nn.ModuleList(_convolution(dim, channels, 1) for _ in scales)
        self.merge = _convolution(dim + len(self.scales) * channels, channels, 3)

    def forward(self, maps: Tensor) -> Tensor:
        means = [
            _resized(convolution(F.adaptive_avg_pool2d(maps, scale)), maps)
            for scale, convolution in zip(self.scales, self.pooled, strict=True)
        ]
        return self.merge(torch.cat([maps, *means], 1))


class UPerHead(nn.Module):
    """Class scores (B, num_classes, H/4, W/4) from the maps of four stages.

    The last map with its pooled context goes down a feature pyramid; all its maps, brought to the first one's size,
    are merged. Widths as published for ADE20K: 512 channels, pooled to 1, 2, 3 and 6.

    Args:
        dims: channels of the maps.
        num_classes: scores for each pixel.
        head: widths, scales and dropout.
    """

    def __init__(self, dims: Sequence[int], num_classes: int, head: Head):
        super().__init__()
        channels = head.channels
        self.context = PooledContext(dims[-1], channels, head.pool_scales)
        self.lateral = nn.ModuleList(_convolution(dim, channels, 1) for dim in dims[:-1])
        self.smooth = nn.ModuleList(_convolution(channels, channels, 3) for _ in dims[:-1])
        self.merge = _convolution(len(dims) * channels, channels, 3)
        self.dropout = nn.Dropout2d(head.dropout)
        self.classifier = nn.Conv2d(channels, num_classes, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        pyramid = [self.context(maps[-1])]
        for lateral, one in zip(reversed(self.lateral), reversed(maps[:-1]), strict=True):
            narrowed = lateral(one)
            pyramid.insert(0, narrowed + _resized(pyramid[0], narrowed))
        smooth = [convolution(one) for convolution, one in zip(self.smooth, pyramid[:-1], strict=True)]
        rest = [_resized(one, smooth[0]) for one in [*smooth[1:], pyramid[-1]]]
        return self.classifier(self.dropout(self.merge(torch.cat([smooth[0], *rest], 1))))


class AuxiliaryHead(nn.Module):
    """Class scores from one map: a 3x3 convolution and a classifier.

    Args:
        dim: channels of the map.
        num_classes: of the scores.
        channels: between both layers.
        dropout: share of the channels that training drops.
    """

    def __init__(self, dim: int, num_classes: int, channels: int, dropout: float):
        super().__init__()
        self.convolution = _convolution(dim, channels, 3)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(channels, num_classes, 1)

    def forward(self, maps: Tensor) -> Tensor:
        return self.classifier(self.dropout(self.convolution(maps)))


class Segmenter(nn.Module):
    """Images (B, 3, H, W), RGB in [0, 1], to class scores (B, num_classes, H, W).

    In training a tuple: the scores, and those of the auxiliary head where there is one.

    Args:
        body: gives the maps of four stages, of widths `dims`.
        head: the heads.
        num_classes: scores for each pixel.
    """

    in_chans = 3

    def __init__(self, body: nn.Module, head: Head, num_classes: int):
        super().__init__()
        self.body = body
        self.head = UPerHead(body.dims, num_classes, head)
        aux = head.aux_channels
        self.auxiliary = AuxiliaryHead(body.dims[2], num_classes, aux, head.dropout) if aux else None
        self.register_buffer("mean", torch.tensor(MEAN).reshape(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).reshape(3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        maps = self.body((x - self.mean) / self.std)
        scores = _resized(self.head(maps).float(), x)
        if not self.training:
            return scores
        return (scores,) if self.auxiliary is None else (scores, _resized(self.auxiliary(maps[2]).float(), x))
