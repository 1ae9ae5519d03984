"""Training and evaluation of classifiers: network, samples and loss of a recipe, and what a network scores."""

import logging
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
import torch.nn.functional as F
from timm.data import Mixup
from timm.data.readers.reader import Reader
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import Tensor, nn

from vheatir.backbone.classification.dataset import Samples, train_transform, val_transform
from vheatir.backbone.classification.readers import (
    TorchvisionReader,
    check_classes,
    check_evaluation_classes,
    make_reader,
)
from vheatir.backbone.classification.recipe import ClassificationRecipe
from vheatir.backbone.classification.streams import Stream
from vheatir.backbone.classification.subset import PlacedSubset, Subset
from vheatir.backbone.data.pixels import OfOneChannel, color_statistics
from vheatir.backbone.dense.image_files import report_problems, undecodable
from vheatir.backbone.layers.freezing import frozen
from vheatir.backbone.models.checkpoint import LoadReport, load_checkpoint, read_state, without_prefix
from vheatir.backbone.models.create import UNBUILDABLE, create_model, said_by
from vheatir.backbone.models.pyramid import Pyramid, image_size
from vheatir.backbone.training.batches import EpochPlan, checked, val_loader
from vheatir.backbone.training.dataset_task import DatasetTask
from vheatir.backbone.training.processes import Processes
from vheatir.backbone.training.task import to_device
from vheatir.backbone.training.until import Epochs

_log = logging.getLogger(__name__)


def build_classifier(recipe: ClassificationRecipe) -> nn.Module:
    """The network of a recipe, with fresh weights.

    Raises:
        ValueError: an unknown name or argument.
    """
    arguments = dict(recipe.model)
    name = arguments.pop("name")
    checkpointing = arguments.pop("grad_checkpointing", False)
    try:
        model = create_model(name, **arguments)
        if checkpointing:
            model.set_grad_checkpointing(True)
    except UNBUILDABLE as error:
        raise ValueError(f"model: {name} cannot be built from {recipe.model}: {said_by(error)}") from error
    if model_channels(model) not in (1, 3):
        raise ValueError(f"model.in_chans must be 3 for RGB or 1 for gray images, got {model_channels(model)}")
    if not getattr(model, "num_classes", 0) > 0:
        raise ValueError(f"model.num_classes must be above 0 for a classifier, got {model.num_classes}")
    return model


def model_channels(model: nn.Module) -> int:
    """Channels of the images that a network takes."""
    channels = getattr(model, "in_chans", None)
    return channels or next(one for one in model.parameters() if one.ndim == 4).shape[1]


def load_weights(
    model: nn.Module, path: str | Path, weights: str = "model", embeddings: str = "relative"
) -> LoadReport:
    """Weights of a file for a backbone of this package, or, exactly as they are, for another network of timm.

    Args:
        model: the network, changed in place.
        path: a checkpoint.
        weights: which weights of the file, such as "model" or "model_ema".
        embeddings: how position tables are resized, see `load_checkpoint`.

    Raises:
        FileNotFoundError, ValueError: no such file, or it does not fit.
    """
    if isinstance(model, Pyramid):
        return load_checkpoint(model, path, weights=weights, embeddings=embeddings)
    state, report = read_state(path, weights)
    state = without_prefix(state, model.state_dict(), report, weights)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit {type(model).__name__}: {error}") from error
    report.loaded = len(state)
    return report


def model_data(recipe: ClassificationRecipe, model: nn.Module) -> dict:
    """Image size, mean and standard deviation that the network's default configuration or the recipe states."""
    config = cast(Mapping[str, Any], model.pretrained_cfg)
    size = image_size(recipe.model.get("img_size") or config["input_size"][1:])
    return {"size": size, **color_statistics(config, model_channels(model))}


def make_samples(
    recipe: ClassificationRecipe, model: nn.Module, training: bool, rank: int = 0, world: int = 1
) -> Samples | Stream:
    """The training or the evaluation set.

    Args:
        recipe: the recipe.
        model: the network, for image size, channels and number of classes.
        training: the training set, else the evaluation set.
        rank: of this process.
        world: how many processes there are.

    Raises:
        FileNotFoundError, ValueError: data that are missing or have more classes than the model.
    """
    split = recipe.data.train if training else recipe.data.val
    make: Any = train_transform if training else val_transform
    num_classes = cast(int, model.num_classes)
    transform = make(recipe.augment if training else recipe.val, **model_data(recipe, model))
    if model_channels(model) == 1:
        transform = OfOneChannel(transform)
    mapped = not training and recipe.val.subset
    if recipe.data.streamed:
        if mapped:
            raise ValueError(
                f"val.subset maps folders to classes; it needs data.reader folder, not {recipe.data.reader}"
            )
        return Stream(recipe.data, split, transform, num_classes)
    reader: Any = make_reader(recipe.data, split, rank, world, own_numbers=bool(mapped))
    if mapped:
        return Samples(reader, transform, len(Subset.read(recipe.val.subset, reader)))
    if training:
        check_classes(reader, split, num_classes)
        held = len(getattr(reader, "class_to_idx", None) or range(num_classes))
        if held < num_classes:
            _log.warning("%s has %d classes, the model %d (model.num_classes)", split, held, num_classes)
        if num_classes > 1 and len(set(getattr(reader, "class_to_idx", "ab"))) == 1:
            (name,) = reader.class_to_idx
            raise ValueError(f"{split}: all images are of one class, {name!r}; expected {split}/CLASS/image")
    else:
        check_evaluation_classes(reader, recipe.data, split, num_classes)
    return Samples(reader, transform, num_classes)


def check_images(samples: Samples | Stream, rank: int, world: int) -> None:
    """Decode this process's share of a set of files, so that a broken one shows before a run and not after an epoch.

    Sets that give images in a row, or decoded ones, are passed over.

    Args:
        samples: the set.
        rank: of this process.
        world: how many processes there are.

    Raises:
        DataError: images that cannot be read; names the first of them, and counts all.
    """
    if isinstance(samples, Stream) or isinstance(samples.reader, TorchvisionReader):
        return
    reader = samples.reader
    files = (
        (reader.filename(index, absolute=True), partial(_content, reader, index))
        for index in range(rank, len(reader), world)
    )
    report_problems(undecodable(files), "refuse", advice="")


def _content(reader: Reader, index: int) -> BinaryIO:
    return reader[index][0]


def make_plan(recipe: ClassificationRecipe, size: int, rank: int, world: int) -> EpochPlan:
    """The order of the training images.

    Args:
        recipe: the recipe.
        size: images of the training set.
        rank: of this process.
        world: how many processes there are.
    """
    data = recipe.data
    train = recipe.train
    parted = data.cache == "part"
    how = {"seed": recipe.manual_seed, "repeats": recipe.augment.repeats, "parted": parted}
    return EpochPlan(size, data.batch_size, train.accumulate, rank, world, **how)


def make_until(recipe: ClassificationRecipe, plan: EpochPlan) -> Epochs:
    """The length of a run."""
    return Epochs(recipe.train.epochs, plan.steps_per_epoch, recipe.val.every, recipe.logger.save_freq)


class Classification(DatasetTask):
    """The task for the loop: mixing and loss of a batch, scores on the evaluation set.

    Args:
        recipe: of the run.
        num_classes: of the network.
        samples: the evaluation set.
        processes: those that train, or evaluate, together.
        device: of the network.

    Raises:
        FileNotFoundError, ValueError: `val.subset` names a file that is none, or classes that the network lacks.
    """

    best = "top1"
    weights_key = "path.finetune"

    def __init__(
        self,
        recipe: ClassificationRecipe,
        num_classes: int,
        samples: Samples | Stream,
        processes: Processes,
        device: torch.device,
    ):
        super().__init__(processes, device)
        augment = recipe.augment
        self.recipe = recipe
        self.samples = samples
        self.subset = None
        if recipe.val.subset:
            assert isinstance(samples, Samples)  # streams have no folders to map
            subset = Subset.read(recipe.val.subset, samples.reader)
            self.subset = subset.to(device, num_classes, recipe.val.subset_only)
        self.mix = None
        if augment.mixup > 0 or augment.cutmix > 0 or augment.cutmix_minmax is not None:
            self.mix = Mixup(
                augment.mixup,
                augment.cutmix,
                augment.cutmix_minmax,
                augment.mix_prob,
                augment.mix_switch,
                augment.mix_mode,
                label_smoothing=augment.smoothing,
                num_classes=num_classes,
            )
        smooth = LabelSmoothingCrossEntropy(augment.smoothing) if augment.smoothing else nn.CrossEntropyLoss()
        self.criterion = SoftTargetCrossEntropy() if self.mix else smooth
        self._loader: Iterable | None = None

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss, and the share in percent of images whose (heavier) class comes first."""
        images, targets = batch
        if self.mix is not None:
            images, targets = self.mix(images, targets)
        scores = model(images)
        heavier = targets.argmax(1) if targets.ndim == 2 else targets
        return self.criterion(scores.float(), targets), {"top1": 100 * (scores.argmax(1) == heavier).float().mean()}

    def class_names(self) -> list[str] | None:
        return getattr(self.training_set, "classes", None)

    def loader(self) -> Iterable:
        """This process's part of the evaluation set."""
        if self._loader is None:
            data = self.recipe.data
            batch = self.recipe.data.val_batch_size or self.recipe.data.batch_size
            where = (self.processes.rank, self.processes.world)
            pin = self.device.type == "cuda"
            self._loader = val_loader(self.samples, batch, *where, data.workers, pin)
        return self._loader

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Top-1 and top-5 in percent and mean loss over the evaluation set; no autocast.

        Sets of a subset of the classes are scored through `val.subset`; see `Subset`.
        """
        device = self.device
        sums = torch.zeros(4, dtype=torch.float64, device=device)
        with frozen(model), torch.no_grad():
            for batch in checked(self.loader()):
                images, targets = to_device(batch, device)
                sums += scored(model(images).float(), targets, self.subset)
        top1, top5, loss, count = self.processes.sum_(sums).tolist()
        return {"top1": 100 * top1 / count, "top5": 100 * top5 / count, "loss": loss / count, "images": count}


def scored(scores: Tensor, targets: Tensor, subset: PlacedSubset | None = None) -> Tensor:
    """Sums over a batch: right at first place, among the first five, loss, images.

    Args:
        scores: (N, classes).
        targets: (N,) classes; with `subset`, folders of the set.
        subset: the mapping of a set that has other classes than the network.
    """
    if subset is None:
        log_p = scores.log_softmax(1)
        accepted = F.one_hot(targets, scores.shape[1]).bool()
    else:
        log_p, accepted = subset.score(scores, targets)
    ranked = log_p.topk(min(5, log_p.shape[1]), 1).indices
    right = accepted.gather(1, ranked)
    loss = -log_p.masked_fill(~accepted, float("-inf")).logsumexp(1)
    count = torch.tensor(float(len(scores)), device=scores.device)
    return torch.stack([right[:, 0].sum().double(), right.any(1).sum().double(), loss.sum().double(), count.double()])
