"""Pictures and label maps of a folder, found and checked; what is wrong is noted by file and rule."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vheatir.backbone.dense.image_files import SUFFIXES, Problem, read_labels, size_problem
from vheatir.backbone.segmentation.recipe import Data
from vheatir.backbone.training.batches import DataError

IGNORED, _UNKNOWN = 255, 254
_SPLITS = {"ade20k": ("training", "validation"), "cityscapes": ("train", "val"), "folders": ("train", "val")}
_FOLDERS = {
    "ade20k": ("images", "annotations"),
    "cityscapes": ("leftImg8bit", "gtFine"),
    "folders": ("images", "labels"),
}
# Numbers of Cityscapes' label maps that are classes 0 to 18; all others mean none.
_CITYSCAPES = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)


@dataclass(frozen=True)
class Pair:
    """A picture and its label map."""

    image: Path
    labels: Path


def class_numbers(data: Data) -> Tensor:
    """(256,) uint8: for each number in a file the class from 0 on, 255 for none, 254 for a number that is not known."""
    table = torch.full((256,), _UNKNOWN, dtype=torch.uint8)
    classes = torch.arange(data.num_classes, dtype=torch.uint8)
    if data.layout == "ade20k":
        table[0] = IGNORED
        table[1 : data.num_classes + 1] = classes
    elif data.layout == "cityscapes":
        table[:34] = IGNORED
        table[list(_CITYSCAPES)] = torch.arange(len(_CITYSCAPES), dtype=torch.uint8)
    else:
        table[: data.num_classes] = classes
    table[[IGNORED, *(data.ignore or ())]] = IGNORED
    return table


def _label_file(layout: str, image: Path, images: Path, labels: Path) -> Path:
    place = labels / image.relative_to(images).parent
    if layout == "cityscapes":
        return place / f"{image.stem.removesuffix('_leftImg8bit')}_gtFine_labelIds.png"
    return place / f"{image.stem}.png"


def find_pairs(data: Data, training: bool) -> tuple[list[Pair], list[Problem]]:
    """The pictures of a split with their label maps, checked.

    Every label map is read: sizes must agree, and numbers be known.

    Raises:
        FileNotFoundError, ValueError: a folder is missing or holds no pictures. Broken rules are returned.
    """
    root, split = Path(data.root), data.train if training else data.val
    split = split or _SPLITS[data.layout][0 if training else 1]
    images, labels = (root / name / split for name in _FOLDERS[data.layout])
    for folder in (images, labels):
        if not folder.is_dir():
            wanted = " and ".join(f"{name}/{split}" for name in _FOLDERS[data.layout])
            raise FileNotFoundError(f"{folder}: no such folder; data.layout {data.layout} needs {wanted} in {root}")
    files = sorted(path for path in images.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not files:
        raise ValueError(f"{images}: no pictures ({', '.join(SUFFIXES)})")
    pairs = [Pair(file, _label_file(data.layout, file, images, labels)) for file in files]
    wanted, table = {pair.labels for pair in pairs}, class_numbers(data)
    kept, problems = [], []
    with ThreadPoolExecutor() as pool:
        for pair, problem in zip(pairs, pool.map(lambda one: _problem(one, table), pairs), strict=True):
            if problem is None:
                kept.append(pair)
            else:
                problems.append(problem)
    if data.layout != "cityscapes":  # which has further files beside its label maps
        problems += [Problem(str(path), "a label map without an image") for path in _others(labels, wanted)]
    return kept, problems


def _others(folder: Path, wanted: set[Path]) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*.png")) if path not in wanted)


def _problem(pair: Pair, table: Tensor) -> Problem | None:
    size, problem = size_problem(pair.image)
    if problem is not None:
        return problem
    if not pair.labels.is_file():
        return Problem(str(pair.labels), "the file is missing", f"the label map of {pair.image.name}")
    labels = read_labels(pair.labels)
    if isinstance(labels, DataError):
        return Problem(str(pair.labels), "no label map", str(labels))
    if labels.shape != (size[1], size[0]):
        found = f"{labels.shape[1]}x{labels.shape[0]}, {pair.image.name} is {size[0]}x{size[1]}"
        return Problem(str(pair.labels), "another size than its image", found)
    numbers = torch.unique(labels)
    unknown = numbers[table[numbers.long()] == _UNKNOWN].tolist()
    if unknown:
        return Problem(str(pair.labels), "unknown ids", f"{', '.join(map(str, unknown))}; see data.num_classes, ignore")
    return None
