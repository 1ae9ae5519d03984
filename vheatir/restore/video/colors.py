"""Luma and color differences to RGB and back, in float: swscale's own conversions round down on the way."""

from typing import NamedTuple

import numpy as np

LIMITED = 1  # AVCOL_RANGE_MPEG
FULL = 2  # AVCOL_RANGE_JPEG
BT709 = 1  # AVCOL_SPC_BT709
_BT601 = (0.299, 0.114)
_WEIGHTS = {  # of red and blue in luma, by FFmpeg's numbers of matrices (ITU-T H.273)
    BT709: (0.2126, 0.0722),
    4: (0.30, 0.11),  # FCC
    5: _BT601,
    6: _BT601,
    7: (0.212, 0.087),  # SMPTE 240M
    9: (0.2627, 0.0593),  # BT.2020
    10: (0.2627, 0.0593),
}
_HD = 720  # rows from which players take an unknown matrix for that of BT.709
_CONTAINERS = {8: 1, 10: 64}  # bits of a sample: factor to the numbers of the array, 8 or 16 bits


class Coding(NamedTuple):
    """How colors are stored.

    Attributes:
        matrix: FFmpeg's number; unknown ones stand for BT.709 in HD, else BT.601.
        color_range: FFmpeg's number; all but `FULL` stand for the limited range.
        bits: of a sample, 8 or 10.
        rows: of the frame.
    """

    matrix: int
    color_range: int
    bits: int
    rows: int

    def weights(self) -> tuple[float, float]:
        """Of red and blue in luma."""
        return _WEIGHTS.get(self.matrix, _WEIGHTS[BT709] if self.rows >= _HD else _BT601)

    def scales(self) -> tuple[float, float, float, float]:
        """Black, and white less black, of luma; zero and twice the largest value of the differences."""
        more = 1 << (self.bits - 8)
        if self.color_range == FULL:
            most = 256 * more - 1
            return 0, most, 128 * more, most
        return 16 * more, 219 * more, 128 * more, 224 * more


def to_rgb(planes: np.ndarray, coding: Coding) -> np.ndarray:
    """Float32 (H, W, 3), white 1; values beyond the range stay.

    Args:
        planes: (3, H, W), uint8, or uint16 with the 10 bits at its upper end.
        coding: of the planes.
    """
    black, luma_span, zero, span = coding.scales()
    red, blue = coding.weights()
    numbers = planes.astype(np.float32) / _CONTAINERS[coding.bits]
    y = (numbers[0] - black) / luma_span
    r = y + 2 * (1 - red) / span * (numbers[2] - zero)
    b = y + 2 * (1 - blue) / span * (numbers[1] - zero)
    return np.stack([r, (y - red * r - blue * b) / (1 - red - blue), b], -1)


def from_rgb(pixels: np.ndarray, coding: Coding) -> np.ndarray:
    """Planes as `to_rgb` takes them, rounded to the nearest number.

    Args:
        pixels: float (H, W, 3), white 1.
        coding: of the planes.
    """
    black, luma_span, zero, span = coding.scales()
    red, blue = coding.weights()
    r, g, b = np.moveaxis(pixels, -1, 0)
    y = red * r + (1 - red - blue) * g + blue * b
    differences = [(b - y) * span / (2 * (1 - blue)) + zero, (r - y) * span / (2 * (1 - red)) + zero]
    numbers = np.rint(np.stack([y * luma_span + black, *differences]))
    numbers = numbers.clip(0, (1 << coding.bits) - 1) * _CONTAINERS[coding.bits]
    return numbers.astype(np.uint8 if coding.bits == 8 else np.uint16)
