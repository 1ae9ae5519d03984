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
        advice = _advice_on_type(image)
        raise TypeError(f"expected a NumPy array of float32, float64 or float16 in [0, 1], got {got}; {advice}")
    if not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)) or 0 in image.shape:
        raise ValueError(
            "expected the shape (height, width, 3) for RGB or (height, width) for gray, got "
            f"{image.shape}; {_advice_on_shape(image.shape)}"
        )
    check_values(image)


def _advice_on_type(image: Any) -> str:
    if hasattr(image, "detach"):
        return "of a tensor (3, height, width) give tensor.permute(1, 2, 0).detach().cpu().numpy()"
    if not isinstance(image, np.ndarray):
        return "give np.asarray(image), and 8 bits as np.asarray(image).astype('float32') / 255"
    if image.dtype.kind == "f":  # another order of bytes, or more of them
        return "give image.astype('float32')"
    return "bring integers to [0, 1] first, 8 bits with image.astype('float32') / 255"


def _advice_on_shape(shape: tuple[int, ...]) -> str:
    if len(shape) == 3 and 0 not in shape:
        if shape[2] == 1:
            return "give image[..., 0]"
        if shape[0] in (1, 3):
            return "the channels come last: give " + ("image[0]" if shape[0] == 1 else "image.transpose(1, 2, 0)")
        if shape[2] in (2, 4):
            return "give alpha with alpha=, and the colors without it"
    return "restore the images of a batch one by one"


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
