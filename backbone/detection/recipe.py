"""What a detection recipe may say: sections of typed keys with defaults; anything else is refused by name."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from vheatir.backbone.dense.recipe import DenseRun, check_together
from vheatir.backbone.training.schema import (
    AllPositive,
    Different,
    NotEmpty,
    NotNegative,
    Positive,
    Share,
    fill,
    one_of,
)

FORMATS = ("coco", "voc")


@dataclass
class DetectionData:
    """Where images and objects are.

    Attributes:
        root: folder of the data set.
        format: "coco" (a JSON file for each split) or "voc" (Annotations/, ImageSets/Main/<split>.txt, JPEGImages/).
        train, val: JSON files below `root`, or names of VOC's lists.
        train_images, val_images: folders of the images below `root`; for "coco".
        num_classes: how many there are; None leaves it to `classes` or to the data.
        classes: names, in the order of their numbers; None takes those of the JSON file, or all in the XML files.
        invalid: "refuse" data that break a rule, or "skip" what breaks it.
        batch_size: images of each process in a forward pass.
        workers: loader processes of each process.
    """

    root: str
    format: Annotated[str, one_of(*FORMATS)] = "coco"
    train: str = "annotations/instances_train2017.json"
    val: str = "annotations/instances_val2017.json"
    train_images: str = "train2017"
    val_images: str = "val2017"
    num_classes: Annotated[int | None, Positive] = None
    classes: Annotated[tuple[str, ...] | None, NotEmpty, Different] = None
    invalid: Annotated[str, one_of("refuse", "skip")] = "refuse"
    batch_size: Annotated[int, Positive] = 2
    workers: Annotated[int, NotNegative] = 4


@dataclass
class Detector:
    """Heads on the backbone, and the size of images in evaluation.

    Attributes:
        masks: Mask R-CNN; without, Faster R-CNN.
        channels: of the feature pyramid.
        anchors: side in pixels of the anchors of each of the five maps of the pyramid, at three aspect ratios.
        short_side, long_side: images are resized to the first, unless the other side exceeds the second.
        proposals: boxes that the first part hands on in training and in evaluation.
        proposals_nms: overlap above which proposals are dropped.
        box_samples: boxes of each image that the second part learns from.
        score, nms, detections: least score, overlap of one class, and number of boxes that come out.
    """

    masks: bool = True
    channels: Annotated[int, Positive] = 256
    anchors: Annotated[tuple[int, int, int, int, int], AllPositive] = (32, 64, 128, 256, 512)
    short_side: Annotated[int, Positive] = 800
    long_side: Annotated[int, Positive] = 1333
    proposals: Annotated[tuple[int, int], AllPositive] = (1000, 1000)
    proposals_nms: Annotated[float, Share] = 0.7
    box_samples: Annotated[int, Positive] = 512
    score: Annotated[float, Share] = 0.05
    nms: Annotated[float, Share] = 0.5
    detections: Annotated[int, Positive] = 100


@dataclass
class DetectionAugment:
    """Training views.

    Attributes:
        short_sides: one is drawn for each image.
        long_side: most that the other side may have.
        crop: half of the images are resized to 400, 500 or 600, cropped to 384 to 600 pixels each way, and resized.
        hflip: probability.
    """

    short_sides: Annotated[tuple[int, ...], AllPositive] = (800,)
    long_side: Annotated[int, Positive] = 1333
    crop: bool = False
    hflip: Annotated[float, Share] = 0.5


@dataclass
class DetectionVal:
    """Evaluation: every so many epochs, or steps where training is counted in steps."""

    every: Annotated[int, Positive] = 1


@dataclass(kw_only=True)
class DetectionRecipe(DenseRun):
    """A detection run."""

    data: DetectionData
    detector: Detector = field(default_factory=Detector)
    augment: DetectionAugment = field(default_factory=DetectionAugment)
    val: DetectionVal = field(default_factory=DetectionVal)


def read_recipe(options: Mapping) -> DetectionRecipe:
    """The recipe that a table of options states.

    Raises:
        ValueError: a key that nobody reads, a wrong type or value, or a key that is missing; named as section.key.
    """
    recipe = fill(DetectionRecipe, options)
    check_together(recipe)
    if recipe.data.format == "voc" and recipe.detector.masks:
        raise ValueError("detector.masks: VOC's XML files hold boxes alone; set it to false, or take data.format coco")
    data = recipe.data
    if data.classes is not None and data.num_classes not in (None, len(data.classes)):
        raise ValueError(f"data.classes names {len(data.classes)} classes, data.num_classes is {data.num_classes}")
    return recipe
