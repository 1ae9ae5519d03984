"""Pictures in and out: 8 and 16 bits, gray and colour, alpha, colour profile and EXIF survive the way.

`read_image` gives float pixels in [0, 1] and whatever `write_image` needs to write the result back as the same kind of
file. Pixels stay in the order in which they are stored: an EXIF orientation is carried over, not applied.
"""

import threading
import warnings
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np
from PIL import Image as Pillow

from vheatir.errors import UserError
from vheatir.files import atomic_open
from vheatir.image_png import metadata_chunks, read_png16, scan_png, write_png
from vheatir.image_tiff import TiffInfo, read_tiff, scan_tiff, write_tiff

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
MAX_PIXELS = 180_000_000  # as float32 RGB about 2 GiB; a small file may claim any size
QUALITY = 95  # of written JPEG (with full-resolution colour) and lossy WebP

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
_ROWS = 256  # rows turned into integers at a time, so that no second float copy of the image exists
_pillow_lock = threading.Lock()  # Pillow's limit is global


@dataclass
class Image:
    """A picture and what is needed to write it back.

    pixels: float32, HWC RGB or HW, in [0, 1] (a float TIFF may leave it). alpha: float32 HW in [0, 1] or None; the
    colour under it is as stored. bit_depth: 8, 16, or 32 for float. extras: metadata for the writer. notes: what will
    not survive, for the user to read.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    bit_depth: int = 8
    suffix: str = ".png"
    extras: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def format_of(path: Path) -> str:
    """The format that a file name stands for; UserError when it stands for none of ours."""
    try:
        return FORMATS[path.suffix.lower()]
    except KeyError:
        raise UserError(
            f"{path}: the suffix {path.suffix!r} is not one of {', '.join(FORMATS)}; rename or convert the file"
        ) from None


def read_image(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> Image:
    """Read a PNG, JPEG, TIFF, BMP or WebP file.

    Raises UserError naming the file when it is missing, empty, truncated, damaged, of another format than its suffix
    says, CMYK, animated, of several pages, or larger than `max_pixels`.
    """
    path = Path(path)
    kind = format_of(path)
    try:
        _check_signature(path, kind)
        if kind == "PNG":
            return _read_png(path, max_pixels)
        if kind == "TIFF":
            return _read_tiff(path, max_pixels)
        return _read_with_pillow(path, kind, max_pixels)
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


def _read_png(path: Path, max_pixels: int) -> Image:
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
    return _image(path, array, 16 if info.bit_depth == 16 else 8, extras)


def _read_tiff(path: Path, max_pixels: int) -> Image:
    info = scan_tiff(path)
    _check_size(path, max_pixels, info.width, info.height)
    extras = {"tiff": info, "icc_profile": info.icc_profile}
    if info.bit_depth == 8:
        array, _ = _decode_with_pillow(path, "TIFF", max_pixels)
        info.alpha = 0  # Pillow has divided premultiplied colours by alpha
        return _image(path, array, 8, extras)
    return _image(path, read_tiff(path, info), info.bit_depth, extras)


def _read_with_pillow(path: Path, kind: str, max_pixels: int) -> Image:
    array, info = _decode_with_pillow(path, kind, max_pixels)
    extras = {name: info.get(name) for name in ("icc_profile", "exif", "xmp", "dpi", "comment")}
    notes = ()
    if kind == "WEBP":
        extras["lossless"] = _is_lossless_webp(path)
    if info.get("pictures", 1) > 1:
        extras["xmp"] = None  # it may describe the pictures that are dropped, such as a gain map
        notes = (f"holds {info['pictures']} pictures; only the first one is restored and kept",)
    return _image(path, array, 8, extras, notes)


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


def _image(path: Path, array: np.ndarray, depth: int, extras: dict[str, Any], notes: tuple[str, ...] = ()) -> Image:
    """Split off alpha and bring integers to [0, 1]."""
    channels = 1 if array.ndim == 2 else array.shape[2]
    parts = [array, None]
    if channels in (2, 4):
        parts = [array[..., 0] if channels == 2 else array[..., :3], array[..., -1]]
    for index, part in enumerate(parts):
        if part is not None:
            parts[index] = part.astype(np.float32)
            if depth != 32:
                parts[index] /= 2**depth - 1
    return Image(*parts, bit_depth=depth, suffix=path.suffix, extras=extras, notes=notes)


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


def write_image(path: str | Path, image: Image) -> None:
    """Write a picture in the format of the path's suffix, atomically; pixels are clipped to [0, 1] unless float.

    Metadata of the file it was read from is carried over; between formats only the colour profile and EXIF are.
    """
    path = Path(path)
    kind = format_of(path)
    if image.bit_depth not in DEPTHS[kind]:
        raise ValueError(f"{path}: {kind} cannot hold {image.bit_depth} bits; set bit_depth to one of {DEPTHS[kind]}")
    if image.alpha is not None and kind == "JPEG":
        raise ValueError(f"{path}: JPEG cannot hold alpha; set alpha to None or write another format")
    array = _to_integers(image.pixels, image.bit_depth)
    if image.alpha is not None:
        array = np.dstack([array, _to_integers(image.alpha, image.bit_depth)])
    try:
        with atomic_open(path) as file:
            _encode(file, array, kind, image.extras)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error


def _encode(file: BinaryIO, array: np.ndarray, kind: str, extras: dict[str, Any]) -> None:
    icc_profile, exif = extras.get("icc_profile"), extras.get("exif")
    if kind == "PNG":
        write_png(file, array, extras.get("png_chunks", metadata_chunks(icc_profile, exif)))
    elif kind == "TIFF":
        height, width = array.shape[:2]
        info = extras.get("tiff") or TiffInfo(width, height, 8 * array.itemsize, 2, icc_profile=icc_profile)
        write_tiff(file, array, info)
    elif kind == "BMP" and array.ndim == 3 and array.shape[2] in (2, 4):  # Pillow writes no alpha that it can read
        conversion = cv2.COLOR_RGBA2BGRA if array.shape[2] == 4 else None
        array = cv2.cvtColor(array, conversion) if conversion else array[..., [0, 0, 0, 1]]
        file.write(cv2.imencode(".bmp", array)[1].tobytes())
    else:
        options = {name: extras[name] for name in ("icc_profile", "exif", "xmp", "dpi", "comment") if extras.get(name)}
        if kind == "JPEG":
            options |= {"quality": QUALITY, "subsampling": 0}
        elif kind == "WEBP":
            options |= {"quality": QUALITY, "lossless": bool(extras.get("lossless")), "exact": True, "method": 4}
        Pillow.fromarray(array).save(file, kind, **options)


def _to_integers(pixels: np.ndarray, depth: int) -> np.ndarray:
    """Round [0, 1] to integers of 8 or 16 bits; float (32) is passed on unchanged."""
    if depth == 32:
        return pixels.astype(np.float32, copy=False)
    result = np.empty(pixels.shape, dtype=np.uint8 if depth == 8 else np.uint16)
    for top in range(0, len(pixels), _ROWS):
        strip = np.clip(pixels[top : top + _ROWS], 0, 1) * np.float32(2**depth - 1)
        result[top : top + _ROWS] = np.rint(strip, out=strip)
    return result
