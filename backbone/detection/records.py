"""Annotated images in one form, whatever they were read from."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pycocotools import mask as rle

from vheatir.backbone.dense.image_files import Problem
from vheatir.backbone.training.schema import is_number

_SLACK = 1.0  # pixels by which a box may exceed its image: annotations are rounded


@dataclass
class Instance:
    """An object of an image.

    Attributes:
        box: x0, y0, x1, y1 in pixels, with x1 and y1 outside.
        label: class from 1 on; 0 is the background.
        crowd: a group, or an object too hard to count: ignored in training and in the recall denominator.
        difficult: it is such an object, no group.
        area: pixels of the object; of its box where it has no mask.
        segmentation: polygons or run lengths as COCO has them; None where only boxes are known.
    """

    box: tuple[float, float, float, float]
    label: int
    crowd: bool = False
    area: float = 0.0
    segmentation: list | dict | None = None
    difficult: bool = False


@dataclass
class Record:
    """An image and its objects.

    Attributes:
        file: the image.
        number: its id in the data set, or one in its place.
        width, height: pixels.
        instances: its objects.
        turned: whether these see the image as a viewer shows it, otherwise as it is stored.
    """

    file: Path
    number: int
    width: int
    height: int
    instances: list[Instance] = field(default_factory=list)
    turned: bool = True


@dataclass
class Annotations:
    """The annotations of a split: images, names of the classes 1, 2, ..., and the rules that were broken."""

    records: list[Record]
    classes: tuple[str, ...]
    problems: list[Problem] = field(default_factory=list)

    def for_training(self) -> list[Record]:
        """Images with something to learn from; the published recipes leave out the others."""
        return [record for record in self.records if any(not instance.crowd for instance in record.instances)]

    def as_coco(self) -> dict:
        """The split as COCO's table, with classes and images numbered as here; what `average_precision` scores against.

        Objects have a `difficult` beside COCO's keys.
        """
        annotations = []
        for record in self.records:
            for instance in record.instances:
                x0, y0, x1, y1 = instance.box
                entry = {
                    "id": len(annotations) + 1,
                    "image_id": record.number,
                    "category_id": instance.label,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": instance.area,
                    "iscrowd": int(instance.crowd),
                    "difficult": int(instance.difficult),
                }
                if instance.segmentation is not None:
                    entry["segmentation"] = instance.segmentation
                annotations.append(entry)
        return {
            "info": {},
            "images": [{"id": one.number, "width": one.width, "height": one.height} for one in self.records],
            "categories": [{"id": label, "name": name} for label, name in enumerate(self.classes, 1)],
            "annotations": annotations,
        }


def box_rule(box: Sequence[float], width: int, height: int) -> str | None:
    """The rule that a box x0, y0, x1, y1 breaks in an image of that size; None where it breaks none.

    Args:
        box: x0, y0, x1, y1 in pixels.
        width: of the image.
        height: of the image.
    """
    x0, y0, x1, y1 = box
    if not all(np.isfinite(box)) or x1 <= x0 or y1 <= y0:
        return "a box without area"
    beyond = x0 < -_SLACK or y0 < -_SLACK or x1 > width + _SLACK or y1 > height + _SLACK
    if beyond or x0 >= width or y0 >= height or x1 <= 0 or y1 <= 0:
        return "a box outside its image"
    return None


def clipped(box: Sequence[float], width: int, height: int) -> tuple[float, float, float, float]:
    """The part of a box inside its image.

    Args:
        box: x0, y0, x1, y1 in pixels.
        width: of the image.
        height: of the image.
    """
    x0, y0, x1, y1 = box
    return max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height))


def segmentation_rule(segmentation: object, width: int, height: int) -> str | None:
    """The rule that a COCO segmentation breaks; None where it breaks none.

    Args:
        segmentation: polygons or run lengths.
        width: of the image.
        height: of the image.
    """
    if not segmentation:
        return "an empty segmentation"
    if isinstance(segmentation, dict):
        return _run_length_rule(segmentation, width, height)
    if not isinstance(segmentation, list) or not all(isinstance(one, list) for one in segmentation):
        return "a segmentation that is neither polygons nor run lengths"
    if not all(is_number(value) for one in segmentation for value in one):
        return "a polygon with coordinates that are no numbers"
    if not all(len(one) >= 6 and len(one) % 2 == 0 for one in segmentation):
        return "a polygon of fewer than three points"
    return None


def _run_length_rule(segmentation: dict, width: int, height: int) -> str | None:
    if not {"counts", "size"} <= set(segmentation) or segmentation["size"] != [height, width]:
        return "run lengths of another size than the image"
    counts = segmentation["counts"]
    if isinstance(counts, str):
        counts = _run_lengths(counts)
    if not isinstance(counts, list) or not all(isinstance(one, int) and one >= 0 for one in counts):
        return "broken run lengths"
    if sum(counts) != width * height:
        return "run lengths that do not add up to the image"
    return None


def _run_lengths(text: str) -> list[int] | None:
    """The numbers of COCO's compressed form: 5 bits a character, from the third on as differences; None if broken."""
    counts = []
    value = 0
    shift = 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64:
            return None
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:
            value -= (code & 16) << (shift - 4)
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = 0
            shift = 0
    return None if shift else counts


def decode(segmentation: list | dict, width: int, height: int) -> np.ndarray:
    """(height, width) uint8 of 0 and 1.

    Args:
        segmentation: polygons or run lengths that break no rule.
        width: of the image.
        height: of the image.
    """
    if isinstance(segmentation, list):
        return rle.decode(rle.merge(rle.frPyObjects(segmentation, height, width)))
    if isinstance(segmentation["counts"], list):
        segmentation = rle.frPyObjects(segmentation, height, width)
    return rle.decode(segmentation)
