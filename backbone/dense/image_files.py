"""Files of annotated images: read, and what is wrong with them found before a run begins."""

import logging
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from vheatir.backbone.data.pixels import ImageError, check_decodes, read_pixels, sizes
from vheatir.backbone.errors import DataError

_log = logging.getLogger(__name__)
_SHOWN = 12
SKIPPED = ", or leave them out with data.invalid: skip"
OTHER_SIZE = "another size than its annotation states"
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


@dataclass(frozen=True)
class Problem:
    """A rule that a file of the data set breaks."""

    file: str
    rule: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.file}: {self.rule}" + (f" ({self.detail})" if self.detail else "")


def report_problems(problems: Sequence[Problem], invalid: str, advice: str = SKIPPED) -> None:
    """Refuse a data set with problems, or log what is left out.

    Args:
        problems: what is wrong.
        invalid: "refuse", or "skip" where the caller leaves it out.
        advice: what to do besides correcting it.

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
        raise DataError(f"the data break {len(problems)} rules:\n{text}\ncorrect them{advice}")
    _log.warning("left out for %d broken rules:\n%s", len(problems), text)


@dataclass(frozen=True)
class Frame:
    """Width and height of an image as its annotation sees it: turned as a viewer turns it, or as it is stored."""

    width: int
    height: int
    turned: bool = True

    @property
    def size(self) -> tuple[int, int]:
        return self.width, self.height


def frame_of(file: Path, stated: tuple[int, int] | None = None) -> Frame | Problem:
    """The frame in which an image is read, or what is wrong with the image.

    An annotation is in the frame whose size it states. Where both fit, or nothing is stated, that is the image as a
    viewer shows it, which is what tools for annotating show.

    Args:
        file: the image; only its header is read.
        stated: width and height that its annotation states.
    """
    if not file.is_file():
        return Problem(str(file), "the file is missing")
    try:
        found = sizes(file)
    except ImageError as error:
        return Problem(str(file), str(error))
    if stated is None or stated == found.turned:
        return Frame(*found.turned, True)
    if stated == found.stored:
        return Frame(*found.stored, False)
    wrong = f"the annotation says {stated[0]}x{stated[1]}, the file is {found.turned[0]}x{found.turned[1]}"
    return Problem(str(file), OTHER_SIZE, wrong)


def read_rgb(file: Path, turned: bool = True) -> tv_tensors.Image | DataError:
    """An image's pixels, (3, H, W) uint8 RGB; or the error, for the training process to raise.

    Args:
        file: any image; see `vheatir.backbone.data.pixels`.
        turned: as its EXIF orientation says; otherwise as it is stored.
    """
    try:
        return tv_tensors.Image(F.pil_to_tensor(read_pixels(file, turned=turned)))
    except ImageError as error:
        return DataError(f"{file}: {error}")


def read_label_map(file: Path) -> torch.Tensor | DataError:
    """A label map, (H, W) uint8 of class numbers as they are stored; palette indices count, not their colors.

    Maps of 1, 2 or 4 bits hold the numbers 0 to 1, 3 or 15. An EXIF orientation is passed over.
    """
    try:
        with Image.open(file) as image:
            if image.mode not in ("L", "P", "1"):
                return DataError(f"{file}: a label map has one channel of 8 bits, this file is {image.mode}")
            most = _most_stored(image)
            numbers = F.pil_to_tensor(image if image.mode != "1" else image.convert("L"))[0]
            return numbers if most == 255 else numbers // (255 // most)
    except UNREADABLE as error:
        return DataError(f"{file}: cannot be read as an image: {error}")


def _most_stored(image: Image.Image) -> int:
    """The largest number that a gray map of few bits stores, which Pillow stretches to 255; 255 for other maps."""
    if image.mode == "1":
        return 1
    if image.mode != "L" or not image.tile:
        return 255
    form = image.tile[0][3]
    if not isinstance(form, str):
        form = form[0] if form else ""
    return {"L;2": 3, "L;4": 15}.get(form, 255)


def undecodable(files: Iterable[tuple[str, Callable[[], Path | BinaryIO]]]) -> list[Problem]:
    """What is wrong with the pixels of images, which are decoded for it, several at a time.

    Args:
        files: their names, and what opens them.
    """

    def look(named: tuple[str, Callable[[], Path | BinaryIO]]) -> Problem | None:
        name, opened = named
        try:
            source = opened()
            with nullcontext() if isinstance(source, Path) else source:
                check_decodes(source)
        except (OSError, ImageError) as error:
            return Problem(name, str(error))
        return None

    with ThreadPoolExecutor() as pool:
        return [problem for problem in pool.map(look, files) if problem is not None]


def decodable(files: Sequence[Path], invalid: str) -> set[Path]:
    """Those of some images whose pixels can be decoded.

    Args:
        files: the images.
        invalid: "refuse" or "skip" those that cannot.

    Raises:
        DataError: there are such images and `invalid` is "refuse".
    """
    problems = undecodable((str(file), partial(Path, file)) for file in files)
    report_problems(problems, invalid)
    return set(files) - {Path(problem.file) for problem in problems}
