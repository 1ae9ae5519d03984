"""Fidelity of a restored image to its target: PSNR, SSIM and PSNR-B, one protocol each, in float64.

The public functions take what a protocol compares: two uint8 images of equal shape, HWC RGB or HW (gray).

    border  pixels cut from each side before comparing (0 in the tables of denoising and JPEG artifact removal)
    luma    compare BT.601 luma as MATLAB's rgb2ycbcr gives it for uint8 images (16-235, rounded) instead of R, G and B;
            a gray image is compared as it is. Toolboxes that leave Y unrounded differ by hundredths of a dB.

Metrics of a set are means over its images. `scores` gives all three at once; `scores_of_degraded`
measures an input that is not an 8-bit image, such as noise that was neither clipped nor rounded.
"""

import math
import operator
from functools import cache
from typing import TypedDict

import cv2
import numpy as np

from vheatir.image_io.arrays import float_luma_bt601, luma_bt601

PEAK = 255.0
BLOCK = 8  # side of a JPEG block
WINDOW = 11
WINDOW_SIGMA = 1.5


class Scores(TypedDict):
    """The three metrics of one comparison: dB, 1, dB."""

    psnr: float
    ssim: float
    psnrb: float


def psnr(restored: np.ndarray, target: np.ndarray, *, border: int = 0, luma: bool = False) -> float:
    """Peak signal-to-noise ratio in dB: 10 log10(255^2 / MSE), the MSE over all pixels and channels; inf when equal.

    Args:
        restored: HWC RGB or HW, uint8.
        target: of the same shape and type.
        border: pixels cut off each side first.
        luma: compare BT.601 luma instead of the three channels.
    """
    return _psnr(*_prepare(restored, target, border, luma))


def ssim(restored: np.ndarray, target: np.ndarray, *, border: int = 0, luma: bool = False) -> float:
    """Structural similarity (Wang et al., 2004); 1 when equal.

    11x11 Gaussian window of sigma 1.5, population covariance, K1 = 0.01, K2 = 0.03, range 255; mean over the
    positions where the window lies inside the image, then over the channels. Both sides must be at least 11 after
    cutting the border.

    Args:
        restored: HWC RGB or HW, uint8.
        target: of the same shape and type.
        border: pixels cut off each side first.
        luma: compare BT.601 luma instead of the three channels.
    """
    return _ssim(*_prepare(restored, target, border, luma))


def psnrb(restored: np.ndarray, target: np.ndarray, *, border: int = 0, luma: bool = False) -> float:
    """PSNR with a penalty for visible 8x8 blocks (Yim and Bovik, 2011), in dB; inf when equal and free of blocking.

    10 log10(255^2 / (MSE + BEF)) for each channel, then the mean over the channels. The blocking effect factor BEF is
    measured on the restored image alone (so the order of arguments matters):

        BEF = log2(8) / log2(min(H, W)) * max(0, D_b - D_n)

    with D_b, D_n the sums of squared differences of neighbors across and inside block edges, each divided by its
    number of pairs. As in the public code of quantization-guided JPEG artifact correction (QGAC), which later tables
    follow, the number of pairs across edges is H (W // 8 - 1) + W (H // 8 - 1), exact only for sides that are
    multiples of 8. That would be none for a side of 9 to 15 pixels, which has one edge; there, and where a border
    that is no multiple of 8 is cut off, edges are counted as they are. The grid starts at the corner of the uncut
    image. Without an edge, up to 8 pixels on both sides, PSNR-B is PSNR.

    Args:
        restored: HWC RGB or HW, uint8.
        target: of the same shape and type.
        border: pixels cut off each side first.
        luma: compare BT.601 luma instead of the three channels.
    """
    return _psnrb(*_prepare(restored, target, border, luma), border=border)


def scores(restored: np.ndarray, target: np.ndarray, *, border: int = 0, luma: bool = False) -> Scores:
    """`psnr`, `ssim` and `psnrb` of one pair of uint8 images.

    Args:
        restored: HWC RGB or HW, uint8.
        target: of the same shape and type.
        border: pixels cut off each side first.
        luma: compare BT.601 luma instead of the three channels.
    """
    return _scores(*_prepare(restored, target, border, luma), border)


def scores_of_degraded(degraded: np.ndarray, target: np.ndarray, *, border: int = 0, luma: bool = False) -> Scores:
    """The same three for a float image on the [0, 1] scale, taken as it is: neither clipped nor rounded.

    This reproduces the published "noisy" rows; clipping and rounding first would raise them, by 0.8 dB at sigma 50.

    Args:
        degraded: HWC RGB or HW, float; values may leave [0, 1].
        target: uint8, of the same shape.
        border: pixels cut off each side first.
        luma: compare BT.601 luma instead of the three channels; that of `degraded` is not rounded.
    """
    if not isinstance(degraded, np.ndarray) or not np.issubdtype(degraded.dtype, np.floating):
        raise TypeError(
            f"degraded must be a floating point array in [0, 1], got {_kind(degraded)}; use scores for uint8"
        )
    if not np.isfinite(degraded).all():
        raise ValueError("degraded holds NaN or infinity, expected finite values; look at what produced it")
    _check(target, "target")
    _check_pair(degraded, target, border)
    scaled = degraded.astype(np.float64) * PEAK
    if luma and target.ndim == 3:
        scaled = float_luma_bt601(scaled)
        target = luma_bt601(target)
    return _scores(_planes(scaled, border), _planes(target, border), border)


def _kind(value: object) -> str:
    return f"{value.dtype} array" if isinstance(value, np.ndarray) else type(value).__name__


def _check(image: np.ndarray, name: str) -> None:
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        raise TypeError(f"{name} must be a uint8 array, got {_kind(image)}; convert with vheatir.image_io.to_uint8")
    if image.ndim != 2 and not (image.ndim == 3 and image.shape[2] == 3):
        raise ValueError(
            f"{name} must be HWC with 3 channels or HW, got shape {image.shape}; convert or squeeze it first"
        )


def _check_pair(restored: np.ndarray, target: np.ndarray, border: int) -> None:
    if restored.shape != target.shape:
        raise ValueError(f"shapes differ: restored {restored.shape}, target {target.shape}; compare images of one size")
    border = operator.index(border)
    if border < 0 or 2 * border >= min(target.shape[:2]):
        raise ValueError(f"border {border} must be >= 0 and leave something of an image of {target.shape[:2]}")


def _planes(image: np.ndarray, border: int) -> np.ndarray:
    """(C, H, W) in float64 with the border cut off."""
    height, width = image.shape[:2]
    cut = image[border : height - border, border : width - border]
    return np.ascontiguousarray(np.atleast_3d(cut).transpose(2, 0, 1), dtype=np.float64)


def _prepare(restored: np.ndarray, target: np.ndarray, border: int, luma: bool) -> tuple[np.ndarray, np.ndarray]:
    _check(restored, "restored")
    _check(target, "target")
    _check_pair(restored, target, border)
    if luma and target.ndim == 3:
        restored, target = luma_bt601(restored), luma_bt601(target)
    return _planes(restored, border), _planes(target, border)


def _decibel(error: float) -> float:
    return 10.0 * math.log10(PEAK**2 / error) if error > 0 else math.inf


def _scores(restored: np.ndarray, target: np.ndarray, border: int) -> Scores:
    return Scores(
        psnr=_psnr(restored, target), ssim=_ssim(restored, target), psnrb=_psnrb(restored, target, border=border)
    )


def _psnr(restored: np.ndarray, target: np.ndarray) -> float:
    return _decibel(float(np.mean((restored - target) ** 2)))


@cache
def _window() -> np.ndarray:
    offsets = np.arange(WINDOW) - WINDOW // 2
    weights = np.exp(-(offsets**2) / (2 * WINDOW_SIGMA**2))
    return weights / weights.sum()


def _ssim(restored: np.ndarray, target: np.ndarray) -> float:
    if min(target.shape[1:]) < WINDOW:
        raise ValueError(f"SSIM needs at least {WINDOW}x{WINDOW} pixels, got {target.shape[1]}x{target.shape[2]}")
    return float(np.mean([_ssim_plane(a, b) for a, b in zip(restored, target)]))


def _ssim_plane(a: np.ndarray, b: np.ndarray) -> float:
    margin = WINDOW // 2

    def local_mean(plane: np.ndarray) -> np.ndarray:
        return cv2.sepFilter2D(plane, cv2.CV_64F, _window(), _window())[margin:-margin, margin:-margin]

    c1 = (0.01 * PEAK) ** 2
    c2 = (0.03 * PEAK) ** 2
    mean_a = local_mean(a)
    mean_b = local_mean(b)
    variances = local_mean(a * a) - mean_a**2 + local_mean(b * b) - mean_b**2
    covariance = local_mean(a * b) - mean_a * mean_b
    numerator = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return float(np.mean(numerator / ((mean_a**2 + mean_b**2 + c1) * (variances + c2))))


def _psnrb(restored: np.ndarray, target: np.ndarray, border: int) -> float:
    errors = np.mean((restored - target) ** 2, axis=(1, 2))
    return float(np.mean([_decibel(e + _blocking(plane, border % BLOCK)) for e, plane in zip(errors, restored)]))


def _blocking(plane: np.ndarray, phase: int) -> float:
    """The blocking effect factor of one plane whose first `phase` pixels of the 8x8 grid were cut off, on both axes."""
    height, width = plane.shape
    edge_pairs = height * _edges(width, phase) + width * _edges(height, phase)
    inside_pairs = height * (width - 1) + width * (height - 1) - edge_pairs
    if edge_pairs == 0 or inside_pairs == 0:  # the second where a cut leaves two pixels, one on each side of an edge
        return 0.0
    steps = [np.sum(np.diff(plane, axis=1) ** 2, axis=0), np.sum(np.diff(plane, axis=0) ** 2, axis=1)]  # per position
    across = sum(float(step[BLOCK - 1 - phase :: BLOCK].sum()) for step in steps)
    inside = sum(float(step.sum()) for step in steps) - across
    excess = across / edge_pairs - inside / inside_pairs
    return math.log2(BLOCK) / math.log2(min(height, width)) * excess if excess > 0 and min(height, width) > 1 else 0.0


def _edges(side: int, phase: int) -> int:
    """Block edges along a side as QGAC counts them; as they are where that leaves some out of a short or cut side."""
    counted = side // BLOCK - 1
    return counted if counted > 0 and phase == 0 else len(range(BLOCK - 1 - phase, side - 1, BLOCK))
