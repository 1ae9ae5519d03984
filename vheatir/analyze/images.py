"""Images for `vheatir analyze`: views of a labeled set, images of a folder, or noise."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.transforms import functional as T

from vheatir.backbone.analysis.invariance import Views, standard_view
from vheatir.backbone.classification.dataset import Samples
from vheatir.backbone.classification.readers import check_evaluation_classes, make_reader
from vheatir.backbone.classification.recipe import ClassificationData, check_class_map
from vheatir.backbone.data.pixels import SUFFIXES, ImageError, OfOneChannel, color_statistics, read_pixels
from vheatir.backbone.models.checkpoint_files import stored_classes
from vheatir.backbone.models.pyramid import Pyramid
from vheatir.backbone.training.batches import checked, mixed
from vheatir.backbone.training.dataset_task import check_same_classes
from vheatir.utils.files import files_below, refuse_folder


def _side(model: Pyramid) -> int:
    height, width = model.img_size
    if height != width:
        raise ValueError(f"views are square, but the network is for {height}x{width}; --set img_size=N")
    return height


def _spread(count: int, limit: int | None) -> list[int]:
    """Indices of `limit` of so many images, evenly spread."""
    return np.linspace(0, count - 1, min(count, limit or count)).round().astype(int).tolist()


def view_batches(
    model: Pyramid,
    kind: str,
    data: str,
    *,
    protocol: str,
    reader: str,
    split: str,
    limit: int | None,
    batch: int,
    workers: int,
    seed: int,
    class_map: str | None = None,
    weights: Path | None = None,
) -> tuple[list[float], Iterator[tuple[Tensor, Tensor]]]:
    """Batches of changed views of a labeled set.

    The drawn directions of an image depend on its number and the seed alone.

    Args:
        model: classifier that the views are for.
        kind: of change, of `vheatir.backbone.analysis.invariance.KINDS`.
        data: folder of the data set.
        protocol: of `vheatir.backbone.analysis.invariance.PROTOCOLS`.
        reader: see `vheatir.backbone.classification.readers.make_reader`.
        split: of the data set.
        limit: images, spread over the set; None for all.
        batch: images at once.
        workers: processes that read images.
        seed: of the drawn directions.
        class_map: file with the names of the classes in the order of their numbers; None takes the set's own order.
        weights: the file of the network's weights; where it states classes, those of the set must have their numbers.

    Returns:
        The magnitudes of the change, and batches (views, classes) on the model's device.

    Raises:
        FileNotFoundError, ValueError: the set cannot be read, its reader gives images in a row only, or its classes
            have other numbers than those of the weights.
    """
    statistics = color_statistics(model.pretrained_cfg, _channels(model))
    views = Views(kind, _side(model), statistics["mean"], statistics["std"], protocol)
    described = ClassificationData(data, reader, class_map=class_map)
    with _of_recipes():
        check_class_map(described)
    if described.streamed:
        raise ValueError(
            f"--reader {reader} gives images in a row only; views need any image: take folder, list, zip, tar, "
            "torch/NAME or hfds/NAME"
        )
    found = make_reader(described, split)
    with _of_recipes():
        check_evaluation_classes(found, described, split, model.num_classes)
    samples = Samples(found, views if model.in_chans == 3 else OfOneChannel(views), model.num_classes)
    _check_order(samples.classes, weights)
    keys = [(index, mixed(seed, index)) for index in _spread(len(samples), limit)]
    loader = DataLoader(samples, batch, sampler=keys, num_workers=workers, collate_fn=samples.collate)
    device = next(model.parameters()).device
    return views.magnitudes, ((images.to(device), classes.to(device)) for images, classes in checked(loader))


@contextmanager
def _of_recipes() -> Iterator[None]:
    """Say what stands for a key of recipes that an error names."""
    try:
        yield
    except ValueError as error:
        if "data.class_map" not in str(error):
            raise
        raise ValueError(f"{error}; here --class-map is data.class_map, and there is no val.subset") from error


def _check_order(classes: Sequence[str] | None, weights: Path | None) -> None:
    stored = [] if weights is None else stored_classes(weights)
    if not stored or not classes:
        return
    try:
        check_same_classes(stored, classes, str(weights))
    except ValueError as error:
        raise ValueError(f"{error}; list the classes in the order of the weights in a file for --class-map") from error


def image_batches(model: Pyramid, folder: Path | None, limit: int, batch: int, seed: int) -> Iterator[Tensor]:
    """Batches (B, C, H, W) of images in standard views, or of noise, on the model's device.

    Args:
        model: whose size and statistics the views have.
        folder: of images, searched recursively; None for normal noise.
        limit: images, spread over the folder.
        batch: images at once.
        seed: of the noise.
    """
    device = next(model.parameters()).device
    size = _side(model)
    if folder is None:
        generator = torch.Generator().manual_seed(seed)
        for start in range(0, limit, batch):
            count = min(batch, limit - start)
            yield torch.randn(count, model.in_chans, size, size, generator=generator).to(device)
        return
    files = files_below(folder, onerror=refuse_folder)  # follows links, and leaves hidden files out, as elsewhere
    paths = sorted(path for path in files if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise ValueError(f"{folder} holds no images ({', '.join(SUFFIXES)})")
    paths = [paths[index] for index in _spread(len(paths), limit)]
    for start in range(0, len(paths), batch):
        yield torch.stack([_image(path, size, model) for path in paths[start : start + batch]]).to(device)


def _channels(model: Pyramid) -> int:
    if model.in_chans not in (1, 3):
        raise ValueError(f"images have 3 channels, or 1 of gray, but the network takes {model.in_chans}")
    return model.in_chans


def _image(path: Path, size: int, model: Pyramid) -> Tensor:
    statistics = color_statistics(model.pretrained_cfg, _channels(model))
    try:
        view = standard_view(read_pixels(path, gray=model.in_chans == 1).convert("RGB"), size)
    except ImageError as error:
        raise ValueError(f"{path}: {error}") from error
    normalized = T.normalize(T.to_tensor(view), list(statistics["mean"]), list(statistics["std"]))
    return normalized[: model.in_chans]
