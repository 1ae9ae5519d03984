"""What a `Restorer` refuses, each with advice."""

from typing import Any

import numpy as np

from vheatir.errors import UserError
from vheatir.restore.defaults import TASKS

_FLOATS = (np.float16, np.float32, np.float64)
_MAX_VALUE = 16.0  # noise leaves [0, 1] by a few standard deviations; values beyond are on another scale


def check_choices(task: str, shares: dict[str, float]) -> None:
    """UserError for an unknown task, and for a share, such as the strength, out of [0, 1]."""
    if task not in TASKS:
        raise UserError(f"unknown task {task!r}; known: {', '.join(TASKS)}")
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise UserError(f"{name} must lie between 0 (the input) and 1 (fully restored), got {share}")


def check_array(image: Any) -> None:
    """TypeError or ValueError with advice for what `Restorer.restore` cannot take."""
    if not isinstance(image, np.ndarray) or image.dtype not in _FLOATS:
        got = image.dtype if isinstance(image, np.ndarray) else type(image).__name__
        raise TypeError(
            f"expected a NumPy array of float32, float64 or float16 in [0, 1], got {got}; "
            "bring integers to [0, 1] first, 8 bits with image.astype('float32') / 255"
        )
    if not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)) or 0 in image.shape:
        raise ValueError(
            f"expected the shape (height, width, 3) for RGB or (height, width) for gray, got {image.shape}; "
            "give alpha with alpha=, restore the images of a batch one by one"
        )
    check_values(image)


def check_values(image: np.ndarray) -> None:
    """ValueError for NaN, infinity and values on another scale."""
    finite = np.isfinite(image)
    if not finite.all():
        raise ValueError(
            f"the image holds {image.size - np.count_nonzero(finite)} NaN or infinite values; replace them"
        )
    if max(image.max(), -image.min()) > _MAX_VALUE:
        raise ValueError(
            f"the image's values run from {image.min():.4g} to {image.max():.4g}, expected [0, 1] apart from noise; "
            "divide by the value of white"
        )
