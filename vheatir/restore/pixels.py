"""What is done to pixels beside the network: hidden colors, sides of few pixels, a share of the change."""

from collections.abc import Callable

import cv2
import numpy as np
import torch

from vheatir.archs.base import middle_planes

SMALL = 8  # pixels; images with a shorter side are restored by `with_margin`
_MARGIN = 16  # pixels that it adds on each side
_LUMA = (0.299, 0.587, 0.114)  # BT.601, as in JPEG files


def in_part(image: torch.Tensor, restored: torch.Tensor, luma: float, chroma: float) -> torch.Tensor:
    """The image with shares of the change.

    Args:
        image: (1, 1 or 3, H, W).
        restored: likewise.
        luma: share of the change of luma (BT.601) that is kept, from 0 to 1.
        chroma: likewise for color; gray images have none.
    """
    if luma == chroma == 1:
        return restored
    change = restored - image
    if luma == chroma or image.shape[1] == 1:
        return image + luma * change
    of_luma = torch.einsum("c,bchw->bhw", change.new_tensor(_LUMA), change)[:, None]
    return image + luma * of_luma + chroma * (change - of_luma)


def with_margin(run: Callable[[torch.Tensor], torch.Tensor], image: torch.Tensor) -> torch.Tensor:
    """A network's result for an image of a few pixels, which border effects would fill: padded, flat colors exact.

    The image is mirrored on all sides, and what the network does to its mean color alone is taken out.
    """
    rows, columns = (torch.from_numpy(mirrored(side)).to(image.device) for side in image.shape[-2:])
    padded = image.index_select(2, rows).index_select(3, columns)
    mean = image.mean((2, 3), keepdim=True)
    change = run(padded.contiguous()) - run(mean.expand_as(padded).contiguous())
    return change[..., _MARGIN:-_MARGIN, _MARGIN:-_MARGIN] + middle_planes(mean, change.shape[1])


def mirrored(side: int) -> np.ndarray:
    """Where each pixel of a padded side comes from: 0 1 2 2 1 0 0 1 2 ..., centered on the image."""
    position = np.arange(-_MARGIN, side + _MARGIN) % (2 * side)
    return np.minimum(position, 2 * side - 1 - position)


def filled(image: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """Colors of the nearest pixel that can be seen, where nothing can: what lies under alpha must not leave halos."""
    mask = hidden[0, 0].numpy()
    if mask.all() or not mask.any():
        return image
    found = cv2.distanceTransformWithLabels(
        mask.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
    )
    labels = found[1].astype(np.int64)
    visible = np.flatnonzero(~mask)
    source = np.zeros(int(labels.max()) + 1, dtype=np.int64)
    source[labels.ravel()[visible]] = visible
    return image.flatten(2)[:, :, torch.from_numpy(source[labels.ravel()])].view_as(image)
