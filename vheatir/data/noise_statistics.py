"""What noise looks like: strength, autocorrelation and brightness dependence of luma and chroma."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import cv2
import numpy as np

from vheatir.data.camera import RGB_TO_YCC

LAGS = 4
_SEGMENT = 64  # pixels of a row whose mean is taken
_SCENE = 12  # pixels: changes over more than this are the scene's, not stripes


@dataclass(frozen=True)
class NoiseStatistics:
    """Figures of one noisy image against its clean one; strengths on the 0-255 scale.

    Attributes:
        std: standard deviation over the three colors.
        luma_std: of luma (BT.601, full range).
        chroma_std: mean of those of the two chroma planes.
        ratio: chroma_std / luma_std.
        luma: autocorrelation of luma at 1 to 4 pixels, mean of rows and columns.
        chroma: the same, mean of the two planes.
        bias: largest mean of the noise over the image, of luma and the two chroma planes, without its sign.
        dark_std: of luma in the darkest quarter of the clean image.
        bright_std: in the brightest quarter.
        rows: stripes along rows: standard deviation of the mean luma of 64 neighbors in a row over that of luma, where
            changes over more than about 12 pixels are taken out; 0.125 for white noise, more for smoothed noise.
        columns: the same along columns.
        direction: autocorrelation of luma at one pixel along rows, minus that along columns, without its sign.
    """

    std: float
    luma_std: float
    chroma_std: float
    ratio: float
    luma: tuple[float, ...]
    chroma: tuple[float, ...]
    bias: float
    dark_std: float
    bright_std: float
    rows: float
    columns: float
    direction: float

    def flat(self) -> dict[str, float]:
        """One number for each name, with `luma_1` … `chroma_4`."""
        table = asdict(self)
        lags = {f"{name}_{lag}": value for name in ("luma", "chroma") for lag, value in enumerate(table.pop(name), 1)}
        return table | lags


def _autocorrelation(plane: np.ndarray) -> np.ndarray:
    """(2, LAGS): along rows and along columns, at 1 to `LAGS` pixels."""
    variance = max(float((plane * plane).mean()), 1e-12)
    found = [[(one[:, lag:] * one[:, :-lag]).mean() for lag in range(1, LAGS + 1)] for one in (plane, plane.T)]
    return np.array(found) / variance


def _stripes(luma: np.ndarray) -> tuple[float, float]:
    """`rows` and `columns` of `NoiseStatistics`."""
    detail = luma - cv2.GaussianBlur(luma, (0, 0), _SCENE, borderType=cv2.BORDER_REFLECT)
    found = []
    for plane in (detail, detail.T):
        length = min(_SEGMENT, plane.shape[1])
        whole = plane[:, : plane.shape[1] // length * length]
        means = whole.reshape(len(plane), -1, length).mean(2)
        found.append(float(means.std() / max(float(detail.std()), 1e-6)))
    return found[0], found[1]


def noise_statistics(noisy: np.ndarray, clean: np.ndarray) -> NoiseStatistics:
    """Measure noisy - clean.

    Args:
        noisy: (H, W, 3) RGB, uint8 or float on the 0-255 scale, more than 4 pixels a side.
        clean: the same without noise.
    """
    if noisy.shape != clean.shape or noisy.ndim != 3 or min(noisy.shape[:2]) <= LAGS:
        raise ValueError(f"expected two RGB images of one size above {LAGS}, got {noisy.shape} and {clean.shape}")
    noise = noisy.astype(np.float32) - clean.astype(np.float32)
    planes = cv2.transform(noise, RGB_TO_YCC).astype(np.float64)
    means = planes.mean((0, 1))
    planes -= means
    luma_std, *chroma_std = planes.std((0, 1))
    brightness = cv2.transform(clean.astype(np.float32), RGB_TO_YCC[:1])
    low, high = np.quantile(brightness, [0.25, 0.75])
    rows, columns = _stripes(planes[..., 0])
    luma, *chroma = (_autocorrelation(planes[..., index]) for index in range(3))
    return NoiseStatistics(
        std=float(noise.std()),
        luma_std=float(luma_std),
        chroma_std=float(np.mean(chroma_std)),
        ratio=float(np.mean(chroma_std) / max(luma_std, 1e-6)),
        luma=tuple(luma.mean(0).tolist()),
        chroma=tuple(np.mean(chroma, axis=(0, 1)).tolist()),
        bias=float(np.abs(means).max()),
        dark_std=float(planes[..., 0][brightness <= low].std()),
        bright_std=float(planes[..., 0][brightness >= high].std()),
        rows=rows,
        columns=columns,
        direction=float(abs(luma[0, 0] - luma[1, 0])),
    )


def spread(found: Sequence[NoiseStatistics]) -> dict[str, tuple[float, float, float]]:
    """For each figure the 10 %, 50 % and 90 % quantiles over images."""
    tables = [statistics.flat() for statistics in found]
    return {name: tuple(np.quantile([table[name] for table in tables], [0.1, 0.5, 0.9])) for name in tables[0]}
