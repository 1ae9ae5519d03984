"""Images and label maps of a folder, found and checked; what is wrong is noted by file and rule."""

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from vheatir.backbone.data.folders import files_below
from vheatir.backbone.data.pixels import SUFFIXES, sizes
from vheatir.backbone.dense.image_files import OTHER_SIZE, Problem, frame_of, read_label_map
from vheatir.backbone.errors import DataError
from vheatir.backbone.segmentation.recipe import CITYSCAPES, SegmentationData

_log = logging.getLogger(__name__)
IGNORED = 255
_UNKNOWN = 254
_SPLITS = {"ade20k": ("training", "validation"), "cityscapes": ("train", "val"), "folders": ("train", "val")}
_FOLDERS = {
    "ade20k": ("images", "annotations"),
    "cityscapes": ("leftImg8bit", "gtFine"),
    "folders": ("images", "labels"),
}


@dataclass(frozen=True)
class Pair:
    """An image and its label map, which sees it as a viewer shows it (`turned`) or as it is stored."""

    image: Path
    labels: Path
    turned: bool = True


def class_table(data: SegmentationData) -> Tensor:
    """(256,) uint8: for each number in a file the class from 0 on, 255 for none, 254 for a number that is not known."""
    table = torch.full((256,), _UNKNOWN, dtype=torch.uint8)
    classes = torch.arange(data.num_classes, dtype=torch.uint8)
    if data.layout == "ade20k":
        table[0] = IGNORED
        table[1 : data.num_classes + 1] = classes
    elif data.layout == "cityscapes":
        table[:34] = IGNORED
        table[list(CITYSCAPES)] = torch.arange(len(CITYSCAPES), dtype=torch.uint8)
    else:
        table[: data.num_classes] = classes
    if data.label_ids is not None:
        table[(table != IGNORED).nonzero()] = _UNKNOWN
        table[list(data.label_ids)] = classes
    table[[number for number in (IGNORED, *(data.ignore or ())) if number not in (data.label_ids or ())]] = IGNORED
    return table


def _label_file(layout: str, image: Path, images: Path, labels: Path) -> Path:
    place = labels / image.relative_to(images).parent
    if layout == "cityscapes":
        return place / f"{image.stem.removesuffix('_leftImg8bit')}_gtFine_labelIds.png"
    return place / f"{image.stem}.png"


def find_pairs(data: SegmentationData, training: bool) -> tuple[list[Pair], list[Problem]]:
    """The images of a split with their label maps, checked.

    Every label map is read: sizes must agree, and numbers be known. Which numbers occur, which are ignored and which
    classes never occur is logged.

    Raises:
        FileNotFoundError, ValueError: a folder is missing or holds no images. Broken rules are returned.
    """
    root = Path(data.root)
    split = data.train if training else data.val
    split = split or _SPLITS[data.layout][0 if training else 1]
    images, labels = (root / name / split for name in _FOLDERS[data.layout])
    for folder in (images, labels):
        if not folder.is_dir():
            wanted = " and ".join(f"{name}/{split}" for name in _FOLDERS[data.layout])
            raise FileNotFoundError(f"{folder}: no such folder; data.layout {data.layout} needs {wanted} in {root}")
    files = sorted(path for path in files_below(images) if path.suffix.lower() in SUFFIXES)
    if not files:
        raise ValueError(f"{images}: no images ({', '.join(SUFFIXES)})")
    pairs = [Pair(file, _label_file(data.layout, file, images, labels)) for file in files]
    wanted = {pair.labels for pair in pairs}
    pairs, problems = _told_apart(pairs)
    table = class_table(data)
    kept = []
    counts = torch.zeros(256, dtype=torch.int64)
    with ThreadPoolExecutor() as pool:
        for pair, problem, found in pool.map(lambda one: _checked(one, table), pairs):
            if problem is None:
                kept.append(pair)
                counts += found
            else:
                problems.append(problem)
    if data.layout != "cityscapes":  # which has further files beside its label maps
        problems += [Problem(str(path), "a label map without an image") for path in _others(labels, wanted)]
    if kept:
        _report_labels(labels, data, counts, table)
    return kept, problems


def _told_apart(pairs: list[Pair]) -> tuple[list[Pair], list[Problem]]:
    """The pairs whose label map no other image has, and the images of the others."""
    sharing: dict[Path, list[Path]] = {}
    for pair in pairs:
        sharing.setdefault(pair.labels, []).append(pair.image)
    problems = [
        Problem(str(image), "its label map is that of another image", ", ".join(path.name for path in images))
        for images in sharing.values()
        if len(images) > 1
        for image in images
    ]
    return [pair for pair in pairs if len(sharing[pair.labels]) == 1], problems


def _report_labels(folder: Path, data: SegmentationData, counts: Tensor, table: Tensor) -> None:
    """Log which numbers the label maps hold and what becomes of them.

    Raises:
        ValueError: all of them are ignored.
    """
    present = counts.nonzero().flatten()
    ignored = table[present] == IGNORED
    shares = 100 * counts[present] / counts.sum()
    said = ", ".join(
        f"{number} ({share:.3g} %{', ignored' if left_out else ''})"
        for number, share, left_out in zip(present.tolist(), shares.tolist(), ignored.tolist(), strict=True)
    )
    advice = "list the numbers of the classes in data.label_ids"
    if len(present) == data.num_classes:
        advice += f", here {present.tolist()}"
    if ignored.all():
        raise ValueError(f"{folder}: the label maps hold nothing but numbers that are ignored: {said}; {advice}")
    seen = set(table[present].tolist())
    names = data.classes or tuple(map(str, range(data.num_classes)))
    never = [name for number, name in enumerate(names) if number not in seen]
    if not never:
        _log.info("%s: numbers in the label maps: %s", folder, said)
        return
    if ignored.any():
        never[-1] += f"; to learn a number that is ignored, {advice}"
    _log.warning("%s: numbers in the label maps: %s; classes that never occur: %s", folder, said, ", ".join(never))


def _others(folder: Path, wanted: set[Path]) -> Iterator[Path]:
    return (path for path in sorted(files_below(folder)) if path.suffix == ".png" and path not in wanted)


def _checked(pair: Pair, table: Tensor) -> tuple[Pair, Problem | None, Tensor]:
    """The pair in its frame, what is wrong with it, and how often its label map holds each number."""
    none = torch.zeros(256, dtype=torch.int64)
    if not pair.labels.is_file():
        return pair, Problem(str(pair.labels), "the file is missing", f"the label map of {pair.image.name}"), none
    labels = read_label_map(pair.labels)
    if isinstance(labels, DataError):
        return pair, Problem(str(pair.labels), "no label map", str(labels)), none
    frame = frame_of(pair.image, (labels.shape[1], labels.shape[0]))
    if isinstance(frame, Problem):
        problem = frame
        if problem.file == str(pair.image) and problem.rule == OTHER_SIZE:
            shown = sizes(pair.image).turned
            found = f"{labels.shape[1]}x{labels.shape[0]}, {pair.image.name} is {shown[0]}x{shown[1]}"
            problem = Problem(str(pair.labels), "another size than its image", found)
        return pair, problem, none
    counts = torch.bincount(labels.flatten().long(), minlength=256)
    present = counts.nonzero().flatten()
    unknown = present[table[present] == _UNKNOWN].tolist()
    if unknown:
        advice = "see data.num_classes, ignore, label_ids"
        problem = Problem(str(pair.labels), "unknown ids", f"{', '.join(map(str, unknown))}; {advice}")
        return pair, problem, none
    return replace(pair, turned=frame.turned), None, counts
