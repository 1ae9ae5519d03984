"""What the restoration networks of this package have in common."""

from typing import Any

import torch
from torch import Tensor, nn


class RestorationNetwork(nn.Module):
    """A network from degraded images to restored ones of the same shape.

    Attributes:
        config: its constructor arguments by name.
        level_map: whether it takes the noise level or JPEG quality as a second input.
    """

    config: dict[str, Any]
    level_map: bool


def middle_planes(planes: Tensor, count: int) -> Tensor:
    """Of the planes of a clip's frames, one frame after the other, those of the middle one; images as they are.

    Args:
        planes: (..., T * count, H, W), T odd.
        count: channels of a frame.
    """
    return planes.narrow(-3, (planes.shape[-3] - count) // 2, count)


def is_empty(images: Tensor) -> bool:
    """Whether a batch holds no image, which many operations cannot take; never so while a network is exported.

    Args:
        images: (B, C, H, W).
    """
    return not torch.compiler.is_exporting() and images.shape[0] == 0
