"""Pictures in and out: 8 and 16 bits, gray and colour, alpha, colour profile and EXIF survive the way."""

from vheatir.image_io.read import DEPTHS, FORMATS, MAX_PIXELS, Image, Stored, open_image, read_image, write_image

__all__ = ["DEPTHS", "FORMATS", "MAX_PIXELS", "Image", "Stored", "open_image", "read_image", "write_image"]
