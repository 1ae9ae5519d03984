"""Conversions of image arrays: 8 bits and floats, luma and gray.

Float images are HWC RGB or HW in [0, 1]; `_u8` images are uint8, HWC RGB or HW.
"""

import cv2
import numpy as np

_LUMA_BT601 = np.array([65.481, 128.553, 24.966]) / 255.0  # limited range: black is 16, white is 235


def check_image(image: np.ndarray, name: str) -> None:
    """Raise TypeError or ValueError, naming `name`, for what is not a non-empty HWC RGB or HW array."""
    if not isinstance(image, np.ndarray):
        raise TypeError(f"{name} must be a NumPy array, got {type(image).__name__}")
    if image.ndim != 2 and not (image.ndim == 3 and image.shape[2] == 3):
        raise ValueError(
            f"{name} must be HWC with 3 channels or HW, got shape {image.shape}; convert or squeeze it first"
        )
    if 0 in image.shape:
        raise ValueError(f"{name} is empty: shape {image.shape}")


def check_uint8(image: np.ndarray, name: str) -> None:
    """As `check_image`, and TypeError where the array is not uint8."""
    check_image(image, name)
    if image.dtype != np.uint8:
        raise TypeError(f"{name} must be uint8, got {image.dtype}; convert with vheatir.image_io.to_uint8")


def to_uint8(image: np.ndarray) -> np.ndarray:
    """Clamp a float image to [0, 1], scale by 255, round to the nearest integer (ties to even).

    The last step of every restoration protocol. Computed in the image's own precision.
    """
    check_image(image, "image")
    if not np.issubdtype(image.dtype, np.floating):
        raise TypeError(f"image must be floating point in [0, 1], got {image.dtype}")
    if not np.isfinite(image).all():
        raise ValueError("image holds NaN or infinity, expected finite values; look at what produced it")
    return np.rint(np.clip(image, 0.0, 1.0) * 255.0).astype(np.uint8)


def to_float(image_u8: np.ndarray) -> np.ndarray:
    """A uint8 image as float32 in [0, 1]."""
    check_uint8(image_u8, "image_u8")
    return image_u8.astype(np.float32) / np.float32(255.0)


def luma_bt601(rgb_u8: np.ndarray) -> np.ndarray:
    """BT.601 luma of a uint8 HWC RGB image in limited range (16-235), rounded to uint8 HW.

    The gray of the JPEG protocol, MATLAB's `rgb2ycbcr` channel Y: 16 + (65.481 R + 128.553 G + 24.966 B) / 255.
    """
    check_uint8(rgb_u8, "rgb_u8")
    if rgb_u8.ndim != 3:
        raise ValueError(
            f"rgb_u8 must be HWC with 3 channels, got shape {rgb_u8.shape}; a gray image has no luma to take"
        )
    return np.rint(float_luma_bt601(rgb_u8)).astype(np.uint8)


def float_luma_bt601(rgb: np.ndarray) -> np.ndarray:
    """BT.601 luma in limited range, not rounded: float64 HW of HWC RGB on the 0-255 scale."""
    return rgb @ _LUMA_BT601 + 16.0


def gray_opencv(rgb_u8: np.ndarray) -> np.ndarray:
    """Full-range gray of a uint8 HWC RGB image as OpenCV computes it (0.299 R + 0.587 G + 0.114 B), uint8 HW.

    The gray of the denoising protocol for decoded arrays. Reading a file with OpenCV's gray flag leaves the conversion
    to the file format's library, which may round differently by a gray value or two.
    """
    check_uint8(rgb_u8, "rgb_u8")
    if rgb_u8.ndim != 3:
        raise ValueError(f"rgb_u8 must be HWC with 3 channels, got shape {rgb_u8.shape}; the image is gray already")
    return cv2.cvtColor(rgb_u8, cv2.COLOR_RGB2GRAY)
