"""What Pillow reads for us: BMP, WebP, and what is unusual in the other formats."""

import io
import threading
from typing import Any, BinaryIO

import numpy as np
from PIL import Image as Pillow

from vheatir.errors import UserError
from vheatir.image_io.formats import Encoded, Stored
from vheatir.image_io.tiff_exif import orientation_of
from vheatir.utils.quiet import quiet

_UNREADABLE = ("CMYK", "YCCK", "LAB", "RGBX", "RGBa", "La", "F", "I")
_lock = threading.Lock()  # Pillow's limit is global


def open_with_pillow(file: BinaryIO, kind: str) -> Pillow.Image:
    """Open without Pillow's own limit on pixels: `Encoded.check_size` applies ours before anything is decoded."""
    with _lock:
        limit, Pillow.MAX_IMAGE_PIXELS = Pillow.MAX_IMAGE_PIXELS, None
        try:
            return Pillow.open(file, formats=[kind])
        finally:
            Pillow.MAX_IMAGE_PIXELS = limit


def decode_with_pillow(
    encoded: Encoded, kind: str, data: bytes | None = None, page: int | None = None
) -> tuple[np.ndarray, dict[str, Any]]:
    """uint8 pixels as HW, or HWC with 2 to 4 channels, and Pillow's dictionary of metadata.

    Args:
        encoded: the file.
        kind: its format, as Pillow calls it.
        data: decode these bytes in its place.
        page: of a TIFF, the page that is wanted; without it, more than one image is refused.
    """
    file = encoded.file if data is None else io.BytesIO(data)
    file.seek(0)
    with quiet():  # decoders warn about odd metadata
        image = open_with_pillow(file, kind)
        encoded.check_size(*image.size)
        frames = getattr(image, "n_frames", 1)
        if page is not None:
            image.seek(page)
        elif frames > 1 and image.format != "MPO":
            raise UserError(f"{encoded.name}: holds {frames} images (an animation); save them as single files first")
        if image.mode in _UNREADABLE or image.mode.startswith("I;"):
            raise UserError(f"{encoded.name}: colors are stored as {image.mode}; convert the file to RGB or gray")
        info: dict[str, Any] = {str(name): value for name, value in image.info.items()}
        image.load()
        target = {"1": "L", "P": "RGB", "PA": "RGBA", "YCbCr": "RGB"}.get(image.mode, image.mode)
        if "transparency" in info:
            target = "LA" if target == "L" else "RGBA"
        return np.asarray(image if image.mode == target else image.convert(target)), info


def read_bmp(encoded: Encoded) -> Stored:
    """A BMP file."""
    array, info = decode_with_pillow(encoded, "BMP")
    return Stored.of_array(array, 8, suffix=encoded.suffix, extras={"dpi": info.get("dpi")})


def read_webp(encoded: Encoded) -> Stored:
    """A WebP file of one image."""
    array, info = decode_with_pillow(encoded, "WEBP")
    extras = {name: info.get(name) for name in ("icc_profile", "exif", "xmp")}
    extras["lossless"] = _is_lossless(encoded.file)
    turned = orientation_of(extras["exif"])
    return Stored.of_array(array, 8, suffix=encoded.suffix, extras=extras, orientation=turned)


def _is_lossless(file: BinaryIO) -> bool:
    """Which of the two codecs the first image chunk of the container names."""
    file.seek(12)
    while len(head := file.read(8)) == 8:
        if head[:4] in (b"VP8L", b"VP8 "):
            return head[:4] == b"VP8L"
        size = int.from_bytes(head[4:], "little")
        file.seek(size + size % 2, 1)
    return False
