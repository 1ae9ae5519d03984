"""Detections and label maps drawn onto their images."""

import colorsys
from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

_GOLDEN = 0.618034  # step on the color circle that keeps neighbors apart


def palette(count: int) -> list[tuple[int, int, int]]:
    """That many colors, RGB from 0 to 255, each unlike those before it."""
    rounds = ((0.65, 0.95), (0.9, 0.75), (0.45, 1.0))
    colors = (colorsys.hsv_to_rgb(n * _GOLDEN % 1, *rounds[(n + n // 3) % len(rounds)]) for n in range(count))
    return [(round(255 * red), round(255 * green), round(255 * blue)) for red, green, blue in colors]


def draw_detections(image: Tensor, found: dict[str, Tensor], classes: Sequence[str], threshold: float) -> Tensor:
    """An image with its detections: masks, boxes, class and score.

    Args:
        image: (3, H, W) uint8.
        found: what the detector gives for it.
        classes: names of the classes 1, 2, ...
        threshold: least score.

    Returns:
        (3, H, W) uint8.
    """
    kept = found["scores"] >= threshold
    if not kept.any():
        return image.clone()
    colors = palette(len(classes))
    labels = found["labels"][kept].tolist()
    chosen = [colors[label - 1] for label in labels]
    if "masks" in found:
        image = draw_segmentation_masks(image, found["masks"][kept, 0] > 0.5, alpha=0.5, colors=chosen)
    scores = found["scores"][kept].tolist()
    texts = [f"{classes[label - 1]} {score:.2f}" for label, score in zip(labels, scores, strict=True)]
    return draw_bounding_boxes(image, found["boxes"][kept], texts, colors=chosen, width=2)


def draw_classes(image: Tensor, classes: Tensor, num_classes: int, alpha: float = 0.55) -> Tensor:
    """An image (3, H, W) uint8 under the colors of its classes (H, W); numbers beyond `num_classes` stay bare.

    Args:
        image: (3, H, W) uint8 RGB.
        classes: (H, W), numbers from 0 on.
        num_classes: how many colors there are.
        alpha: weight of the colors, from 0 to 1.
    """
    colors = torch.tensor(palette(num_classes) + [(0, 0, 0)] * (256 - num_classes), dtype=torch.float32)
    painted = colors[classes.long()].permute(2, 0, 1)
    share = torch.where(classes < num_classes, alpha, 0.0)
    return (image * (1 - share) + painted * share).round().to(torch.uint8)
