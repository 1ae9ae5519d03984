"""Pixels of image files in the one form that backbones see: 8 bits, RGB or gray, turned as a viewer turns them.

The only reader of images of all tasks. 16-bit numbers become 8-bit ones by value, as `vheatir restore` scales them.
"""

import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any, BinaryIO, NamedTuple, cast

import cv2
import numpy as np
from PIL import Image
from tifffile import TiffFile, TiffPage
from torch import Tensor

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
_OTHERS = (".jpe", ".jfif", ".dib", ".gif", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".avif")
_BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", b"GIF8", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_TIFF = _BEGINNINGS[4:]
_ORIENTATION = 274  # number of the EXIF tag
_SIDEWAYS = (5, 6, 7, 8)
_TURNS = Image.Transpose
# How an image is turned for its orientation, and how that is undone.
_TURN = {
    2: _TURNS.FLIP_LEFT_RIGHT,
    3: _TURNS.ROTATE_180,
    4: _TURNS.FLIP_TOP_BOTTOM,
    5: _TURNS.TRANSPOSE,
    6: _TURNS.ROTATE_270,
    7: _TURNS.TRANSVERSE,
    8: _TURNS.ROTATE_90,
}
_UNDO = {**_TURN, 6: _TURNS.ROTATE_90, 8: _TURNS.ROTATE_270}
_PNG_DEPTH_AND_KIND = slice(24, 26)


class ImageError(ValueError):
    """A file or its pixels cannot be used as an image; says why, without the file's name."""


class Sizes(NamedTuple):
    """Width and height of an image as it is stored, and as a viewer shows it."""

    stored: tuple[int, int]
    turned: tuple[int, int]


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except ImageError:
        raise
    except OSError as error:
        raise ImageError(f"cannot be read as an image: {error}") from error
    except Exception as error:  # decoders raise whatever they like on damaged bytes
        raise ImageError(f"cannot be read as an image: {type(error).__name__}: {error}") from error


def has_image_suffix(name: str) -> bool:
    """Whether a name ends as images' names do."""
    return PurePath(name).suffix.lower() in SUFFIXES + _OTHERS


def starts_as_image(head: bytes) -> bool:
    """Whether these are the first 12 bytes of an image."""
    return head.startswith(_BEGINNINGS) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")


def is_image(path: Path) -> bool:
    """Whether a file is an image by its suffix, or where that says nothing, by its first bytes."""
    if has_image_suffix(path.name) or not path.is_file():
        return has_image_suffix(path.name)
    with open(path, "rb") as file:
        return starts_as_image(file.read(12))


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except (OSError, SyntaxError, ValueError, KeyError, TypeError, struct.error):  # damaged EXIF turns nothing
        return 1
    return value if value in _UNDO else 1


def sizes(file: Path) -> Sizes:
    """What the header of an image states.

    Raises:
        ImageError: no image.
    """
    with _told(), open(file, "rb") as opened:
        with _tiff_page(opened) as page:
            if page is not None:
                shown = (page.imagewidth, page.imagelength)
                sideways = _tiff_orientation(page) in _SIDEWAYS
                return Sizes(shown, (shown[1], shown[0]) if sideways else shown)
        with Image.open(opened) as image:
            shown = image.size
            sideways = _orientation(image) in _SIDEWAYS
            return Sizes(shown, (shown[1], shown[0]) if sideways else shown)


def _turned(image: Image.Image, turned: bool) -> Image.Image:
    orientation = _orientation(image)
    by_itself = image.format == "TIFF"
    image.load()
    if orientation == 1 or turned == by_itself:
        return image
    return image.transpose((_TURN if turned else _UNDO)[orientation])


def _narrowed(values: np.ndarray, most: int) -> Image.Image:
    return Image.fromarray((values.astype(np.float64) * (255 / most)).round().astype(np.uint8))


def _from_floats(values: np.ndarray) -> Image.Image:
    low = values.min()
    high = values.max()
    if not (low >= 0 and high <= 1):  # nor where one of them is NaN
        raise ImageError(
            f"holds floating numbers from {low:g} to {high:g}, expected 0 for black to 1 for white; save it with 8 bits"
        )
    return _narrowed(values, 1)


_SIGNED = "holds signed or 32-bit integers, which have no value for white; save it with 8 or 16 bits"


def _eight_bits(image: Image.Image, kind: str | None) -> Image.Image:
    """The image in a mode of 8 bits for each channel."""
    mode = image.mode
    if mode.startswith("I;16"):
        return _narrowed(np.asarray(image), 65535)
    if mode == "I":
        values = np.asarray(image)
        if kind == "TIFF" or values.min() < 0 or values.max() > 65535:
            raise ImageError(_SIGNED)
        return _narrowed(values, 65535)
    if mode == "F":
        return _from_floats(np.asarray(image))
    return image.convert({"La": "LA", "RGBa": "RGBA"}.get(mode, mode))


def as_pixels(image: Image.Image, *, turned: bool = True, gray: bool = False) -> Image.Image:
    """An opened image in mode RGB, or L with `gray`; alpha is dropped, of several images the first is taken.

    Args:
        image: of any mode.
        turned: as its EXIF orientation says; otherwise as it is stored.
        gray: one channel, by ITU-R 601.

    Raises:
        ImageError: damaged, or of numbers whose range is not known.
    """
    with _told():
        kind, image = image.format, _turned(image, turned)
        return _eight_bits(image, kind).convert("L" if gray else "RGB")


def _deep_png(file: BinaryIO) -> Image.Image | None:
    """A PNG of 16 bits in several channels, of which Pillow would cut off the lower 8; None for other files."""
    head = file.read(26)
    file.seek(0)
    if head[:8] != _BEGINNINGS[1] or head[_PNG_DEPTH_AND_KIND] not in (b"\x10\x02", b"\x10\x04", b"\x10\x06"):
        return None
    values = cv2.imdecode(np.frombuffer(file.read(), np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None:
        raise ImageError("cannot be read as an image: a damaged PNG of 16 bits")
    return _narrowed(values[..., 2::-1], 65535)  # from BGR


def _deep_tiff(page: TiffPage) -> Image.Image | None:
    """A TIFF of more than 8 bits, which Pillow reads in part of its layouts; None for other files."""
    if page.sampleformat == 2 or (page.sampleformat == 1 and page.bitspersample > 16):
        raise ImageError(_SIGNED)
    if page.bitspersample <= 8:
        return None
    if page.photometric not in (0, 1, 2):
        raise ImageError(f"a TIFF of {page.bitspersample} bits whose colors are neither RGB nor gray")
    try:
        values = page.asarray()
    except ValueError as error:  # a codec that tifffile lacks and Pillow may have
        if page.planarconfig == 1 and page.photometric != 0 and page.sampleformat == 1:
            return None
        raise ImageError(f"cannot be read as an image: {error}") from error
    if page.axes.startswith("S"):  # one plane after the other
        values = np.moveaxis(values, 0, -1)
    if values.ndim == 3:
        values = values[..., :3] if page.photometric == 2 else values[..., 0]
    if page.photometric == 0:  # 0 is white
        values = 1 - values if page.sampleformat == 3 else 2**page.bitspersample - 1 - values
    return _from_floats(values) if page.sampleformat == 3 else _narrowed(values, 2**page.bitspersample - 1)


@contextmanager
def _tiff_page(file: BinaryIO) -> Iterator[TiffPage | None]:
    """The first page of a TIFF; None for other files. The file is back at its beginning afterwards."""
    found = file.read(4) in _TIFF
    file.seek(0)
    if not found:
        yield None
    else:
        with TiffFile(file) as tiff:
            yield cast(TiffPage, tiff.pages[0])
        file.seek(0)


def _tiff_orientation(page: TiffPage) -> int:
    tag = page.tags.get(_ORIENTATION)
    return int(tag.value) if tag is not None and tag.value in _TURN else 1


def _deep(file: BinaryIO) -> tuple[Image.Image | None, int]:
    """The image, as it is stored, of a file that Pillow reads wrongly or in part, and its orientation; else None."""
    with _tiff_page(file) as page:
        if page is not None:
            return _deep_tiff(page), _tiff_orientation(page)
    decoded = _deep_png(file)
    orientation = 1
    file.seek(0)
    if decoded is not None:
        with Image.open(file) as image:
            orientation = _orientation(image)
        file.seek(0)
    return decoded, orientation


def read_pixels(source: Path | BinaryIO, *, turned: bool = True, gray: bool = False) -> Image.Image:
    """The pixels of a file; see `as_pixels`.

    Args:
        source: a file, or one opened for reading.
        turned: as its EXIF orientation says; otherwise as it is stored.
        gray: mode L instead of RGB.

    Raises:
        ImageError: missing, damaged, or of numbers whose range is not known.
    """
    if isinstance(source, Path):
        with _told(), open(source, "rb") as file:
            return read_pixels(file, turned=turned, gray=gray)
    with _told():
        deep, orientation = _deep(source)
        source.seek(0)
        if deep is None:
            with Image.open(source) as image:
                return as_pixels(image, turned=turned, gray=gray)
        return as_pixels(deep.transpose(_TURN[orientation]) if turned and orientation > 1 else deep, gray=gray)


def check_decodes(source: Path | BinaryIO) -> None:
    """Decode an image for nothing but its errors; a JPEG at an eighth of its size, which reads all of it.

    Raises:
        ImageError: missing or damaged.
    """
    if isinstance(source, Path):
        with _told(), open(source, "rb") as file:
            return check_decodes(file)
    with _told():
        deep, _ = _deep(source)
        source.seek(0)
        if deep is None:
            with Image.open(source) as image:
                image.draft(image.mode, (1, 1))
                as_pixels(image)


class OfOneChannel:
    """A transform of images for networks that see gray ones: to gray, through the transform as RGB, one channel kept.

    So every augmentation that knows RGB serves both.
    """

    def __init__(self, transform: Callable[[Image.Image], Tensor]):
        self.transform = transform

    def __call__(self, image: Image.Image) -> Tensor:
        return self.transform(image.convert("L").convert("RGB"))[..., :1, :, :]


def color_statistics(config: Mapping[str, Any], channels: int) -> dict[str, tuple[float, ...]]:
    """Mean and standard deviation of a network's default configuration; for gray images those over the channels."""
    if channels == 3:
        return {key: tuple(config[key]) for key in ("mean", "std")}
    return {key: (sum(config[key]) / len(config[key]),) * 3 for key in ("mean", "std")}
