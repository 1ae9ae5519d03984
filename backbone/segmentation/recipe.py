"""What a segmentation recipe may say: sections of typed keys with defaults; anything else is refused by name."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from vheatir.backbone.dense.recipe import DenseRun, check_together
from vheatir.backbone.training.schema import (
    AllPositive,
    Ascending,
    Different,
    NotEmpty,
    NotNegative,
    Positive,
    Share,
    fill,
    one_of,
)

LAYOUTS = ("ade20k", "cityscapes", "folders")
# Numbers of Cityscapes' label maps that are classes 0 to 18; all others mean none.
CITYSCAPES = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)


@dataclass
class SegmentationData:
    """Where images and label maps are.

    Attributes:
        root: folder of the data set.
        layout: "ade20k" (images/training, annotations/training; 0 is unlabeled, classes from 1 on), "cityscapes"
            (leftImg8bit/train/CITY, gtFine/train/CITY) or "folders" (images/train, labels/train; classes from 0 on).
        train, val: names of the splits; None takes the layout's.
        num_classes: classes that are learned.
        classes: their names.
        ignore: further numbers of label maps that mean no class; 255 does unless `label_ids` lists it.
        label_ids: numbers of the classes in the label maps, in the order of the classes; None takes the layout's. For
            masks of 0 and 255: [0, 255].
        invalid: "refuse" data that break a rule, or "skip" the images that do.
        batch_size: images of each process in a forward pass.
        workers: loader processes of each process.
    """

    root: str
    layout: Annotated[str, one_of(*LAYOUTS)] = "folders"
    train: str | None = None
    val: str | None = None
    num_classes: Annotated[int, Positive] = 150
    classes: Annotated[tuple[str, ...] | None, NotEmpty, Different] = None
    ignore: tuple[int, ...] | None = None
    label_ids: tuple[int, ...] | None = None
    invalid: Annotated[str, one_of("refuse", "skip")] = "refuse"
    batch_size: Annotated[int, Positive] = 2
    workers: Annotated[int, NotNegative] = 4


@dataclass
class Head:
    """UPerNet's head and the auxiliary one.

    Attributes:
        channels: of the head.
        pool_scales: sides of the pooled maps.
        dropout: before each head's classifier, of whole channels.
        aux_channels: of the auxiliary head, on the third stage; 0 for none.
        aux_weight: of its loss.
    """

    channels: Annotated[int, Positive] = 512
    pool_scales: Annotated[tuple[int, ...], AllPositive] = (1, 2, 3, 6)
    dropout: Annotated[float, Share] = 0.1
    aux_channels: Annotated[int, NotNegative] = 256
    aux_weight: Annotated[float, NotNegative] = 0.4


@dataclass
class SegmentationAugment:
    """Training views.

    Attributes:
        scale: most that the longer and the shorter side may have; images are brought to it.
        ratio: range of the factor on `scale`.
        crop: side of the crop.
        cat_max: largest share of one class in a crop; another one is tried, up to ten times.
        hflip: probability.
        color: brightness, contrast, saturation and hue, each for half of the images.
    """

    scale: Annotated[tuple[int, int], AllPositive] = (2048, 512)
    ratio: Annotated[tuple[float, float], Ascending] = (0.5, 2.0)
    crop: Annotated[int, Positive] = 512
    cat_max: Annotated[float, Share] = 0.75
    hflip: Annotated[float, Share] = 0.5
    color: bool = True


@dataclass
class SegmentationVal:
    """Evaluation.

    Attributes:
        every: epochs, or steps where training is counted in steps.
        scale: see `SegmentationAugment`.
        mode: "slide" for overlapping windows, whose scores are averaged, or "whole".
        crop, stride: side of the windows and their distance.
        ratios, flip: of `--tta`: factors on `scale`, and each mirrored too.
    """

    every: Annotated[int, Positive] = 1
    scale: Annotated[tuple[int, int], AllPositive] = (2048, 512)
    mode: Annotated[str, one_of("slide", "whole")] = "slide"
    crop: Annotated[int, Positive] = 512
    stride: Annotated[int, Positive] = 341
    ratios: Annotated[tuple[float, ...], AllPositive] = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
    flip: bool = True


@dataclass(kw_only=True)
class SegmentationRecipe(DenseRun):
    """A segmentation run."""

    data: SegmentationData
    head: Head = field(default_factory=Head)
    augment: SegmentationAugment = field(default_factory=SegmentationAugment)
    val: SegmentationVal = field(default_factory=SegmentationVal)


def read_recipe(options: Mapping) -> SegmentationRecipe:
    """The recipe that a table of options states.

    Raises:
        ValueError: a key that nobody reads, a wrong type or value, or a key that is missing; named as section.key.
    """
    recipe = fill(SegmentationRecipe, options)
    check_together(recipe)
    data = recipe.data
    val = recipe.val
    if data.classes is not None and len(data.classes) != data.num_classes:
        raise ValueError(f"data.classes names {len(data.classes)} classes, data.num_classes is {data.num_classes}")
    if data.num_classes > 250:
        raise ValueError(f"data.num_classes must be at most 250: label maps have 8 bits, got {data.num_classes}")
    _check_label_ids(data)
    if data.batch_size < 2:
        raise ValueError("data.batch_size must be at least 2: a batch norm learns nothing from one value a channel")
    if val.stride > val.crop:
        raise ValueError(f"val.stride, {val.stride}, leaves gaps between windows of val.crop, {val.crop}")
    return recipe


def _check_label_ids(data: SegmentationData) -> None:
    ids = data.label_ids
    beyond = [one for one in data.ignore or () if not 0 <= one <= 255]
    if beyond:
        raise ValueError(f"data.ignore must be numbers from 0 to 255, as label maps hold them, got {beyond[0]}")
    if ids is None:
        if data.layout == "cityscapes" and data.num_classes != len(CITYSCAPES):
            raise ValueError(
                f"data.num_classes is {data.num_classes}, but data.layout cityscapes has {len(CITYSCAPES)} classes; "
                "set it to that, or list the numbers of the classes in data.label_ids"
            )
        return
    if len(ids) != data.num_classes or len(set(ids)) != len(ids) or not all(0 <= one <= 255 for one in ids):
        raise ValueError(
            f"data.label_ids must be {data.num_classes} different numbers from 0 to 255, one for each class, got "
            f"{list(ids)}"
        )
    both = sorted(set(ids) & set(data.ignore or ()))
    if both:
        raise ValueError(f"data.label_ids and data.ignore both name {', '.join(map(str, both))}")
