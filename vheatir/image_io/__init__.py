"""Pictures in and out: 8 and 16 bits, gray and colour, alpha, colour profile and EXIF survive the way."""

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
    "open_bytes",
    "open_image",
    "read_image",
    "write_image",
]
