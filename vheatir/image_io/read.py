"""Images in, by one reader for each format, whichever command or data set asks.

Pixels stay in the order in which they are stored: an EXIF orientation is carried over, not applied, except for data
sets (`decode_image`) and for the eye.
"""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

import vheatir.image_io.heif as heif
import vheatir.image_io.jpeg as jpeg
import vheatir.image_io.pillow as pillow
import vheatir.image_io.png as png
import vheatir.image_io.pnm as pnm
import vheatir.image_io.raw as raw
import vheatir.image_io.tiff as tiff
from vheatir.errors import UserError
from vheatir.image_io.formats import FORMATS, MAX_PIXELS, Encoded, Image, Stored, beyond_white, format_of, upright

READERS: dict[str, Callable[[Encoded], Stored]] = {
    "PNG": png.read,
    "JPEG": jpeg.read,
    "TIFF": tiff.read,
    "BMP": pillow.read_bmp,
    "WEBP": pillow.read_webp,
    "PNM": pnm.read,
    "HEIF": heif.read_heif,
    "AVIF": heif.read_avif,
    "RAW": raw.read,
}
_SIGNATURES = (
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"BM", "BMP"),
    (b"P5", "PNM"),
    (b"P6", "PNM"),
    (b"GIF8", "GIF"),
    (b"%PDF", "PDF"),
)


def read_image(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> Image:
    """Read an image file of one of `FORMATS`; see `open_image` for what is refused.

    Where premultiplied colors of 8 or 16 bits lie above alpha, the pixels are white; what is beyond that is among the
    extras, and `write_image` adds it in a TIFF of the same size.
    """
    stored = open_image(path, max_pixels=max_pixels)
    extras = stored.extras
    try:
        pixels, alpha = stored.floats(0, stored.height, whole=stored.bit_depth == 32)
        if stored.premultiplied and stored.bit_depth != 32:
            values = stored.rows(0, stored.height) / np.float32(2**stored.bit_depth - 1)
            beyond = beyond_white(values[..., :-1], values[..., -1])
            extras = {**extras, "beyond_white": beyond} if beyond.any() else extras
    except MemoryError:
        raise UserError(f"{path}: not enough memory to read it") from None
    finally:
        stored.close()
    pixels = np.ascontiguousarray(pixels if stored.colors == 3 else pixels[..., 0])
    alpha = None if alpha is None else np.ascontiguousarray(alpha)
    return Image(pixels, alpha, stored.bit_depth, stored.suffix, extras, stored.notes)


def open_image(path: str | Path, *, max_pixels: int = MAX_PIXELS, by_rows: int | None = None) -> Stored:
    """An image file of one of `FORMATS` in its own numbers; `close` it after use.

    Decoded as a whole, except that a TIFF of more than `by_rows` pixels is decoded as its rows are asked for, where its
    kind allows that. Raises UserError naming the file when it is missing, empty, truncated, damaged, of another format
    than its suffix says, CMYK, animated, of several pages, of a codec that is not there, or larger than `max_pixels`;
    what is damaged deep inside a file read by rows shows when these rows are read.

    Args:
        path: of the file.
        max_pixels: height times width above which it is refused.
        by_rows: pixels above which a TIFF is decoded by rows; None never does.
    """
    path = Path(path)
    wanted = format_of(path)
    with damage_named(str(path), wanted):
        file = open(path, "rb")  # noqa: SIM115 (an image read by rows stays open)
        try:
            stored = _enter(Encoded(str(path), file, max_pixels, by_rows), wanted)
        except BaseException:
            file.close()
            raise
        if not stored.by_rows:
            file.close()
        return stored


def decode_image(data: bytes, name: str) -> np.ndarray:
    """The image in `data`, of whatever format, as data sets take it: uint8, HWC RGB or, for a gray file, HW.

    16-bit values are divided by 257 and rounded (65535 becomes 255); transparency is dropped; EXIF orientation is
    applied. Floating-point files, cut files and what is no image are a UserError that begins with `name`.
    """
    return open_bytes(data, name).eight_bits(name)


def open_bytes(data: bytes, name: str) -> Stored:
    """The pixels of the image in `data`, of whatever format; a UserError begins with `name`."""
    with damage_named(name, "image"):
        return _enter(Encoded(name, io.BytesIO(data), metadata=False), None)


def decode_opencv_gray(data: bytes, name: str) -> np.ndarray:
    """uint8 HW as OpenCV's gray read gives it, by which the published denoising tables were made.

    Its decoders of PNG, JPEG and BMP convert to gray themselves, which is not the same as converting afterwards.
    """
    stored = open_bytes(data, name)
    image = stored.eight_bits(name)
    if image.ndim == 2:
        return image
    if stored.bit_depth == 8 and not stored.has_alpha and kind_of(data[:16]) in ("PNG", "JPEG", "BMP"):
        flags = cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION
        gray = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
        if gray is not None:
            return np.ascontiguousarray(upright(gray, stored.orientation))
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)


def kind_of(head: bytes) -> str | None:
    """The format that a file's first 64 bytes stand for (16 do for most), None for one that is not known."""
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    found = next((name for signature, name in _SIGNATURES if head.startswith(signature)), None)
    return found or heif.kind_of_boxes(head)


def _enter(encoded: Encoded, wanted: str | None) -> Stored:
    """The one way to the readers; `wanted` is the format that the file must have, None: any."""
    head = encoded.file.read(64)
    if not head:
        raise UserError(f"{encoded.name}: the file is empty (0 bytes); copy or download it again")
    found = kind_of(head)
    if wanted == "RAW" and found in ("TIFF", None):  # most are TIFFs inside, the others have signatures of their own
        found = "RAW"
    if found is None:
        what = "an image" if wanted is None else f"a {wanted} file"
        raise UserError(f"{encoded.name}: expected {what}, but its content is no known image format")
    if wanted is not None and found != wanted:
        advice = "rename the file to match its content" if found in FORMATS.values() else "convert the file"
        raise UserError(f"{encoded.name}: the suffix says {wanted}, the content is {found}; {advice}")
    if found not in READERS:
        raise UserError(f"{encoded.name}: a {found} file, expected one of {', '.join(READERS)}; convert it")
    encoded.file.seek(0)
    with damage_named(encoded.name, found):
        stored = READERS[found](encoded)
    if stored.by_rows:
        return replace(stored, rows=_named(stored.rows, encoded.name, found))
    return stored


def _named(rows: Callable[[int, int], np.ndarray], name: str, kind: str) -> Callable[[int, int], np.ndarray]:
    def read(start: int, stop: int) -> np.ndarray:
        with damage_named(name, kind):
            return rows(start, stop)

    return read


@contextmanager
def damage_named(name: str, kind: str) -> Iterator[None]:
    """Turn whatever a decoder raises into a UserError that names the file."""
    try:
        yield
    except UserError:
        raise
    except MemoryError:
        raise UserError(f"{name}: not enough memory to read it") from None
    except Exception as error:  # decoders raise whatever they like on damaged bytes
        if isinstance(error, OSError) and error.filename is not None:  # from the file system
            raise UserError(f"{name}: {error.strerror}") from error
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        why = "" if "object at 0x" in said or "<_io." in said else f" ({said})"
        raise UserError(f"{name}: the {kind} file is truncated or damaged{why}; copy or download it again") from error
