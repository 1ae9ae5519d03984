"""OpenCV's decoders, which are fast, kept from turning pixels and from ending in errors of their own."""

import cv2
import numpy as np


def decode_with_opencv(data: bytes, flags: int) -> np.ndarray | None:
    """`cv2.imdecode` of pixels as they are stored; None where it refuses, also for sides beyond its limits."""
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), flags | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:
        return None
