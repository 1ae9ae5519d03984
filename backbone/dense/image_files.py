"""Files of annotated pictures: read, and what is wrong with them found before a run begins."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from vheatir.backbone.training.batches import DataError

_log = logging.getLogger(__name__)
_SHOWN = 12
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
_UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


@dataclass(frozen=True)
class Problem:
    """A rule that a file of the data set breaks."""

    file: str
    rule: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.file}: {self.rule}" + (f" ({self.detail})" if self.detail else "")


def settle(problems: Sequence[Problem], invalid: str) -> None:
    """Refuse a data set with problems, or log what is left out.

    Raises:
        DataError: there are problems and `invalid` is "refuse"; names the first of them, and counts all.
    """
    if not problems:
        return
    lines = [f"  {problem}" for problem in problems[:_SHOWN]]
    if len(problems) > _SHOWN:
        lines.append(f"  and {len(problems) - _SHOWN} more")
    text = "\n".join(lines)
    if invalid == "refuse":
        raise DataError(
            f"the data break {len(problems)} rules:\n{text}\ncorrect them, or leave them out with data.invalid: skip"
        )
    _log.warning("left out for %d broken rules:\n%s", len(problems), text)


def size_problem(file: Path, stated: tuple[int, int] | None = None) -> tuple[tuple[int, int] | None, Problem | None]:
    """Width and height in a picture's header, and what is wrong with it.

    Args:
        file: the picture.
        stated: width and height that its annotation states.
    """
    if not file.is_file():
        return None, Problem(str(file), "the file is missing")
    try:
        with Image.open(file) as image:
            size = image.size
    except _UNREADABLE as error:
        return None, Problem(str(file), "cannot be read as an image", str(error))
    if stated is not None and size != stated:
        wrong = f"the annotation says {stated[0]}x{stated[1]}, the file is {size[0]}x{size[1]}"
        return None, Problem(str(file), "another size than its annotation states", wrong)
    return size, None


def read_rgb(file: Path) -> tv_tensors.Image | DataError:
    """A picture's pixels as they are stored, (3, H, W) uint8 RGB; or the error, for the training process to raise."""
    try:
        with Image.open(file) as image:
            return tv_tensors.Image(F.pil_to_tensor(image.convert("RGB")))
    except _UNREADABLE as error:
        return DataError(f"{file}: cannot be read as an image: {error}")


def read_labels(file: Path) -> torch.Tensor | DataError:
    """A label map, (H, W) uint8 of class numbers; palette indices count, not their colours."""
    try:
        with Image.open(file) as image:
            if image.mode not in ("L", "P", "1"):
                return DataError(f"{file}: a label map has one channel of 8 bits, this file is {image.mode}")
            return F.pil_to_tensor(image if image.mode != "1" else image.convert("L"))[0]
    except _UNREADABLE as error:
        return DataError(f"{file}: cannot be read as an image: {error}")
