"""What all readers and writers share: formats, an image in memory, an image as its file holds it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import Any, BinaryIO

import cv2
import numpy as np

from vheatir.errors import UserError

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
    ".heic": "HEIF",
    ".heif": "HEIF",
    ".hif": "HEIF",
    ".avif": "AVIF",
}
_RAW = "3fr arw cr2 cr3 crw dcr dng erf iiq kdc mef mos mrw nef nrw orf pef raf rw2 rwl sr2 srf srw"
FORMATS |= {f".{name}": "RAW" for name in _RAW.split()}
# What is written; HEIF holds 10 bits of the 16.
DEPTHS = {"PNG": (8, 16), "JPEG": (8,), "TIFF": (8, 16, 32), "BMP": (8,), "WEBP": (8,), "HEIF": (8, 16)}
MOST_SIDE = {"JPEG": 65500, "WEBP": 16383}  # pixels, of their encoders
_WRITTEN_AS = {"AVIF": ".png", "RAW": ".tif"}  # what is only read
MAX_PIXELS = 180_000_000  # as float32 RGB about 2 GiB; a small file may claim any size
# ExtraSamples of TIFF: colors multiplied with alpha beforehand, or not
ASSOCIATED = 1
STRAIGHT = 2
ROWS = 256  # rows converted at a time, so that no second copy of the image exists
_USUAL_PRIMARIES = (1, 2)  # H.273: those of BT.709 and sRGB, or nothing said
_USUAL_TRANSFER = (1, 2, 6, 13)
_SRGB_PRIMARIES = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)  # x and y of white, red, green, blue
_NEAR = 0.01  # of a coordinate; those of Display P3 and Adobe RGB differ by more
_MOST_DPI = 65535  # of a JPEG
_INTEGERS = {8: np.uint8, 16: np.uint16}


def format_of(path: Path) -> str:
    """The format that a file name stands for; UserError when it stands for none of ours."""
    return _format_among(path, FORMATS)


def _format_among(path: Path, suffixes: Iterable[str]) -> str:
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        known = ", ".join(suffixes)
        raise UserError(f"{path}: the suffix {path.suffix!r} is not one of {known}; rename or convert the file")
    return FORMATS[suffix]


def written_format(path: Path) -> str:
    """The format that a file to write stands for; UserError for one that is only read."""
    kind = _format_among(path, [suffix for suffix, kind in FORMATS.items() if kind in DEPTHS])
    if kind not in DEPTHS:
        raise UserError(f"{path}: {kind} files are only read; give a name that ends in {_WRITTEN_AS[kind]}")
    return kind


def written_name(path: PurePath) -> PurePath:
    """The name of the result made from a file: its own, with another suffix where its format is only read."""
    suffix = _WRITTEN_AS.get(FORMATS.get(path.suffix.lower(), ""))
    return path.with_suffix(suffix) if suffix else path


@dataclass(frozen=True)
class Encoded:
    """An image file on its way in; what every reader gets.

    name: stands in messages. file: open at its start. max_pixels: more are refused before anything is decoded. by_rows:
    TIFFs of more pixels are decoded as their rows are asked for. metadata: False where only the pixels are wanted.
    """

    name: str
    file: BinaryIO
    max_pixels: int = MAX_PIXELS
    by_rows: int | None = None
    metadata: bool = True

    @property
    def suffix(self) -> str:
        return Path(self.name).suffix

    def content(self) -> bytes:
        self.file.seek(0)
        return self.file.read()

    def check_size(self, width: int, height: int) -> None:
        """UserError when an image of this size is none, or too large."""
        if width < 1 or height < 1:
            raise UserError(f"{self.name}: the header says {width}x{height} pixels; the file is damaged")
        if width * height > self.max_pixels:
            raise UserError(
                f"{self.name}: the header says {width}x{height} pixels, more than the limit of "
                f"{self.max_pixels / 1e6:g} megapixels; cut it into parts, or raise the limit if the file can be "
                "trusted"
            )


@dataclass
class Image:
    """An image and what is needed to write it back.

    pixels: float32, HWC RGB or HW, in [0, 1] (a float TIFF may leave it). alpha: float32 HW in [0, 1] or None; the
    colors are not multiplied with it. bit_depth: 8, 16, or 32 for floats. extras: metadata for the writer. notes: what
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
    """An image as its file holds it.

    rows: rows start:stop as (rows, width, channels) in the file's own numbers, 0 black, the last of 2 or 4 channels
    alpha. premultiplied: the colors are multiplied with it. orientation: as EXIF numbers it, 1 upright to 8; the rows
    are those of the file. by_rows: they are decoded as they are asked for, `close` ends that.
    """

    height: int
    width: int
    channels: int
    bit_depth: int
    rows: Callable[[int, int], np.ndarray]
    suffix: str = ".png"
    extras: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    premultiplied: bool = False
    orientation: int = 1
    by_rows: bool = False
    close: Callable[[], None] = lambda: None

    @classmethod
    def of_array(cls, array: np.ndarray, bit_depth: int, **about: Any) -> "Stored":
        """Of a decoded image, HW or HWC.

        Args:
            array: HW, or HWC with 1 to 4 channels.
            bit_depth: of the file's numbers.
            **about: further attributes of `Stored`.
        """
        pixels = array.reshape(*array.shape[:2], -1)
        height, width, channels = pixels.shape
        return cls(height, width, channels, bit_depth, lambda start, stop: pixels[start:stop], **about)

    @property
    def colors(self) -> int:
        return 3 if self.channels >= 3 else 1

    @property
    def has_alpha(self) -> bool:
        return self.channels in (2, 4)

    def floats(self, start: int, stop: int, *, whole: bool = False) -> tuple[np.ndarray, np.ndarray | None]:
        """Rows as float32: colors (rows, width, 1 or 3) not multiplied with alpha, and alpha (rows, width) or None.

        Premultiplied colors may lie above alpha, as light that is added does. Divided by it they would be far beyond
        white, so they are cut there; `raw` adds what was cut.

        Args:
            start: first row.
            stop: row behind the last one.
            whole: divide without cutting.
        """
        raw = self.rows(start, stop)
        values = raw.astype(np.float32)
        if self.bit_depth != 32:
            values /= np.float32(2**self.bit_depth - 1)
        if not self.has_alpha:
            return values, None
        colors = values[..., :-1]
        alpha = values[..., -1]
        if self.premultiplied:
            straight = colors / np.where(alpha > 0, alpha, 1)[..., None]
            colors = straight if whole else straight.clip(np.minimum(colors, 0), np.maximum(colors, 1))
        return colors, alpha

    def eight_bits(self, name: str) -> np.ndarray:
        """The colors as data sets take them: uint8, HWC RGB or HW, upright.

        16-bit values are divided by 257 and rounded (65535 becomes 255); alpha is dropped, from premultiplied colors
        it is taken out first. An image of floats is a UserError that begins with `name`.
        """
        if self.bit_depth == 32:
            kind = self.rows(0, 1).dtype
            raise UserError(f"{name}: holds {kind} values, expected 8 or 16 bits; convert it to PNG")
        if self.premultiplied:
            values = to_integers(self.floats(0, self.height)[0], 8)
        else:
            values = self.rows(0, self.height)
            if values.shape[2] == 4 and values.dtype == np.uint8:
                values = cv2.cvtColor(np.ascontiguousarray(values), cv2.COLOR_RGBA2RGB)  # far faster than a slice
            values = values[..., : self.colors]
        if values.dtype == np.uint16:
            values = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
        values = upright(values if self.colors == 3 else values[..., 0], self.orientation)
        return np.require(values, requirements=["C", "W"])

    def straight(self) -> "Stored":
        """The same image with colors that are not multiplied with alpha."""
        if not self.premultiplied:
            return self

        def rows(start: int, stop: int) -> np.ndarray:
            colors, alpha = self.floats(start, stop)
            assert alpha is not None, "colors are multiplied with what is there"
            return to_integers(np.concatenate([colors, alpha[..., None]], axis=2), self.bit_depth)

        return replace(self, rows=rows, premultiplied=False)

    def raw(self, start: int, colors: np.ndarray) -> np.ndarray:
        """New colors from row `start` on in the file's own numbers, beside its alpha; what is hidden stays."""
        if not self.has_alpha:
            return to_integers(colors, self.bit_depth)
        old = self.rows(start, start + len(colors))
        hidden = ~(old[..., -1] > 0)  # floats may be below, or no numbers
        if self.premultiplied:
            values = old / np.float32(1 if self.bit_depth == 32 else 2**self.bit_depth - 1)
            colors = colors * values[..., -1:] + beyond_white(values[..., :-1], values[..., -1])
        block = np.concatenate([to_integers(colors, self.bit_depth).astype(old.dtype), old[..., -1:]], axis=2)
        block[hidden] = old[hidden]
        return block


def beyond_white(colors: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """What of premultiplied colors (rows, width, 1 or 3) is beyond white, and below black, under alpha (rows, width).

    White is 1, or the color itself where that is more, as in floats.
    """
    share = np.where(alpha > 0, alpha, 1)[..., None]
    return colors - colors.clip(share * np.minimum(colors, 0), share * np.maximum(colors, 1))


def upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """An image, HWC or HW, turned and mirrored as its EXIF orientation (1 to 8) says."""
    if orientation in (5, 6, 7, 8):
        image = image.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    return image[:, ::-1] if orientation in (2, 3, 6, 7) else image


def usable_dpi(dpi: Any) -> tuple[float, float] | None:
    """Dots per inch across and down that every format can hold, above 0 and at most 65535; None for others."""
    try:
        across, down = (float(value) for value in dpi)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return (across, down) if min(across, down) > 0 and max(across, down) <= _MOST_DPI else None


def color_numbers(primaries: int, transfer: int) -> tuple[int, int] | None:
    """What a file must say of its colors where no profile does, in the numbers of H.273; None for sRGB."""
    usual = primaries in _USUAL_PRIMARIES and transfer in _USUAL_TRANSFER
    return None if usual else (primaries, transfer)


def own_primaries(primaries: Sequence[float]) -> tuple[float, ...] | None:
    """What a file must say of its primaries where no profile does; None for those of sRGB, or beyond [0, 1].

    Args:
        primaries: x and y of white, red, green and blue.
    """
    if not all(0 <= one <= 1 for one in primaries):  # no numbers of colors; other formats might not hold them
        return None
    differs = max(abs(one - usual) for one, usual in zip(primaries, _SRGB_PRIMARIES, strict=True)) > _NEAR
    return tuple(primaries) if differs else None


def to_integers(pixels: np.ndarray, depth: int) -> np.ndarray:
    """Clip to [0, 1] and round to integers of 8 or 16 bits; floats (32) are passed on unchanged."""
    if depth == 32:
        return pixels.astype(np.float32, copy=False)
    strip = np.clip(pixels, 0, 1) * np.float32(2**depth - 1)
    return np.rint(strip, out=strip).astype(_INTEGERS[depth])


def blocks_of(image: Image, kind: str) -> Iterator[np.ndarray]:
    """An image in memory as blocks of rows in the numbers of a file of that format, (rows, width, channels)."""
    info = image.extras.get("tiff") if kind == "TIFF" else None
    premultiplied = image.alpha is not None and info is not None and info.alpha == ASSOCIATED
    height, width = image.pixels.shape[:2]
    beyond = image.extras.get("beyond_white")
    if beyond is not None and beyond.shape != (height, width, 1 if image.pixels.ndim == 2 else 3):
        beyond = None  # of the image before it was cut or made gray
    for top in range(0, height, ROWS):
        colors = image.pixels[top : top + ROWS].reshape(-1, width, 1 if image.pixels.ndim == 2 else 3)
        if image.alpha is None:
            yield to_integers(colors, image.bit_depth)
            continue
        alpha = image.alpha[top : top + ROWS, :, None]
        if premultiplied:
            colors = colors * np.where(alpha > 0, alpha, 1)
            colors = colors if beyond is None else colors + beyond[top : top + ROWS]
        yield np.concatenate([to_integers(colors, image.bit_depth), to_integers(alpha, image.bit_depth)], axis=2)
