"""Images in and out: 8 and 16 bits, gray and color, alpha, color profile and EXIF survive the way."""

from vheatir.image_io.arrays import gray_opencv, luma_bt601, to_float, to_uint8
from vheatir.image_io.formats import DEPTHS, FORMATS, MAX_PIXELS, Image, Stored
from vheatir.image_io.read import READERS, decode_image, decode_opencv_gray, open_bytes, open_image, read_image
from vheatir.image_io.write import write_image

__all__ = [
    "DEPTHS",
    "FORMATS",
    "MAX_PIXELS",
    "READERS",
    "Image",
    "Stored",
    "decode_image",
    "decode_opencv_gray",
    "gray_opencv",
    "luma_bt601",
    "open_bytes",
    "open_image",
    "read_image",
    "to_float",
    "to_uint8",
    "write_image",
]
