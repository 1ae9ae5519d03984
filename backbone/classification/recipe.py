"""What a classification recipe may say: sections of typed keys with defaults; anything else is refused by name."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from vheatir.backbone.training.schema import (
    Amp,
    Ascending,
    NotNegative,
    Positive,
    RunSection,
    Share,
    below,
    fill,
    one_of,
)

READERS = ("folder", "list", "zip", "tar")
INTERPOLATIONS = ("bicubic", "bilinear", "nearest", "lanczos", "box", "hamming")  # timm's names
PUBLISHED_SCHEDULES = ("vheat", "unified")
STREAMS = ("wds", "tfds", "hfids")  # prefixes of timm's readers that give images in a row


@dataclass
class ClassificationData:
    """Where the images are and how they are read.

    Attributes:
        root: folder of the data set.
        reader: "folder" (a folder for each class), "list" (meta/<split>.txt), "zip" (<split>.zip and <split>_map.txt),
            "tar" (<split>.tar), or a reader of timm, such as "hfds/name", "torch/cifar10" or "wds/name".
        train, val: names of the splits: folders, lists or archives below `root`.
        cache: "none", or "full" and "part" to keep a ZIP's bytes in memory: all in each process, or each its share, of
            which alone it then trains.
        batch_size, val_batch_size: images of each process; the batch of a step is batch_size x processes x accumulate.
        workers: loader processes of each process.
        class_map: file of timm's for "folder": names of the classes in the order of their numbers.
    """

    root: str
    reader: str = "folder"
    train: str = "train"
    val: str = "val"
    cache: Annotated[str, one_of("none", "full", "part")] = "none"
    batch_size: Annotated[int, Positive] = 128
    val_batch_size: Annotated[int | None, Positive] = None
    workers: Annotated[int, NotNegative] = 8
    class_map: str | None = None

    @property
    def streamed(self) -> bool:
        """Whether the reader gives images in a row only."""
        return self.reader.partition("/")[0].lower() in STREAMS


@dataclass
class ClassificationAugment:
    """Training views by timm's transforms, mixing and smoothing; see the recipes for the meaning of each key."""

    crop: Annotated[str, one_of("random_resized", "padded")] = (
        "random_resized"  # or "padded": 4 pixels of zeros around the image, then a crop
    )
    scale: Annotated[tuple[float, float], Ascending] = (0.08, 1.0)
    ratio: Annotated[tuple[float, float], Ascending] = (0.75, 4 / 3)
    hflip: Annotated[float, Share] = 0.5
    vflip: Annotated[float, Share] = 0.0
    color_jitter: Annotated[float, NotNegative] = 0.4
    auto_augment: str | None = "rand-m9-mstd0.5-inc1"
    interpolation: Annotated[str, one_of(*INTERPOLATIONS, "random")] = "bicubic"
    erase: Annotated[float, Share] = 0.25
    erase_mode: Annotated[str, one_of("pixel", "rand", "const")] = "pixel"
    erase_count: Annotated[int, Positive] = 1
    repeats: Annotated[int, Positive] = 1
    mixup: Annotated[float, NotNegative] = 0.8
    cutmix: Annotated[float, NotNegative] = 1.0
    cutmix_minmax: tuple[float, float] | None = None
    mix_prob: Annotated[float, Share] = 1.0
    mix_switch: Annotated[float, Share] = 0.5
    mix_mode: Annotated[str, one_of("batch", "pair", "elem")] = "batch"
    smoothing: Annotated[float, Share] = 0.1


@dataclass
class ClassificationTrain:
    """Length, optimizer, rates and averages.

    `lr`, `warmup_lr` and `min_lr` are for a batch of `lr_for_batch` images and scale with it; None: they hold as they
    are. `scheduler` is "vheat" or "unified" (the published tables), or one of timm's; `scheduler_args` are those of its
    `create_scheduler_v2`, of which `num_epochs`, the length of a cycle, is `epochs` unless they state it.
    """

    epochs: Annotated[int, Positive] = 300
    warmup_epochs: Annotated[int, NotNegative] = 20
    optimizer: str = "adamw"
    lr: Annotated[float, Positive] = 5e-4
    warmup_lr: Annotated[float, NotNegative] = 5e-7
    min_lr: Annotated[float, NotNegative] = 5e-6
    lr_for_batch: Annotated[int | None, Positive] = None
    weight_decay: Annotated[float, NotNegative] = 0.05
    optimizer_args: dict = field(default_factory=dict)
    layer_decay: Annotated[float | None, Positive] = None
    scheduler: str = "unified"
    scheduler_args: dict = field(default_factory=dict)
    accumulate: Annotated[int, Positive] = 1
    grad_clip: Annotated[float | None, Positive] = 5.0
    amp: Annotated[str, Amp] = "auto"
    ema_decay: Annotated[float | None, NotNegative, below(1)] = 0.9999
    ema_warmup: bool = False


@dataclass
class ClassificationVal:
    """Evaluation: every so many epochs, views, and a mapping for sets of a subset of the classes."""

    every: Annotated[int, Positive] = 1
    crop_pct: Annotated[float, Positive] = 0.875
    crop_mode: Annotated[str, one_of("center", "squash", "border")] = "center"
    interpolation: Annotated[str, one_of(*INTERPOLATIONS)] = "bicubic"
    subset: str | None = None
    subset_only: bool = True
    throughput_warmup: Annotated[int, NotNegative] = 50
    throughput_passes: Annotated[int, Positive] = 30


@dataclass
class ClassificationPaths:
    """Where runs are kept, and weights to start from."""

    experiments_root: str = "experiments"
    finetune: str | None = None
    finetune_weights: Annotated[str, one_of("model", "ema")] = "model"
    finetune_embeddings: Annotated[str, one_of("relative", "index")] = "relative"


@dataclass(kw_only=True)
class ClassificationRecipe(RunSection):
    """A classification run. `model` holds `name` and the arguments of `create_model`."""

    model: dict
    data: ClassificationData
    augment: ClassificationAugment = field(default_factory=ClassificationAugment)
    train: ClassificationTrain = field(default_factory=ClassificationTrain)
    val: ClassificationVal = field(default_factory=ClassificationVal)
    path: ClassificationPaths = field(default_factory=ClassificationPaths)


def read_recipe(options: Mapping) -> ClassificationRecipe:
    """The recipe that a table of options states.

    Raises:
        ValueError: a key that nobody reads, a wrong type or value, or a key that is missing; named as section.key.
    """
    recipe = fill(ClassificationRecipe, options)
    if not isinstance(recipe.model.get("name"), str):
        raise ValueError("model.name is missing; for example `name: vheat_tiny`")
    _check_together(recipe)
    return recipe


def check_class_map(data: ClassificationData) -> None:
    """Refuse a class map that the reader would not look at.

    Args:
        data: names the reader.

    Raises:
        ValueError: there is such a map.
    """
    if data.class_map and data.reader in ("list", "zip"):
        raise ValueError(f"data.class_map belongs to data.reader folder; the lists of {data.reader} number the classes")
    if data.class_map and data.reader.lower().startswith("torch/"):
        raise ValueError(f"data.class_map belongs to data.reader folder; {data.reader} numbers its classes itself")


def _check_together(recipe: ClassificationRecipe) -> None:
    data = recipe.data
    augment = recipe.augment
    train = recipe.train
    if data.reader not in READERS and "/" not in data.reader:
        raise ValueError(
            f"data.reader must be one of {', '.join(READERS)}, or a reader of timm with a prefix such as hfds/NAME, "
            f"got {data.reader!r}"
        )
    if data.cache != "none" and data.reader != "zip":
        raise ValueError(f"data.cache {data.cache} keeps a ZIP's bytes in memory, but data.reader is {data.reader}")
    check_class_map(data)
    if data.streamed and augment.repeats > 1:
        raise ValueError(f"augment.repeats {augment.repeats}: data.reader {data.reader} gives each image once only")
    mixing = augment.mixup > 0 or augment.cutmix > 0 or augment.cutmix_minmax is not None
    if mixing and data.batch_size % 2:
        raise ValueError(f"data.batch_size must be even for mixup and cutmix, got {data.batch_size}")
    if train.warmup_epochs > train.epochs:
        raise ValueError(f"train.warmup_epochs is {train.warmup_epochs}, more than train.epochs, {train.epochs}")
    if train.min_lr > train.lr:
        raise ValueError(f"train.min_lr is {train.min_lr:g}, above train.lr, {train.lr:g}: the rate would rise")
    if train.scheduler_args and train.scheduler in PUBLISHED_SCHEDULES:
        raise ValueError(
            f"train.scheduler_args belongs to timm's schedules; {train.scheduler} goes by epochs, warmup_epochs, lr, "
            f"warmup_lr and min_lr, got {train.scheduler_args}"
        )
    minmax = augment.cutmix_minmax
    if minmax is not None and not 0 <= minmax[0] < minmax[1] <= 1:
        raise ValueError(f"augment.cutmix_minmax must be two shares, the smaller one first, got {list(minmax)}")
