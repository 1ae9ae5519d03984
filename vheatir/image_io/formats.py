"""What all readers and writers share: formats, a picture in memory, a picture as its file holds it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vheatir.errors import UserError
from vheatir.image_io.tiff import ASSOCIATED

FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jpe": "JPEG",
    ".jfif": "JPEG",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".bmp": "BMP",
    ".webp": "WEBP",
}
DEPTHS = {"PNG": (8, 16), "JPEG": (8,), "TIFF": (8, 16, 32), "BMP": (8,), "WEBP": (8,)}
ROWS = 256  # rows converted at a time, so that no second copy of the image exists
_INTEGERS = {8: np.uint8, 16: np.uint16}


def format_of(path: Path) -> str:
    """The format that a file name stands for; UserError when it stands for none of ours."""
    try:
        return FORMATS[path.suffix.lower()]
    except KeyError:
        raise UserError(
            f"{path}: the suffix {path.suffix!r} is not one of {', '.join(FORMATS)}; rename or convert the file"
        ) from None


@dataclass
class Image:
    """A picture and what is needed to write it back.

    pixels: float32, HWC RGB or HW, in [0, 1] (a float TIFF may leave it). alpha: float32 HW in [0, 1] or None; the
    colours are not multiplied with it. bit_depth: 8, 16, or 32 for floats. extras: metadata for the writer. notes: what
    will not survive, for the user to read.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    bit_depth: int = 8
    suffix: str = ".png"
    extras: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass
class Stored:
    """A picture as its file holds it.

    rows: rows start:stop as (rows, width, channels) in the file's own numbers, the last of 2 or 4 channels alpha.
    """

    height: int
    width: int
    channels: int
    bit_depth: int
    rows: Callable[[int, int], np.ndarray]
    suffix: str = ".png"
    extras: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    close: Callable[[], None] = lambda: None

    @property
    def colors(self) -> int:
        return 3 if self.channels >= 3 else 1

    @property
    def has_alpha(self) -> bool:
        return self.channels in (2, 4)

    @property
    def premultiplied(self) -> bool:
        return self.has_alpha and "tiff" in self.extras and self.extras["tiff"].alpha == ASSOCIATED

    def floats(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Rows as float32: colours (rows, width, 1 or 3) not multiplied with alpha, and alpha (rows, width) or None."""
        raw = self.rows(start, stop)
        values = raw.astype(np.float32)
        if self.bit_depth != 32:
            values /= np.float32(2**self.bit_depth - 1)
        if not self.has_alpha:
            return values, None
        colors, alpha = values[..., :-1], values[..., -1]
        if self.premultiplied:
            colors = colors / np.where(alpha > 0, alpha, 1)[..., None]
        return colors, alpha

    def raw(self, start: int, colors: np.ndarray) -> np.ndarray:
        """New colours from row `start` on in the file's own numbers, beside its alpha; what is hidden stays."""
        if not self.has_alpha:
            return to_numbers(colors, self.bit_depth)
        old = self.rows(start, start + len(colors))
        hidden = old[..., -1] == 0
        if self.premultiplied:
            scale = np.float32(1 if self.bit_depth == 32 else 2**self.bit_depth - 1)
            colors = colors * (old[..., -1:] / scale)
        block = np.concatenate([to_numbers(colors, self.bit_depth).astype(old.dtype), old[..., -1:]], axis=2)
        block[hidden] = old[hidden]
        return block


def to_numbers(pixels: np.ndarray, depth: int) -> np.ndarray:
    """Clip to [0, 1] and round to integers of 8 or 16 bits; floats (32) are passed on unchanged."""
    if depth == 32:
        return pixels.astype(np.float32, copy=False)
    strip = np.clip(pixels, 0, 1) * np.float32(2**depth - 1)
    return np.rint(strip, out=strip).astype(_INTEGERS[depth])


def blocks_of(image: Image) -> Iterator[np.ndarray]:
    """A picture in memory as blocks of rows in its file's numbers, (rows, width, channels)."""
    info = image.extras.get("tiff")
    premultiplied = image.alpha is not None and info is not None and info.alpha == ASSOCIATED
    height, width = image.pixels.shape[:2]
    for top in range(0, height, ROWS):
        colors = image.pixels[top : top + ROWS].reshape(-1, width, 1 if image.pixels.ndim == 2 else 3)
        if image.alpha is None:
            yield to_numbers(colors, image.bit_depth)
            continue
        alpha = image.alpha[top : top + ROWS, :, None]
        if premultiplied:
            colors = colors * np.where(alpha > 0, alpha, 1)
        yield np.concatenate([to_numbers(colors, image.bit_depth), to_numbers(alpha, image.bit_depth)], axis=2)
