"""Images for `vheatir analyze`: views of a labelled set, pictures of a folder, or noise."""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.transforms import functional as T

from vheatir.backbone.analysis.invariance import Views, standard_view
from vheatir.backbone.classification.dataset import Samples
from vheatir.backbone.classification.readers import check_evaluation_classes, make_reader
from vheatir.backbone.classification.recipe import Data
from vheatir.backbone.pixels import SUFFIXES, OfOneChannel, PictureError, colour_statistics, read_pixels
from vheatir.backbone.training.batches import checked, mixed


def _side(model: nn.Module) -> int:
    height, width = model.img_size
    if height != width:
        raise ValueError(f"views are square, but the network is for {height}x{width}; --set img_size=N")
    return height


def _spread(count: int, limit: int | None) -> list[int]:
    """Indices of `limit` of so many images, evenly spread."""
    return np.linspace(0, count - 1, min(count, limit or count)).round().astype(int).tolist()


def view_batches(
    model: nn.Module, kind: str, arguments: argparse.Namespace
) -> tuple[list[float], Iterator[tuple[Tensor, Tensor]]]:
    """The levels of a kind of change, and batches of views with their classes, on the device.

    The drawn directions of an image depend on its number and the seed alone.
    """
    statistics = colour_statistics(model.pretrained_cfg, _channels(model))
    views = Views(kind, _side(model), statistics["mean"], statistics["std"], arguments.protocol)
    data = Data(arguments.data, arguments.reader)
    reader = make_reader(data, arguments.split)
    check_evaluation_classes(reader, data, arguments.split, model.num_classes)
    samples = Samples(reader, views if model.in_chans == 3 else OfOneChannel(views), model.num_classes)
    keys = [(index, mixed(arguments.seed, index)) for index in _spread(len(samples), arguments.limit)]
    how = {"sampler": keys, "num_workers": arguments.workers, "collate_fn": samples.collate}
    loader = DataLoader(samples, arguments.batch, **how)
    device = next(model.parameters()).device
    return views.levels, ((batch.to(device), classes.to(device)) for batch, classes in checked(loader))


def image_batches(model: nn.Module, arguments: argparse.Namespace) -> Iterator[Tensor]:
    """Batches (B, C, H, W) of a folder's pictures in standard views, or of noise, on the device."""
    device, size = next(model.parameters()).device, _side(model)
    if arguments.images is None:
        generator = torch.Generator().manual_seed(arguments.seed)
        for start in range(0, arguments.limit, arguments.batch):
            count = min(arguments.batch, arguments.limit - start)
            yield torch.randn(count, model.in_chans, size, size, generator=generator).to(device)
        return
    paths = sorted(path for path in arguments.images.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise ValueError(f"{arguments.images} holds no pictures ({', '.join(SUFFIXES)})")
    paths = [paths[index] for index in _spread(len(paths), arguments.limit)]
    for start in range(0, len(paths), arguments.batch):
        yield torch.stack([_picture(path, size, model) for path in paths[start : start + arguments.batch]]).to(device)


def _channels(model: nn.Module) -> int:
    if model.in_chans not in (1, 3):
        raise ValueError(f"pictures have 3 channels, or 1 of gray, but the network takes {model.in_chans}")
    return model.in_chans


def _picture(path: Path, size: int, model: nn.Module) -> Tensor:
    statistics = colour_statistics(model.pretrained_cfg, _channels(model))
    try:
        view = standard_view(read_pixels(path, gray=model.in_chans == 1).convert("RGB"), size)
    except PictureError as error:
        raise ValueError(f"{path}: {error}") from error
    return T.normalize(T.to_tensor(view), **statistics)[: model.in_chans]
