"""Effective receptive field: which pixels of an image the center of a stage's map depends on, and how much.

Source: Luo et al., arXiv 1701.04128; the share of the area is that of Ding et al., arXiv 2203.06717.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from vheatir.backbone.models.pyramid import Pyramid

SHARES = (0.2, 0.3, 0.5, 0.99)


def centre_of(side: int, stage: int) -> float:
    """Middle of the pixel that the map's central pixel stands for, from the rim of an image of that side.

    Convolutions of 3 with stride 2 and a rim of 1 put pixel n of a map on pixel 2n of what they are given.
    """
    stride = 4 * 2**stage
    return -(-side // stride) // 2 * stride + 0.5


def receptive_field(model: Pyramid, images: Iterable[Tensor], stage: int) -> Tensor:
    """Mean absolute gradient of the central pixel of a stage's map in each pixel of the image.

    The pixel's channels are summed with random signs: the plain sum behind a norm is a constant, without gradient.
    Absolute values, so that what is positive in one image and negative in another does not cancel.

    Args:
        model: a backbone in eval mode.
        images: batches (B, C, H, W), all of one H, W, on the model's device.
        stage: index of the stage.

    Returns:
        (H, W), float64 on the CPU.

    Raises:
        ValueError: no images.
    """
    field = None
    count = 0
    generator = torch.Generator("cpu").manual_seed(0)
    for batch in images:
        batch = batch.detach().requires_grad_()
        found = model.forward_intermediates(batch, [stage], stop_early=True, intermediates_only=True)
        assert isinstance(found, list)
        (maps,) = found
        center = maps[:, :, maps.shape[2] // 2, maps.shape[3] // 2]
        signs = torch.randint(2, center.shape, generator=generator, device="cpu").to(center) * 2 - 1
        (gradient,) = torch.autograd.grad((center * signs).sum(), batch)
        total = gradient.abs().sum((0, 1)).double().cpu()
        field, count = total if field is None else field + total, count + len(batch)
    if field is None:
        raise ValueError("no images to take gradients at")
    return field / count


def area_ratio(field: Tensor, stage: int, share: float) -> float:
    """Share of the image's area that the smallest square needs which holds `share` of the field, around its center.

    Args:
        field: (H, W), not negative.
        stage: the one whose map the field was taken from; it sets the center.
        share: of the field's sum, from 0 to 1.
    """
    height, width = field.shape
    y = centre_of(height, stage)
    x = centre_of(width, stage)
    rows = torch.arange(height, device=field.device) + 0.5 - y
    columns = torch.arange(width, device=field.device) + 0.5 - x
    distance = torch.maximum(rows.abs()[:, None], columns.abs()[None]).flatten()
    nearest, order = distance.sort()
    held = field.flatten()[order].cumsum(0)
    needed = nearest[min(int(torch.searchsorted(held, share * held[-1])), held.numel() - 1)]
    return (distance <= needed).double().mean().item()
