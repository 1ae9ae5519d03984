"""How strong an image's degradation is: noise level from its pixels, JPEG quality from its tables or its pixels.

Both look at samples, at most `PATCHES` square patches of a large image, so that their cost does not grow with it.
"""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from einops import rearrange

from vheatir.utils.quiet import quiet

# at most so many patches, of so many pixels a side
PATCHES = 9
PATCH = 256
MAX_SIGMA = 255.0

# The example luminance table of the JPEG standard (ITU-T T.81, annex K), row by row; libjpeg scales it by the quality.
_LUMINANCE = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ]
)
_BT601 = np.array([0.299, 0.587, 0.114])
_ROUNDING = 0.30  # mean square that rounding to integers leaves in a luma coefficient at the quality it was stored with
_MEDIAN_OF_NORMAL = statistics.NormalDist().inv_cdf(0.75)  # of the absolute value, at a deviation of one
_ROUNDING_OF_FLOATS = 1e-6  # below it a wavelet coefficient of white 1 is 0; a step of 8 bits makes 1e-4 and more
_LARGE = (
    9  # coefficients, of 2 pixels each, on a side of squares in large flat parts; odd, or OpenCV moves these by one
)
_MOST_SMOOTH = 0.05  # share of flat coefficients beside them, where there is noise; rounded noise of 0.5 has 0.02
_MOST_REST = 0.9  # share beside large flat parts; where it is more they do not matter
_ENOUGH_DETAILS = 256  # coefficients
_ENOUGH_BLOCKS = 4
_SKIPPED = 16  # of so many blocks one is looked at first
_MOST_BLOCKS = 2000


def sample_patches(height: int, width: int) -> Iterator[tuple[slice, slice]]:
    """Where to look: the whole of a small image, else patches spread evenly, starting at multiples of 8."""
    count = int(PATCHES**0.5)
    for top in _spread(height, count):
        for left in _spread(width, count):
            yield slice(top, min(top + PATCH, height)), slice(left, min(left + PATCH, width))


def _spread(length: int, count: int) -> list[int]:
    if length <= PATCH * count:
        return list(range(0, length, PATCH))
    return [round(index * (length - PATCH) / (count - 1)) // 8 * 8 for index in range(count)]


class _Measured(NamedTuple):
    """The noise of a channel of a patch, or of a patch.

    Attributes:
        level: standard deviation, white 1.
        tells: whether little of what it was measured in is flat, as where there is noise.
        is_flat: whether there is too little beside large flat parts.
    """

    level: float
    tells: bool
    is_flat: bool


def estimate_noise(patches: Sequence[np.ndarray]) -> float:
    """Standard deviation of white Gaussian noise on the 0-255 scale, by the median of the finest diagonal wavelets.

    Of each patch the mean over its channels, of these the median. Fine texture counts as noise, and pixels clipped at
    black or white hide it. Black is left out; so are other large flat parts and even ramps, such as saturated skies,
    margins and drawn backgrounds, where the rest shows noise throughout. What is flat in many small places, as text
    and the decoded blocks of JPEG are, counts as clean.

    Args:
        patches: float, HWC or HW, in [0, 1].

    Source: Donoho and Johnstone, Ideal spatial adaptation by wavelet shrinkage, Biometrika 81 (1994); without large
        flat parts the numbers are those of scikit-image's `estimate_sigma`.
    """
    found = []
    for patch in patches:
        channels = np.moveaxis(patch.astype(np.float32).reshape(*patch.shape[:2], -1), 2, 0)
        of_channels = _telling([_noise_of_channel(channel) for channel in channels])
        level = float(np.mean([one.level for one in of_channels]))
        found.append(_Measured(level, any(one.tells for one in of_channels), all(one.is_flat for one in of_channels)))
    return min(255.0 * float(np.median([one.level for one in _telling(found)])), MAX_SIGMA) if found else 0.0


def _telling(found: list[_Measured]) -> list[_Measured]:
    """Those that are not flat, where one of them tells of noise; else all."""
    return [one for one in found if not one.is_flat] if any(one.tells for one in found) else found


def _noise_of_channel(channel: np.ndarray) -> _Measured:
    # Not scikit-image, which loads all of SciPy's statistics for one quantile: half the time of importing torch.
    import pywt  # of the extra `cli`; blind weights do without it

    with quiet():  # it warns of narrow images
        detail = pywt.dwt2(channel, "db2")[1][2]
    smooth = np.abs(detail) <= _ROUNDING_OF_FLOATS * max(1.0, float(np.abs(channel).max()))
    large = cv2.morphologyEx(smooth.astype(np.uint8), cv2.MORPH_OPEN, np.ones((_LARGE, _LARGE), np.uint8)) > 0
    rest = ~large
    count = int(np.count_nonzero(rest))
    tells = count >= _ENOUGH_DETAILS and int(np.count_nonzero(smooth & rest)) <= _MOST_SMOOTH * count
    # Black parts tell nothing of the noise; other flat ones, not quite 0, count as clean where they are small.
    counted = rest if tells and count <= _MOST_REST * rest.size else np.ones_like(rest)
    detail = detail[counted & (detail != 0)]
    level = float(np.median(np.abs(detail))) / _MEDIAN_OF_NORMAL if detail.size else 0.0
    return _Measured(level, tells, not tells and count < _ENOUGH_DETAILS and 2 * count < rest.size)


def luminance_table(quality: int) -> np.ndarray:
    """libjpeg's 8x8 luminance table of a quality from 1 to 100."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    return np.clip((_LUMINANCE * scale + 50) // 100, 1, 255)


def quality_of_tables(tables: Mapping[int, Sequence[int]]) -> tuple[int, bool]:
    """The libjpeg quality of a file's quantization tables, and whether its luminance table is exactly that one.

    tables: as Pillow gives them, 64 numbers row by row under each index. Tables of other encoders get the quality
    whose table is nearest in logarithm.
    """
    table = np.log(np.maximum(np.array(tables[min(tables)], dtype=float).reshape(8, 8), 1))
    distances = [np.abs(np.log(luminance_table(quality)) - table).sum() for quality in range(1, 101)]
    best = int(np.argmin(distances))
    return best + 1, bool(distances[best] < 1e-9)


def estimate_quality(patches: Sequence[np.ndarray]) -> int | None:
    """The JPEG quality that uncompressed pixels went through, or None when they show no such trace.

    patches: uint8, HWC RGB or HW, starting at multiples of 8 of the stored image. At the quality of the last
    compression, and at no coarser one, luma's cosine coefficients lie near multiples of the table's steps. Images
    that were resized, filtered or compressed on a shifted grid afterwards have lost that.
    """
    blocks = np.concatenate([_luma_coefficients(patch) for patch in patches] or [np.zeros((0, 8, 8))])
    if len(blocks) < _ENOUGH_BLOCKS:
        return None
    blocks = blocks[:: len(blocks) // _MOST_BLOCKS + 1]
    first = next((quality for quality in range(1, 96) if _fits(blocks, quality)), None)
    if first is None:
        return None
    quality = min(range(first, min(first + 3, 96)), key=lambda quality: _rest(blocks, quality))
    coarse = luminance_table(quality) > 2  # steps near the rounding fit untouched images too
    return quality if coarse.mean() > 0.25 else None


def _fits(blocks: np.ndarray, quality: int) -> bool:
    """Whether `_rest` is below the rounding; most qualities are out after a few of the blocks."""
    few = blocks[::_SKIPPED]
    return _rest(few, quality) * few.size < _ROUNDING * blocks.size and _rest(blocks, quality) < _ROUNDING


def _rest(blocks: np.ndarray, quality: int) -> float:
    """Mean square distance of the coefficients from multiples of a quality's steps."""
    steps = luminance_table(quality)
    return float(np.mean((blocks - steps * np.rint(blocks / steps)) ** 2))


def _luma_coefficients(patch: np.ndarray) -> np.ndarray:
    """Cosine coefficients (N, 8, 8) of the whole blocks without black or white pixels, which clipping falsifies."""
    height, width = (side // 8 * 8 for side in patch.shape[:2])
    pixels = patch[:height, :width].reshape(height, width, 1 if patch.ndim == 2 else 3)
    luma = pixels @ _BT601 if pixels.shape[2] == 3 else pixels[..., 0].astype(float)
    inside = np.all((pixels > 0) & (pixels < 255), axis=2)
    blocks, inside = (rearrange(plane, "(h p) (w q) -> (h w) p q", p=8, q=8) for plane in (luma, inside))
    blocks = blocks[np.all(inside, axis=(1, 2))]
    blocks = blocks[np.ptp(blocks, axis=(1, 2)) > 0] - 128.0  # a flat block fits every table
    return np.stack([cv2.dct(block) for block in blocks]) if len(blocks) else np.zeros((0, 8, 8))
