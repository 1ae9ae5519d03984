"""The header of a TIFF as the other modules know it, and what it and other formats can tell each other."""

import io
import struct
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from vheatir.image_io.formats import own_primaries, usable_dpi
from vheatir.image_io.tiff_exif import (
    ASCII,
    BYTE,
    ORIENTATION,
    SHORT,
    Entry,
    exif_block,
    first_ifd,
    orientation_of,
    read_ifds,
)

# PhotometricInterpretation
MIN_IS_WHITE = 0
MIN_IS_BLACK = 1
RGB = 2
_TEXTS = (270, 271, 272, 305, 306, 315, 316, 33432)  # that EXIF of other formats holds too
TEXTS_OF_WINDOWS = (40091, 40092, 40093, 40094, 40095)  # title, comment, author, keywords, subject, in bytes
STARS = (18246, 18249)  # rating as a number of stars and as a percentage, by Windows too
_XMP = 700
WHITE_POINT = 318
PRIMARIES = 319
_RATIONAL = 5
_D65 = (0.3127, 0.329)
IN_OTHER_FORMATS = frozenset({*_TEXTS, *TEXTS_OF_WINDOWS, *STARS, _XMP, ORIENTATION, WHITE_POINT, PRIMARIES})
_PER_UNIT = {2: 1.0, 3: 2.54}  # inches for each unit of the resolution: inch, centimeter


@dataclass
class TiffInfo:
    """What the header of a TIFF says of its one image."""

    width: int
    height: int
    bit_depth: int  # 8 stands for everything that fits in 8 bits, 32 for floats
    photometric: int
    dtype: str = "uint8"  # of the samples in the file
    byteorder: Literal["<", ">"] = "<"
    alpha: int = 0  # ExtraSamples of the last channel; 0: no alpha
    compressed: bool = False
    icc_profile: bytes | None = None
    resolution: tuple[tuple[float, float], int] | None = None  # pixels per unit in x and y, the unit
    tags: list[tuple] = field(default_factory=list)  # as tifffile takes them: code, type, count, value, write once
    ifds: dict[int, list[Entry]] = field(default_factory=dict)  # EXIF and GPS
    orientation: int = 1
    notes: tuple[str, ...] = ()


def metadata_of(info: TiffInfo) -> dict[str, Any]:
    """What other formats can carry of a TIFF's metadata: EXIF, XMP, dots per inch."""
    entries = []
    for code, kind, count, value, _ in info.tags:
        if code in (*_TEXTS, *TEXTS_OF_WINDOWS) and isinstance(value, bytes):
            entries.append(Entry(code, kind, count, value))
        elif code in STARS and kind == SHORT and isinstance(value, int):
            entries.append(Entry(code, SHORT, 1, struct.pack(info.byteorder + "HH", value, 0)))
    if info.orientation != 1:
        entries.append(Entry(ORIENTATION, SHORT, 1, struct.pack(info.byteorder + "HH", info.orientation, 0)))
    found: dict[str, Any] = {"exif": exif_block(info.byteorder, entries, info.ifds)}
    found["xmp"] = next((tag[3] for tag in info.tags if tag[0] == _XMP and isinstance(tag[3], bytes)), None)
    if info.resolution and info.resolution[1] in _PER_UNIT:
        found["dpi"] = usable_dpi(value * _PER_UNIT[info.resolution[1]] for value in info.resolution[0])
    is_gray = info.photometric in (MIN_IS_WHITE, MIN_IS_BLACK)
    found["primaries"] = None if info.icc_profile or is_gray else _primaries_of(info)
    return found


def _primaries_of(info: TiffInfo) -> tuple[float, ...] | None:
    """x and y of white, red, green and blue where they are not those of sRGB."""
    numbers: dict[int, list[float]] = {}
    for code, kind, count, value, _ in info.tags:
        if code in (WHITE_POINT, PRIMARIES) and kind == _RATIONAL and len(value) == 2 * count and all(value[1::2]):
            numbers[code] = [above / below for above, below in zip(value[::2], value[1::2], strict=True)]
    white = numbers.get(WHITE_POINT, _D65)
    colors = numbers.get(PRIMARIES, ())
    return own_primaries([*white, *colors]) if len(white) == 2 and len(colors) == 6 else None


def info_of(width: int, height: int, bit_depth: int, extras: dict[str, Any]) -> TiffInfo:
    """The header of a TIFF that is made of an image of another format, with the EXIF, XMP and profile it came with.

    Args:
        width: of the image.
        height: likewise.
        bit_depth: of its numbers.
        extras: see `vheatir.image_io.formats.Stored`.
    """
    info = TiffInfo(width, height, bit_depth, RGB, icc_profile=extras.get("icc_profile"))
    exif = extras.get("exif")
    if exif:
        block = exif.removeprefix(b"Exif\0\0")
        turned = orientation_of(exif)
        first: list[Entry] = []
        try:
            order, first = first_ifd(block)
            info.ifds = read_ifds(io.BytesIO(block))
            info.byteorder = "<" if order == "<" else ">"
        except (ValueError, struct.error):
            first = []  # all but the orientation is lost, which `vheatir.image_io.write.lost` says
        info.tags = [tag for entry in first for tag in _tags_of(entry, info.byteorder)]
        info.tags += [(ORIENTATION, SHORT, 1, turned, True)] if turned != 1 else []
    if extras.get("xmp"):
        info.tags.append((_XMP, 1, len(extras["xmp"]), extras["xmp"], True))
    if extras.get("primaries") and not info.icc_profile:
        numbers = [part for value in extras["primaries"] for part in (round(value * 1e5), 100000)]
        info.tags.append((WHITE_POINT, _RATIONAL, 2, tuple(numbers[:4]), True))
        info.tags.append((PRIMARIES, _RATIONAL, 6, tuple(numbers[4:]), True))
    dpi = usable_dpi(extras.get("dpi"))
    if dpi:
        info.resolution = (dpi, 2)
    return info


def _tags_of(entry: Entry, order: str) -> list[tuple]:
    """An entry of EXIF's first directory as tifffile takes it; none where it is not for a TIFF."""
    text = entry.kind == ASCII and entry.tag in _TEXTS
    if entry.count and (text or (entry.kind == BYTE and entry.tag in TEXTS_OF_WINDOWS)):
        return [(entry.tag, entry.kind, entry.count, entry.value[: entry.count], True)]
    if entry.tag in STARS and entry.kind == SHORT and entry.count == 1:
        return [(entry.tag, SHORT, 1, struct.unpack_from(order + "H", entry.value)[0], True)]
    return []


def inverted(values: np.ndarray, info: TiffInfo) -> np.ndarray:
    """Colors of a min-is-white image with black as 0, and the other way round; alpha, the second channel, stays."""
    top = np.iinfo(info.dtype).max if info.bit_depth != 32 else values.dtype.type(1)
    if values.ndim == 2 or values.shape[2] == 1:
        return top - values
    return np.stack([top - values[..., 0], values[..., 1]], axis=-1)
