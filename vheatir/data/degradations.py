"""Degradations of the benchmark protocols as pure functions of arrays: Gaussian noise and JPEG.

Float images are float32, HWC RGB or HW, in [0, 1]; `_u8` images are uint8, HWC RGB or HW. Nothing here reads a file or
keeps a state; every random number comes from the generator passed in, so a sample is reproducible from its seed alone.
"""

import operator
from collections.abc import Sequence

import cv2
import numpy as np

from vheatir.image_io.arrays import check_image, check_uint8, gray_opencv, luma_bt601, to_float, to_uint8

__all__ = [  # gray_opencv, luma_bt601, to_float and to_uint8 stood here before
    "SUBSAMPLING",
    "add_gaussian_noise",
    "draw_grid_phase",
    "gray_opencv",
    "jpeg_crop",
    "jpeg_roundtrip",
    "luma_bt601",
    "to_float",
    "to_uint8",
]

SUBSAMPLING = {  # of chroma in JPEG files: none, every second column, every second column and row
    "4:4:4": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
    "4:2:2": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_422,
    "4:2:0": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420,
}


def add_gaussian_noise(image: np.ndarray, sigma: float, rng: np.random.Generator | np.random.RandomState) -> np.ndarray:
    """Add white Gaussian noise of standard deviation `sigma` (on the 0-255 scale); neither clipped nor rounded.

    The noise is drawn in float64 in the array's own order (for color: RGB, row by row), which together with
    `np.random.RandomState(0)` gives the noise of the published test protocol. Returns float32 of the same shape.

    Args:
        image: HWC or HW, float on the [0, 1] scale.
        sigma: standard deviation on the 0-255 scale, at least 0.
        rng: where the noise is drawn from.
    """
    check_image(image, "image")
    if not np.issubdtype(image.dtype, np.floating):
        raise TypeError(f"image must be floating point in [0, 1], got {image.dtype}; convert with to_float")
    if not (np.isfinite(sigma) and sigma >= 0):
        raise ValueError(f"sigma must be a finite number >= 0 on the 0-255 scale, got {sigma}")
    return (image + rng.normal(0.0, sigma / 255.0, image.shape)).astype(np.float32)


def jpeg_roundtrip(image_u8: np.ndarray, quality: int, subsampling: str = "4:2:0") -> np.ndarray:
    """Compress to JPEG and decode again, with OpenCV's libjpeg (RGB as YCbCr, one plane for HW).

    Args:
        image_u8: HWC RGB or HW, uint8.
        quality: libjpeg's, an integer from 1 to 100.
        subsampling: of chroma, a key of `SUBSAMPLING`.

    Returns:
        uint8 of the same shape.
    """
    check_uint8(image_u8, "image_u8")
    quality = operator.index(quality)
    if not 1 <= quality <= 100:
        raise ValueError(f"quality must be an integer from 1 to 100, got {quality}")
    if max(image_u8.shape[:2]) > 65500:
        raise ValueError(f"JPEG holds at most 65500 pixels a side, got {image_u8.shape[:2]}; cut the image first")
    if subsampling not in SUBSAMPLING:
        raise ValueError(f"subsampling must be one of {', '.join(SUBSAMPLING)}, got {subsampling!r}")
    color = image_u8.ndim == 3
    source = cv2.cvtColor(image_u8, cv2.COLOR_RGB2BGR) if color else np.ascontiguousarray(image_u8)
    settings = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, SUBSAMPLING[subsampling]]
    done, data = cv2.imencode(".jpg", source, settings)
    if not done:
        raise RuntimeError(f"OpenCV could not encode an image of shape {image_u8.shape} as JPEG")
    decoded = cv2.imdecode(data, cv2.IMREAD_COLOR if color else cv2.IMREAD_GRAYSCALE)
    if decoded is None:
        raise RuntimeError(f"OpenCV could not decode what it encoded, an image of shape {image_u8.shape}")
    return cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB) if color else decoded


def draw_grid_phase(rng: np.random.Generator, period: int = 8) -> tuple[int, int]:
    """A (y, x) position of the JPEG grid: aligned in half the cases, else uniform over 0 .. period - 1 on each axis.

    `period` 8 is the luma grid; a 4:2:0 color file repeats its chroma grid every 16 pixels.
    """
    if rng.random() < 0.5:
        return 0, 0
    return int(rng.integers(period)), int(rng.integers(period))


def jpeg_crop(
    image_u8: np.ndarray,
    size: int,
    qualities: Sequence[int],
    phases: Sequence[tuple[int, int]],
    subsampling: Sequence[str] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """A training pair (degraded, clean) of `size` x `size` that went through one or more JPEG compressions.

    Step i compresses what is there at `qualities[i]`, then cuts `phases[i]` = (y, x) pixels off the top and left, so
    that the 8x8 grid lies at any position in the crop and, with two steps, the second grid is shifted against the
    first (non-aligned double JPEG). `image_u8` is the crop with its context: each side must be at least `size` plus
    the phases of that axis. `subsampling` holds a key of `SUBSAMPLING` for each step; 4:2:0 by default.

    Args:
        image_u8: HWC RGB or HW, uint8: the crop with its context.
        size: side of the crop in pixels.
        qualities: of the compressions, 1 to 100.
        phases: (y, x) pixels cut after each of them.
        subsampling: a key of `SUBSAMPLING` for each; 4:2:0 by default.
    """
    check_uint8(image_u8, "image_u8")
    if not qualities or len(qualities) != len(phases):
        raise ValueError(f"expected one phase for each quality, got {len(qualities)} qualities, {len(phases)} phases")
    if size < 1 or any(shift < 0 for phase in phases for shift in phase):
        raise ValueError(f"size must be >= 1 and phases >= 0, got size {size}, phases {list(phases)}")
    needed = tuple(size + sum(phase[axis] for phase in phases) for axis in (0, 1))
    if image_u8.shape[0] < needed[0] or image_u8.shape[1] < needed[1]:
        raise ValueError(
            f"crop {size} with phases {list(phases)} needs an image of at least {needed}, got {image_u8.shape[:2]}"
        )
    degraded = clean = image_u8
    chroma = subsampling or ["4:2:0"] * len(qualities)
    for quality, (y, x), kept in zip(qualities, phases, chroma, strict=True):
        degraded = jpeg_roundtrip(degraded, quality, kept)[y:, x:]
        clean = clean[y:, x:]
    return np.ascontiguousarray(degraded[:size, :size]), np.ascontiguousarray(clean[:size, :size])
