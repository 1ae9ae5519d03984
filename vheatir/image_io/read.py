"""Pictures in and out: 8 and 16 bits, gray and colour, alpha, colour profile and EXIF survive the way.

`read_image` gives float pixels in [0, 1] and whatever `write_image` needs to write the result back as the same kind of
file. Pixels stay in the order in which they are stored: an EXIF orientation is carried over, not applied.
"""

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image as Pillow

from vheatir.errors import UserError
from vheatir.image_io.formats import DEPTHS, FORMATS, Image, Stored, format_of
from vheatir.image_io.png import read_png16, scan_png
from vheatir.image_io.tiff import TiffRows, read_tiff, scan_tiff
from vheatir.image_io.write import write_image

__all__ = ["DEPTHS", "FORMATS", "MAX_PIXELS", "Image", "Stored", "open_image", "read_image", "write_image"]

MAX_PIXELS = 180_000_000  # as float32 RGB about 2 GiB; a small file may claim any size

_SIGNATURES = (
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"BM", "BMP"),
    (b"GIF8", "GIF"),
    (b"%PDF", "PDF"),
)
_pillow_lock = threading.Lock()  # Pillow's limit is global


def read_image(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> Image:
    """Read a PNG, JPEG, TIFF, BMP or WebP file; see `open_image` for what is refused."""
    stored = open_image(path, max_pixels=max_pixels)
    try:
        pixels, alpha = stored.floats(0, stored.height)
    except MemoryError:
        raise UserError(f"{path}: not enough memory to read it") from None
    finally:
        stored.close()
    pixels = np.ascontiguousarray(pixels if stored.colors == 3 else pixels[..., 0])
    alpha = None if alpha is None else np.ascontiguousarray(alpha)
    return Image(pixels, alpha, stored.bit_depth, stored.suffix, stored.extras, stored.notes)


def open_image(path: str | Path, *, max_pixels: int = MAX_PIXELS, by_rows: int | None = None) -> Stored:
    """A PNG, JPEG, TIFF, BMP or WebP file in its own numbers; `close` it after use.

    Decoded as a whole, except that a TIFF of more than `by_rows` pixels is decoded as its rows are asked for, where its
    kind allows that. Raises UserError naming the file when it is missing, empty, truncated, damaged, of another format
    than its suffix says, CMYK, animated, of several pages, or larger than `max_pixels`; what is damaged deep inside a
    file read by rows shows when these rows are read.
    """
    path = Path(path)
    kind = format_of(path)
    with damage_named(path, kind):
        _check_signature(path, kind)
        if kind == "PNG":
            return _read_png(path, max_pixels)
        if kind == "TIFF":
            return _read_tiff(path, max_pixels, by_rows)
        return _read_with_pillow(path, kind, max_pixels)


@contextmanager
def damage_named(path: Path, kind: str) -> Iterator[None]:
    """Turn whatever a decoder raises into a UserError that names the file."""
    try:
        yield
    except UserError:
        raise
    except MemoryError:
        raise UserError(f"{path}: not enough memory to read it") from None
    except OSError as error:
        if error.filename is not None:  # from the file system; a decoder's complaint has no file name
            raise UserError(f"{path}: {error.strerror}") from error
        raise _damaged(path, kind, error) from error
    except Exception as error:  # decoders raise whatever they like on damaged bytes
        raise _damaged(path, kind, error) from error


def _damaged(path: Path, kind: str, error: Exception) -> UserError:
    return UserError(f"{path}: the {kind} file is truncated or damaged ({error}); copy or download it again")


def _check_signature(path: Path, kind: str) -> None:
    with open(path, "rb") as file:
        head = file.read(16)
    if not head:
        raise UserError(f"{path}: the file is empty (0 bytes); copy or download it again")
    found = next((name for signature, name in _SIGNATURES if head.startswith(signature)), None)
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        found = "WEBP"
    if found is None:
        raise UserError(f"{path}: expected a {kind} file, but its content is no known picture format")
    if found != kind:
        raise UserError(f"{path}: the suffix says {kind}, the content is {found}; rename the file to match its content")


def _check_size(path: Path, max_pixels: int, width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise UserError(f"{path}: the header says {width}x{height} pixels; the file is damaged")
    if width * height > max_pixels:
        raise UserError(
            f"{path}: the header says {width}x{height} pixels, more than the limit of {max_pixels / 1e6:g} megapixels; "
            "cut it into parts, or raise the limit if the file can be trusted"
        )


def _read_png(path: Path, max_pixels: int) -> Stored:
    info = scan_png(path, partial(_check_size, path, max_pixels))
    if info.frames > 1:
        raise UserError(f"{path}: an animated PNG of {info.frames} frames; save its frames as single pictures first")
    if info.bit_depth == 16:
        array = read_png16(path, info)
        with open(path, "rb") as file:
            found = _open_with_pillow(file, "PNG").info
    else:
        array, found = _decode_with_pillow(path, "PNG", max_pixels)
    extras = {"png_chunks": info.chunks, "icc_profile": found.get("icc_profile"), "exif": found.get("exif")}
    return _stored(path, array, 16 if info.bit_depth == 16 else 8, extras)


def _read_tiff(path: Path, max_pixels: int, by_rows: int | None) -> Stored:
    info = scan_tiff(path)
    _check_size(path, max_pixels, info.width, info.height)
    extras = {"tiff": info, "icc_profile": info.icc_profile}
    if by_rows is not None and info.width * info.height > by_rows:
        rows = TiffRows.open(path, info)
        if rows is not None:
            named = _named(rows, path)
            size = (info.height, info.width, rows.channels, info.bit_depth)
            return Stored(*size, named, path.suffix, extras, info.notes, rows.close)
    if info.bit_depth == 8:
        array, _ = _decode_with_pillow(path, "TIFF", max_pixels)
        info.alpha = 0  # Pillow has divided premultiplied colours by alpha
        return _stored(path, array, 8, extras, info.notes)
    return _stored(path, read_tiff(path, info), info.bit_depth, extras, info.notes)


def _named(rows: TiffRows, path: Path) -> Callable[[int, int], np.ndarray]:
    def read(start: int, stop: int) -> np.ndarray:
        with damage_named(path, "TIFF"):
            return rows(start, stop)

    return read


def _read_with_pillow(path: Path, kind: str, max_pixels: int) -> Stored:
    array, info = _decode_with_pillow(path, kind, max_pixels)
    extras = {name: info.get(name) for name in ("icc_profile", "exif", "xmp", "dpi", "comment")}
    extras["quantization"] = info.get("quantization")
    notes = ()
    if kind == "WEBP":
        extras["lossless"] = _is_lossless_webp(path)
    if info.get("pictures", 1) > 1:
        extras["xmp"] = None  # it may describe the pictures that are dropped, such as a gain map
        notes = (f"holds {info['pictures']} pictures; only the first one is restored and kept",)
    return _stored(path, array, 8, extras, notes)


def _is_lossless_webp(path: Path) -> bool:
    """Which of the two codecs the first picture chunk of the container names."""
    with open(path, "rb") as file:
        file.seek(12)
        while len(head := file.read(8)) == 8:
            if head[:4] in (b"VP8L", b"VP8 "):
                return head[:4] == b"VP8L"
            size = int.from_bytes(head[4:], "little")
            file.seek(size + size % 2, 1)
    return False


def _stored(path: Path, array: np.ndarray, depth: int, extras: dict[str, Any], notes: tuple[str, ...] = ()) -> Stored:
    pixels = array.reshape(*array.shape[:2], -1)
    return Stored(*pixels.shape, depth, lambda start, stop: pixels[start:stop], path.suffix, extras, notes)


def _decode_with_pillow(path: Path, kind: str, max_pixels: int) -> tuple[np.ndarray, dict[str, Any]]:
    """uint8 pixels as HW, or HWC with 2 to 4 channels, and Pillow's dictionary of metadata."""
    with open(path, "rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # decoders warn about odd metadata, which the user can do nothing about
        picture = _open_with_pillow(file, kind)
        _check_size(path, max_pixels, *picture.size)
        frames = getattr(picture, "n_frames", 1)
        info = dict(picture.info)
        if picture.format == "MPO":  # a JPEG with further pictures behind it, as many phones write
            info["pictures"] = frames
        elif frames > 1:
            raise UserError(f"{path}: holds {frames} pictures (animation or pages); save them as single files first")
        if picture.mode in ("CMYK", "YCCK", "LAB", "RGBX", "RGBa", "La", "F", "I") or picture.mode.startswith("I;"):
            raise UserError(f"{path}: colours are stored as {picture.mode}; convert the file to RGB or gray first")
        info["quantization"] = getattr(picture, "quantization", None)
        picture.load()
        target = {"1": "L", "P": "RGB", "PA": "RGBA", "YCbCr": "RGB"}.get(picture.mode, picture.mode)
        if "transparency" in info:
            target = "LA" if target == "L" else "RGBA"
        return np.asarray(picture if picture.mode == target else picture.convert(target)), info


def _open_with_pillow(file: BinaryIO, kind: str) -> Pillow.Image:
    """Open without Pillow's own limit on pixels: `_check_size` applies ours before anything is decoded."""
    with _pillow_lock:
        limit, Pillow.MAX_IMAGE_PIXELS = Pillow.MAX_IMAGE_PIXELS, None
        try:
            return Pillow.open(file, formats=[kind])
        finally:
            Pillow.MAX_IMAGE_PIXELS = limit
