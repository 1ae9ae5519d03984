"""Views of an image for measuring how a classifier bears shifts, rotations and scales, and the figures of a batch."""

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as T

CROP_RATIO = 0.875
# Rows down and columns right, by direction; the published evaluation never draws the last.
DIRECTIONS = ((1, 0), (0, 1), (-1, 0), (0, -1), (1, 1), (-1, 1), (-1, -1), (1, -1))
PUBLISHED_DIRECTIONS = 7
_BICUBIC = InterpolationMode.BICUBIC


def _resized(image: Image.Image, size: int, ratio: float) -> Image.Image:
    """The shorter side at int(size / ratio) pixels."""
    return T.resize(image, int(size / ratio), _BICUBIC)


def standard_view(image: Image.Image, size: int, crop_ratio: float = CROP_RATIO) -> Image.Image:
    """Resized so that the crop takes `crop_ratio` of the shorter side, and cut from the centre: (size, size)."""
    return T.center_crop(_resized(image, size, crop_ratio), size)


def scaled_view(image: Image.Image, size: int, ratio: float) -> Image.Image:
    """The centre at another scale: large ratios show more, in black where the image ends."""
    return T.center_crop(_resized(image, size, ratio), size)


def rotated_view(
    image: Image.Image, size: int, degrees: float, *, before_crop: bool, crop_ratio: float = CROP_RATIO
) -> Image.Image:
    """Turned counter-clockwise, with black corners; before the crop the corners mostly fall outside it."""
    if before_crop:
        return T.center_crop(T.rotate(_resized(image, size, crop_ratio), degrees, _BICUBIC), size)
    return T.rotate(standard_view(image, size, crop_ratio), degrees, _BICUBIC)


def shifted_view(
    image: Image.Image,
    size: int,
    pixels: int,
    direction: int,
    *,
    published: bool = True,
    crop_ratio: float = CROP_RATIO,
) -> Image.Image:
    """The crop moved by `pixels` along `DIRECTIONS[direction]`.

    Args:
        image: any size.
        size: side of the crop.
        pixels: how far the crop moves in the resized image.
        direction: index into `DIRECTIONS`.
        published: centre what is left of the crop where it leaves the image, so that beyond the margin the content
            stays; otherwise the content moves by the full distance and black comes in from one side.
        crop_ratio: share of the shorter side that an unmoved crop takes.
    """
    resized = _resized(image, size, crop_ratio)
    down, right = DIRECTIONS[direction]
    top = (resized.height - size) // 2 + down * pixels
    left = (resized.width - size) // 2 + right * pixels
    if not published:
        return T.crop(resized, top, left, size, size)  # black outside the image
    box = (max(left, 0), max(top, 0), min(left + size, resized.width), min(top + size, resized.height))
    if box[0] >= box[2] or box[1] >= box[3]:
        return Image.new(image.mode, (size, size))
    return T.center_crop(resized.crop(box), size)


def soft_cross_entropy(logits: Tensor, standard_logits: Tensor) -> Tensor:
    """Cross entropy (mean over images) of a view's prediction against the standard view's."""
    return -(standard_logits.softmax(1) * F.log_softmax(logits, 1)).sum(1).mean()


def accuracy(logits: Tensor, labels: Tensor, best: int = 1) -> Tensor:
    """Percentage of images whose label is among the `best` highest scores."""
    found = logits.topk(min(best, logits.shape[1]), 1).indices == labels[:, None]
    return 100 * found.any(1).float().mean()


def batch_metrics(standard_logits: Tensor, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Figures of one view of a batch: loss against the standard view, accuracies, and consistency with it, in %.

    Args:
        standard_logits: (N, K) of the standard views.
        logits: (N, K) of the changed views.
        labels: (N,) classes.
    """
    with torch.no_grad():
        return {
            "loss": soft_cross_entropy(logits, standard_logits),
            "acc1": accuracy(logits, labels),
            "acc5": accuracy(logits, labels, 5),
            "consistency": accuracy(logits, standard_logits.argmax(1)),
            "standard_acc1": accuracy(standard_logits, labels),
            "standard_acc5": accuracy(standard_logits, labels, 5),
        }
