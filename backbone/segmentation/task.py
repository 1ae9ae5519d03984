"""The task of segmentation for the loop: losses of a batch, prediction by windows, scores on the evaluation set."""

import functools
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from vheatir.backbone.layers.freezing import frozen
from vheatir.backbone.segmentation.dataset import LabelledImages, scaled_size
from vheatir.backbone.segmentation.label_maps import IGNORED
from vheatir.backbone.segmentation.recipe import SegmentationRecipe, SegmentationVal
from vheatir.backbone.training.batches import checked, val_loader
from vheatir.backbone.training.dataset_task import DatasetTask
from vheatir.backbone.training.processes import Processes
from vheatir.backbone.training.task import to_device

_MOST_AT_ONCE = 2**25  # scores at the size of an image


def pixel_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of (B, K, H, W) scores, the mean over all pixels that have a class; 0 where none has."""
    total = F.cross_entropy(scores, labels, ignore_index=IGNORED, reduction="sum")
    return total / (labels != IGNORED).sum().clamp(min=1)


def _starts(length: int, crop: int, stride: int) -> list[int]:
    """Where windows begin; the last one ends with the image."""
    last = max(length - crop, 0)
    return [*range(0, last, stride), last]


def window_scores(model: nn.Module, image: Tensor, crop: int, stride: int) -> Tensor:
    """Scores (1, K, H, W) of an image (1, 3, H, W): the mean over all windows that a pixel is in.

    Args:
        model: the network, (1, 3, h, w) to (1, K, h, w).
        image: (1, 3, H, W), in [0, 1].
        crop: side of a window in pixels.
        stride: pixels from window to window.
    """
    height, width = image.shape[2:]
    total = None
    count = image.new_zeros(1, 1, height, width)
    for top in _starts(height, crop, stride):
        for left in _starts(width, crop, stride):
            part = (..., slice(top, top + crop), slice(left, left + crop))
            scores = model(image[part])
            total = image.new_zeros(1, scores.shape[1], height, width) if total is None else total
            total[part] += scores
            count[part] += 1
    assert total is not None  # there is at least one window
    return total / count


def _view_scores(model: nn.Module, image: Tensor, val: SegmentationVal, tta: bool) -> Iterator[Tensor]:
    """Scores (K, h, w) of each view of an image, at the size of `val.scale` times its ratio, mirrored back.

    Args:
        model: the network.
        image: (3, H, W), in [0, 1].
        val: the recipe's section.
        tta: views of several sizes, and mirrored ones.
    """
    flips = (False, True) if tta and val.flip else (False,)
    for ratio in val.ratios if tta else (1.0,):
        small = list(scaled_size(*image.shape[1:], [side * ratio for side in val.scale]))
        resized = F.interpolate(image[None], size=small, mode="bilinear", antialias=True)
        for flip in flips:
            view = resized.flip(3) if flip else resized
            scores = window_scores(model, view, val.crop, val.stride) if val.mode == "slide" else model(view)
            yield (scores.flip(3) if flip else scores)[0]


def _enlarged(scores: Tensor, size: tuple[int, int]) -> Iterator[tuple[int, Tensor]]:
    """Scores (K, h, w) brought to a size: the number of the first class, and (k, H, W) of some classes.

    All classes of a photograph at once would fill the memory: 7 GB for 150 classes and 12 million pixels.

    Args:
        scores: of all classes.
        size: H and W.
    """
    for first, part in _parts(scores, size):
        yield first, F.interpolate(part[None], size=size, mode="bilinear", align_corners=False)[0]


def _parts(scores: Tensor, size: tuple[int, int]) -> list[tuple[int, Tensor]]:
    count = max(1, _MOST_AT_ONCE // (size[0] * size[1]))
    return [(first, scores[first : first + count]) for first in range(0, len(scores), count)]


def predict(model: nn.Module, image: Tensor, val: SegmentationVal, tta: bool = False) -> Tensor:
    """Class probabilities (K, H, W) of an image (3, H, W) in [0, 1]; where the classes alone are asked for, see
    `predicted_classes`.

    The image is resized to `val.scale`, scored by windows or as a whole, and the scores brought back to its size. With
    `tta` the mean over `val.ratios`, each mirrored too with `val.flip`.

    Args:
        model: the network.
        image: (3, H, W).
        val: the recipe's section.
        tta: average sizes and mirrored views.
    """
    size = (image.shape[1], image.shape[2])
    total = None
    views = 0
    for scores in _view_scores(model, image, val, tta):
        views += 1
        total = scores.new_zeros(len(scores), *size) if total is None else total
        norm = functools.reduce(torch.logaddexp, (part.logsumexp(0) for _, part in _enlarged(scores, size)))
        for first, part in _enlarged(scores, size):
            total[first : first + len(part)] += (part - norm).exp_()
    assert total is not None  # there is at least one view
    return total.div_(views)


def predicted_classes(model: nn.Module, image: Tensor, val: SegmentationVal, tta: bool = False) -> Tensor:
    """The most probable class (H, W) of each pixel of an image; see `predict`.

    Args:
        model: the network.
        image: (3, H, W), in [0, 1].
        val: the recipe's section.
        tta: average sizes and mirrored views.
    """
    if tta:
        return predict(model, image, val, tta).argmax(0)
    (scores,) = _view_scores(model, image, val, tta)
    best = found = None
    for first, part in _enlarged(scores, (image.shape[1], image.shape[2])):
        value, index = part.max(0)
        if best is not None and found is not None:
            index = torch.where(value > best, index + first, found)
            value = torch.maximum(best, value)
        best = value
        found = index
    assert found is not None  # there is at least one class
    return found


def confusion(classes: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """(K, K) int64 counts of pixels, rows by label, columns by predicted class; pixels without a class do not count.

    Args:
        classes: (H, W), predicted, from 0 on.
        labels: (H, W); 255 for no class.
        num_classes: K.
    """
    known = labels != IGNORED
    pairs = labels[known] * num_classes + classes[known]
    return torch.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def segmentation_scores(counts: Tensor) -> dict[str, float]:
    """Figures in percent of a confusion matrix.

    `miou`, the mean over the classes of right pixels over all that are of the class or taken for it; `macc`, the mean
    share of right pixels in each class; `aacc`, that in all. Classes that occur neither in the labels nor in the
    predictions do not count; `majority_miou` is the figure of predicting the most frequent class everywhere.
    """
    counts = counts.double().cpu()
    right = counts.diagonal()
    labeled = counts.sum(1)
    predicted = counts.sum(0)
    union = labeled + predicted - right
    present = labeled > 0
    iou = right[union > 0] / union[union > 0]
    return {
        "miou": 100 * iou.mean().item(),
        "macc": 100 * (right[present] / labeled[present]).mean().item(),
        "aacc": 100 * (right.sum() / labeled.sum()).item(),
        "majority_miou": 100 * (labeled.max() / labeled.sum() / present.sum()).item(),
    }


def class_ious(counts: Tensor) -> list[float | None]:
    """Intersection over union of each class in percent; None where it does not occur."""
    counts = counts.double().cpu()
    union = counts.sum(0) + counts.sum(1) - counts.diagonal()
    return [100 * r / u if u else None for r, u in zip(counts.diagonal().tolist(), union.tolist(), strict=True)]


class Segmentation(DatasetTask):
    """Losses of the two heads, and scores on an evaluation set.

    Args:
        recipe: of the run.
        samples: the evaluation set.
        processes: those that train, or evaluate, together.
        device: of the network.
        tta: evaluate with views of several sizes.

    Raises:
        ValueError: the evaluation set is empty.
    """

    best = "miou"
    weights_key = "path.pretrained"

    def __init__(
        self,
        recipe: SegmentationRecipe,
        samples: LabelledImages,
        processes: Processes,
        device: torch.device,
        tta: bool = False,
    ):
        super().__init__(processes, device)
        if not len(samples):
            raise ValueError("the evaluation set has no images left, see the log; name another one in data.val")
        self.recipe = recipe
        self.samples = samples
        self.tta = tta

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of the losses, and each head's; the share in percent of right pixels."""
        images, labels = batch
        scores = model(images)
        losses = {
            name: weight * pixel_loss(one, labels)
            for one, name, weight in zip(scores, ("main", "auxiliary"), (1.0, self.recipe.head.aux_weight))
        }
        known = labels != IGNORED
        right = ((scores[0].argmax(1) == labels) & known).sum() / known.sum().clamp(min=1)
        return sum(losses.values()), {**losses, "aacc": 100 * right}

    def class_names(self) -> list[str] | None:
        return list(self.recipe.data.classes) if self.recipe.data.classes else None

    def loader(self) -> Iterable[Any]:
        """This process's part of the evaluation set, image by image."""
        place = (self.processes.rank, self.processes.world)
        return val_loader(self.samples, 1, *place, self.recipe.data.workers, self.device.type == "cuda")

    def count(self, model: nn.Module) -> Tensor:
        """Confusion matrix over the evaluation set."""
        device = self.device
        classes = self.recipe.data.num_classes
        counts = torch.zeros(classes, classes, dtype=torch.int64, device=device)
        hidden = None if self.processes.writes else True
        with frozen(model), torch.no_grad():
            for batch in tqdm(checked(self.loader()), "evaluation", leave=False, disable=hidden):
                images, labels = to_device(batch, device)
                found = predicted_classes(model, images[0], self.recipe.val, self.tta)
                counts += confusion(found, labels[0], classes)
        return self.processes.sum_(counts)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """See `segmentation_scores`, and the number of `images`."""
        return {**segmentation_scores(self.count(model)), "images": float(len(self.samples))}
