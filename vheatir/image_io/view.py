"""Images for the eye: as a viewer shows them."""

import io

import numpy as np
from PIL import Image as Pillow
from PIL import ImageCms

from vheatir.image_io.formats import Stored, to_integers, upright


def as_shown(stored: Stored) -> np.ndarray:
    """uint8 HWC in sRGB, upright, over white where alpha lets it through; a profile that cannot be used is ignored."""
    colors, alpha = stored.floats(0, stored.height)
    pixels = _in_srgb(to_integers(colors, 8), stored.extras.get("icc_profile"))
    if alpha is not None:
        share = np.clip(alpha, 0, 1)[..., None]
        pixels = to_integers(pixels / np.float32(255) * share + (1 - share), 8)
    return np.ascontiguousarray(upright(pixels, stored.orientation))


def _in_srgb(pixels: np.ndarray, profile: bytes | None) -> np.ndarray:
    """RGB of uint8 gray or RGB (H, W, 1 or 3) whose numbers a color profile explains."""
    image = Pillow.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            target = ImageCms.createProfile("sRGB")
            return np.asarray(ImageCms.profileToProfile(image, source, target, outputMode="RGB"))
        except (ImageCms.PyCMSError, OSError):  # damaged, or made for other colors than these
            return np.asarray(image.convert("RGB"))
    return np.asarray(image.convert("RGB"))
