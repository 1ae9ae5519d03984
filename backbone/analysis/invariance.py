"""Robustness of a classifier to shifts, rotations and scaling: transformed views, metrics of a batch and of a set.

Source: the evaluation of arXiv 2211.05781. The published protocol draws one of seven directions for a shift and centers
what is left of a crop that leaves the image, so that large shifts do not shift; the exact one draws from all eight and
moves the content by the full distance.
"""

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as T

# pyright: reportArgumentType=false, reportReturnType=false
# torchvision annotates its functions with tensors alone; they take PIL images too, and give them back.

CROP_RATIO = 0.875
# Rows down and columns right, by direction; the published evaluation never draws the last.
DIRECTIONS = ((1, 0), (0, 1), (-1, 0), (0, -1), (1, 1), (-1, 1), (-1, -1), (1, -1))
PUBLISHED_DIRECTIONS = 7
PROTOCOLS = ("exact", "published")
KINDS = ("translation", "pre_rotation", "post_rotation", "scale")
_BICUBIC = InterpolationMode.BICUBIC


def _resized(image: Image.Image, size: int, ratio: float) -> Image.Image:
    """The shorter side at int(size / ratio) pixels."""
    return T.resize(image, int(size / ratio), _BICUBIC)


def standard_view(image: Image.Image, size: int, crop_ratio: float = CROP_RATIO) -> Image.Image:
    """Resized so that the crop takes `crop_ratio` of the shorter side, and cut from the center: (size, size).

    Args:
        image: of any size and mode.
        size: side of the result in pixels.
        crop_ratio: share of the shorter side that the crop takes, above 0, at most 1.
    """
    return T.center_crop(_resized(image, size, crop_ratio), size)


def scaled_view(image: Image.Image, size: int, ratio: float) -> Image.Image:
    """The center at another scale: large ratios show more, in black where the image ends.

    Args:
        image: of any size and mode.
        size: side of the result in pixels.
        ratio: of the crop to the image, above 0.
    """
    return T.center_crop(_resized(image, size, ratio), size)


def rotated_view(
    image: Image.Image, size: int, degrees: float, *, before_crop: bool, crop_ratio: float = CROP_RATIO
) -> Image.Image:
    """Turned counter-clockwise, with black corners; before the crop the corners mostly fall outside it.

    Args:
        image: of any size and mode.
        size: side of the result in pixels.
        degrees: angle, counter-clockwise.
        before_crop: turn the whole image; otherwise the view of it.
        crop_ratio: see `standard_view`.
    """
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
        published: center what is left of the crop where it leaves the image, so that beyond the margin the content
            stays; otherwise the content moves by the full distance and black comes in from one side.
        crop_ratio: share of the shorter side that an unmoved crop takes.
    """
    resized = _resized(image, size, crop_ratio)
    down, right = (step * pixels for step in DIRECTIONS[direction])
    if not published:  # black outside the image; a shift of 0 is the standard view, which rounds the margin
        top, left = (round((side - size) / 2) for side in (resized.height, resized.width))
        return T.crop(resized, top + down, left + right, size, size)
    top = (resized.height - size) // 2 + down
    left = (resized.width - size) // 2 + right
    box = (max(left, 0), max(top, 0), min(left + size, resized.width), min(top + size, resized.height))
    if box[0] >= box[2] or box[1] >= box[3]:
        return Image.new(image.mode, (size, size))
    return T.center_crop(resized.crop(box), size)


def soft_cross_entropy(logits: Tensor, standard_logits: Tensor) -> Tensor:
    """Cross entropy (mean over images) of a view's prediction against the standard view's."""
    return -(standard_logits.softmax(1) * F.log_softmax(logits, 1)).sum(1).mean()


def accuracy(logits: Tensor, labels: Tensor, best: int = 1) -> Tensor:
    """Percentage of images whose label is among the `best` highest scores.

    Args:
        logits: (N, classes).
        labels: (N,) classes from 0 on.
        best: how many of the highest scores count.
    """
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


def magnitudes_of(kind: str, size: int, protocol: str = "exact") -> list[float]:
    """The magnitudes at which a kind of change is evaluated: pixels, degrees, or ratio of the crop to the image.

    Shifts are the published 0, 4, ..., 64 pixels of a crop of 224, in the exact protocol in proportion to `size`.

    Args:
        kind: one of `KINDS`.
        size: side of the crop in pixels.
        protocol: one of `PROTOCOLS`.

    Raises:
        ValueError: unknown kind or protocol.
    """
    if kind not in KINDS or protocol not in PROTOCOLS:
        raise ValueError(
            f"expected one of {', '.join(KINDS)} by {' or '.join(PROTOCOLS)}, got {kind!r} by {protocol!r}"
        )
    if kind == "translation":
        shifts = range(0, 65, 4)
        return list(shifts) if protocol == "published" else sorted({round(one * size / 224) for one in shifts})
    return [0.2 + 0.125 * step for step in range(15)] if kind == "scale" else list(range(0, 91, 5))


class Views:
    """An image to its standard view and those of all magnitudes: (1 + magnitudes, 3, size, size), normalized.

    The direction of each shift is drawn from torch's generator for the CPU.

    Args:
        kind: see `magnitudes_of`.
        size: side of a view in pixels.
        mean, std: of the three channels, for values in [0, 1].
        protocol: one of `PROTOCOLS`.
    """

    def __init__(self, kind: str, size: int, mean: Sequence[float], std: Sequence[float], protocol: str = "exact"):
        self.kind = kind
        self.size = size
        self.mean = list(mean)
        self.std = list(std)
        self.protocol = protocol
        self.magnitudes = magnitudes_of(kind, size, protocol)

    def _view(self, image: Image.Image, magnitude: float) -> Image.Image:
        if self.kind == "scale":
            return scaled_view(image, self.size, magnitude)
        if self.kind == "translation":
            published = self.protocol == "published"
            directions = PUBLISHED_DIRECTIONS if published else len(DIRECTIONS)
            drawn = torch.randint(directions, (), device="cpu").item()
            return shifted_view(image, self.size, int(magnitude), drawn, published=published)
        return rotated_view(image, self.size, magnitude, before_crop=self.kind == "pre_rotation")

    def __call__(self, image: Image.Image) -> Tensor:
        views = [standard_view(image, self.size), *(self._view(image, magnitude) for magnitude in self.magnitudes)]
        return torch.stack([T.normalize(T.to_tensor(view), self.mean, self.std) for view in views])


def evaluate_views(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> dict[str, list[float]]:
    """Means over all images, one for each magnitude, of `batch_metrics`, and the number of `images`.

    Args:
        model: a classifier in eval mode.
        batches: views (N, 1 + magnitudes, 3, H, W) as from `Views`, and classes (N,), on the model's device.
    """
    sums: dict[str, Tensor] = {}
    images = 0
    with torch.no_grad():
        for views, labels in batches:
            standard = model(views[:, 0]).float()
            each = [batch_metrics(standard, model(views[:, n]).float(), labels) for n in range(1, views.shape[1])]
            images += len(labels)
            for name in each[0]:
                total = torch.stack([one[name] for one in each]).double().cpu() * len(labels)
                sums[name] = sums.get(name, 0) + total
    if not images:
        raise ValueError("no images to evaluate a network on")
    return {**{name: (total / images).tolist() for name, total in sums.items()}, "images": images}
