"""Noise as cameras make it, as pure functions of arrays: sensor, color filter mosaic, development, in-camera smoothing.

The image itself is never touched: each function works on the noise alone, so that a noisy image and its clean one
agree in everything else. The model is that of "Unprocessing Images for Learned Raw Denoising" (arXiv 1811.11127): from
sRGB back to the sensor's linear numbers, shot and read noise there, and forward again by the same tone curve, white
balance and color matrix. What cameras do to noise afterwards is modeled by filters on its luma and its chroma.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np

PHASES = {  # where red stands in each square of two by two pixels: (row, column), and OpenCV's codes of two methods
    "RGGB": ((0, 0), cv2.COLOR_BayerRGGB2RGB, cv2.COLOR_BayerRGGB2RGB_EA),
    "GRBG": ((0, 1), cv2.COLOR_BayerGRBG2RGB, cv2.COLOR_BayerGRBG2RGB_EA),
    "GBRG": ((1, 0), cv2.COLOR_BayerGBRG2RGB, cv2.COLOR_BayerGBRG2RGB_EA),
    "BGGR": ((1, 1), cv2.COLOR_BayerBGGR2RGB, cv2.COLOR_BayerBGGR2RGB_EA),
}
_OPENCV = ("bilinear", "edge_aware")
DEMOSAICING = (*_OPENCV, "malvar")
# Malvar, He, Cutler, ICASSP 2004: eighths around a pixel of another color than the wanted one, for pixels of that color
# above, below, left and right of it; left and right; at its corners
_AROUND = np.array(
    [[0, 0, -1, 0, 0], [0, 0, 2, 0, 0], [-1, 2, 4, 2, -1], [0, 0, 2, 0, 0], [0, 0, -1, 0, 0]], np.float32
)
_BESIDE = np.array(
    [[0, 0, 0.5, 0, 0], [0, -1, 0, -1, 0], [-1, 4, 5, 4, -1], [0, -1, 0, -1, 0], [0, 0, 0.5, 0, 0]], np.float32
)
_CORNERS = np.array(
    [[0, 0, -1.5, 0, 0], [0, 2, 0, 2, 0], [-1.5, 0, 6, 0, -1.5], [0, 2, 0, 2, 0], [0, 0, -1.5, 0, 0]], np.float32
)
_STEPS = 4096  # of the tone curve's table, evenly spaced in the square root of light
# standard deviations from black or white at which nothing is clipped; steps to each
_FAR = 4
_FINE = 128
_PEDESTAL = 1 / 16  # black level as a share of the raw range: noise below black survives

# CIE XYZ (D65) to the camera's own RGB, times 10,000: ColorMatrix2 of Adobe's DNG converter, as LibRaw lists it
_CAMERAS = {
    "Canon EOS 5D Mark II": [[4716, 603, -830], [-7798, 15474, 2480], [-1496, 1937, 6651]],
    "Canon EOS 5D Mark III": [[6722, -635, -963], [-4287, 12460, 2028], [-908, 2162, 5668]],
    "Nikon D800": [[7866, -2108, -555], [-4869, 12483, 2681], [-1176, 2069, 7501]],
    "Nikon D600": [[8178, -2245, -609], [-4857, 12394, 2776], [-1207, 2086, 7298]],
    "Sony ILCE-7M2": [[5271, -712, -347], [-6153, 13653, 2763], [-1601, 2366, 7242]],
}
# IEC 61966-2-1
_SRGB_TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
# JFIF: full-range luma and chroma of BT.601
RGB_TO_YCC = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]], np.float32)
_YCC_TO_RGB = np.linalg.inv(RGB_TO_YCC.astype(np.float64)).astype(np.float32)


def _srgb_to_camera(matrix: list[list[int]]) -> np.ndarray:
    """Linear sRGB to balanced camera RGB: white stays white, so each row adds up to 1."""
    product = np.array(matrix) @ _SRGB_TO_XYZ
    return product / product.sum(axis=1, keepdims=True)


SRGB_TO_CAMERA = np.stack([_srgb_to_camera(matrix) for matrix in _CAMERAS.values()])


def read_variance(shot: float, deviation: float) -> float:
    """The variance of read noise that goes with a slope of shot noise, both for a raw range of 0 to 1.

    ln(read) = 2.18 ln(shot) + 1.20 + deviation, where the published deviation is normal with standard deviation 0.26;
    the slope runs from 1e-4 to 0.012 there (arXiv 1811.11127, section 3.1, fitted to the Darmstadt set).
    """
    return float(np.exp(2.18 * np.log(shot) + 1.20 + deviation))


class ToneCurve:
    """A camera's tone curve and its inverse: t = light^(1/gamma), then (1 - contrast) t + contrast t² (3 - 2t).

    Source: arXiv 1811.11127 has gamma 2.2 and contrast 1; less contrast gives the curves of plainer developments.

    Args:
        gamma: at least 1.
        contrast: from 0, a plain power, to 1, the full S.
    """

    def __init__(self, gamma: float, contrast: float):
        root = np.linspace(0, 1, _STEPS, dtype=np.float32)
        tone = root ** np.float32(2 / gamma)
        tone = tone + np.float32(contrast) * (tone * tone * (3 - 2 * tone) - tone)
        self._table = tone
        codes = np.arange(256, dtype=np.float32) / 255
        self._inverse = (np.interp(codes, tone, root) ** 2).astype(np.float32)

    def light(self, image_u8: np.ndarray) -> np.ndarray:
        """Linear light in [0, 1], float32, of uint8 sRGB."""
        return cv2.LUT(image_u8, self._inverse)

    def tone(self, light: np.ndarray) -> np.ndarray:
        """sRGB in [0, 1] of float32 linear light, clipped to [0, 1]; within 0.1 of an 8-bit step."""
        place = np.sqrt(np.clip(light, 0, 1))
        place *= np.float32(_STEPS - 1)
        place += np.float32(0.5)
        return self._table[place.astype(np.uint16)]


@dataclass(frozen=True)
class Shot:
    """One exposure and its development.

    Attributes:
        curve: tone curve.
        gains: white balance, factors of red, green and blue, at least 1.
        color: (3, 3) linear sRGB to balanced camera RGB, rows adding up to 1.
        shot: slope of the variance over the signal; raw range 0 to 1.
        read: variance at black.
        bits: of the raw numbers.
        phase: a key of `PHASES`.
        demosaicing: one of `DEMOSAICING`, or None for a sensor that bins: each pixel of the image is a whole square
            of the mosaic, and nothing is interpolated.
        one_sided: whether black is cut off: no pedestal in the raw numbers, and noise has the mean that clipping and
            the bend of the tone curve give it. Otherwise it is zero on average in the developed image, as noise is
            against the mean of many developed shots, which the field takes for the truth.
        rows: standard deviation of an offset that all pixels of a row share, raw range 0 to 1; 0 for none.
        row_width: standard deviation of the Gaussian over neighboring rows that these offsets follow, in rows.
        upright: whether the camera was held upright, so that its rows are the columns of the image.
    """

    curve: ToneCurve
    gains: np.ndarray
    color: np.ndarray
    shot: float
    read: float
    bits: int
    phase: str = "RGGB"
    demosaicing: str | None = "bilinear"
    one_sided: bool = False
    rows: float = 0.0
    row_width: float = 0.0
    upright: bool = False


def mosaic(raw: np.ndarray, phase: str) -> np.ndarray:
    """(H, W) of what a sensor with the color filters of `phase` sees of raw RGB (H, W, 3)."""
    (row, column), *_ = PHASES[phase]
    seen = np.ascontiguousarray(raw[..., 1])
    seen[row::2, column::2] = raw[row::2, column::2, 0]
    seen[1 - row :: 2, 1 - column :: 2] = raw[1 - row :: 2, 1 - column :: 2, 2]
    return seen


def demosaic(seen_u16: np.ndarray, phase: str, method: str) -> np.ndarray:
    """uint16 (H, W, 3) from the uint16 mosaic (H, W).

    Args:
        seen_u16: (H, W) uint16.
        phase: one of `PHASES`.
        method: one of `DEMOSAICING`: OpenCV's bilinear (kornia's, too) or edge-aware one, or "malvar", bilinear
            with a correction by the gradient of the color that was measured (Malvar, He, Cutler, ICASSP 2004).
    """
    if method == "malvar":
        return _malvar(seen_u16, phase)
    return cv2.cvtColor(seen_u16, PHASES[phase][1 + _OPENCV.index(method)])


def _malvar(seen_u16: np.ndarray, phase: str) -> np.ndarray:
    seen = seen_u16.astype(np.float32)
    around, beside, above, corners = (
        cv2.filter2D(seen, -1, kernel / 8, borderType=cv2.BORDER_REFLECT_101)
        for kernel in (_AROUND, _BESIDE, _BESIDE.T, _CORNERS)
    )
    color = np.repeat(seen[..., None], 3, 2)
    (row, column), *_ = PHASES[phase]
    for channel, top, left in ((0, row, column), (2, 1 - row, 1 - column)):  # of red and of blue pixels
        color[top::2, left::2, 1] = around[top::2, left::2]
        color[top::2, left::2, 2 - channel] = corners[top::2, left::2]
        color[top::2, 1 - left :: 2, channel] = beside[top::2, 1 - left :: 2]
        color[1 - top :: 2, left::2, channel] = above[1 - top :: 2, left::2]
    return np.clip(np.rint(color), 0, 65535).astype(np.uint16)


def _row_noise(shape: tuple[int, ...], shot: Shot, rng: np.random.Generator) -> np.ndarray:
    """An offset for each row, or column where the camera was held upright; broadcasts to `shape`, (H, W[, 3])."""
    along = 1 if shot.upright else 0
    rows = rng.standard_normal((shape[along], 1), np.float32)
    if shot.row_width > 0:
        weights = cv2.getGaussianKernel(2 * math.ceil(4 * shot.row_width) + 1, shot.row_width, cv2.CV_32F)
        weights /= np.linalg.norm(weights)  # independent offsets keep their variance
        rows = cv2.filter2D(rows, -1, weights, borderType=cv2.BORDER_REFLECT)
    lengths = [1] * len(shape)
    lengths[along] = shape[along]
    return np.float32(shot.rows) * rows.reshape(lengths)


def _noisy(raw: np.ndarray, shot: Shot, rng: np.random.Generator, share: float | np.ndarray = 1.0) -> np.ndarray:
    """Raw numbers up to white with shot and read noise, their variance times `share`, and the noise of rows.

    Clipping at white alone would give the noise a mean, so unless it may have one, what is clipped above is clipped as
    far below.
    """
    deviation = np.sqrt((np.maximum(raw, 0) * np.float32(shot.shot) + np.float32(shot.read)) * np.float32(share))
    noise = deviation * rng.standard_normal(raw.shape, np.float32)
    if shot.rows:
        noise += _row_noise(raw.shape, shot, rng)
    room = np.maximum(1 - raw, 0)
    noise = np.minimum(noise, room)
    return raw + (noise if shot.one_sided else np.maximum(noise, -room))


def _sixteen_bits(raw: np.ndarray, black: float, white: int) -> np.ndarray:
    """Raw numbers rounded and clipped to 0, the foot of the black level, up to `white`; scaled to uint16."""
    digital = np.clip(np.rint(raw * np.float32((1 - black) * white) + np.float32(black * white)), 0, white)
    return (digital * np.float32(65535 / white)).astype(np.uint16)


def _raw_noise(raw: np.ndarray, shot: Shot, rng: np.random.Generator) -> np.ndarray:
    """Noise (H, W, 3) of the raw RGB after demosaicing: demosaiced noisy mosaic minus demosaiced clean one."""
    if shot.demosaicing is None:
        noisy = _noisy(raw, shot, rng, np.array([1, 0.5, 1], np.float32))  # green is the mean of two
        return (np.maximum(noisy, 0) if shot.one_sided else noisy) - raw
    black = 0.0 if shot.one_sided else _PEDESTAL
    seen = mosaic(raw, shot.phase)
    noisy = _sixteen_bits(_noisy(seen, shot, rng), black, 2**shot.bits - 1)
    clean = _sixteen_bits(seen, black, 65535)
    pair = [demosaic(plane, shot.phase, shot.demosaicing).astype(np.float32) for plane in (noisy, clean)]
    return (pair[0] - pair[1]) * np.float32(1 / (65535 * (1 - black)))


def camera_noise(clean_u8: np.ndarray, shot: Shot, rng: np.random.Generator) -> np.ndarray:
    """The noise of one exposure in the developed image, before the camera smooths it.

    Args:
        clean_u8: uint8 RGB (H, W, 3), at least 4 pixels a side, in sRGB as developed.
        shot: exposure and development.
        rng: source of the noise.

    Returns:
        float32 (H, W, 3) to be added to the image in [0, 1].
    """
    light = shot.curve.light(clean_u8)
    to_raw = (shot.color / shot.gains[:, None]).astype(np.float32)
    raw = cv2.transform(light, to_raw)
    noise = cv2.transform(_raw_noise(raw, shot, rng), np.linalg.inv(to_raw))
    above = shot.curve.tone(light + noise)
    if shot.one_sided:
        return above - clean_u8 * np.float32(1 / 255)
    return (above - shot.curve.tone(light - noise)) * np.float32(0.5)


def _lowering() -> np.ndarray:
    """How far below its mean, in standard deviations, a Gaussian lies whose part below zero is set to zero.

    Entry i is for a mean of i / `_FINE` standard deviations after that; the first one stands for all that is clipped.
    """
    center = np.linspace(-4, _FAR + 1, 4000)
    normal = np.exp(-(center**2) / 2) / math.sqrt(2 * math.pi)
    below = np.array([0.5 * math.erfc(-value / math.sqrt(2)) for value in center])
    mean = center * below + normal
    wanted = np.arange(_FAR * _FINE + 1) / _FINE
    return (np.interp(wanted, mean, center) - wanted).astype(np.float32)


_LOWERING = _lowering()
_POINTS = 4  # on a side, between which the strength of uneven noise changes


def add_within_range(clean_u8: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """clean + noise, clipped to the range, with the clean image as its mean, near black and white too.

    Clipped noise has a mean of its own, which would lift dark saturated colors. So what is clipped lies as much lower,
    or higher at white, as makes up for it. The strength of the noise is taken from the square of 9 pixels around.

    Args:
        clean_u8: uint8 (H, W[, 3]).
        noise: float32 of that shape, for a range of 0 to 1.

    Returns:
        float32 of that shape, 0 to 255.
    """
    clean, noise = clean_u8.astype(np.float32), noise * np.float32(255)
    room = np.minimum(clean, 255 - clean)
    if room.min() < 2 * _FAR * noise.std():
        deviation = np.sqrt(cv2.blur(noise * noise, (9, 9), borderType=cv2.BORDER_REFLECT_101)) + np.float32(1e-6)
        place = np.minimum(room / deviation, _FAR) * np.float32(_FINE)
        noise = noise + np.where(clean_u8 < 128, 1, -1) * deviation * _LOWERING[place.astype(np.uint16)]
    return np.clip(clean + noise, 0, 255).astype(np.float32)


@dataclass(frozen=True)
class Smoothing:
    """What the camera does to noise in the developed image.

    Attributes:
        luma: standard deviation of the Gaussian that smooths luma, pixels; 0 for none.
        chroma: the same for chroma.
        luma_tail: share of luma, from 0 to 1, that is smoothed three times as far.
        chroma_tail: the same share of chroma.
        ratio: standard deviation of chroma over that of luma; noise without luma keeps its chroma.
        sharpen: unsharp mask on luma: factor of its difference to a Gaussian of one pixel; 0 for none.
        stretch: how far luma is smoothed along rows over how far along columns; 1 for alike, below 1 further along
            columns. Their geometric mean is `luma`.
    """

    luma: float
    chroma: float
    luma_tail: float
    chroma_tail: float
    ratio: float
    sharpen: float = 0.0
    stretch: float = 1.0


def uneven_noise(noise: np.ndarray, places: float, channels: float, rng: np.random.Generator) -> np.ndarray:
    """Noise that is stronger in some places and in some channels than a sensor's curve says.

    Cameras treat noise by place, brightness and color in ways of their own; a network that has only seen noise of one
    strength for each brightness takes the rest for texture.

    Args:
        noise: float32 (H, W, 3), RGB.
        places: standard deviation, over 4x4 points with smooth transitions, of the natural logarithm of the factor.
        channels: the same over the three channels.
        rng: draws both.
    """
    height, width = noise.shape[:2]
    points = rng.normal(0, places, (_POINTS, _POINTS)).astype(np.float32)
    factor = np.exp(cv2.resize(points, (width, height), interpolation=cv2.INTER_LINEAR))
    return noise * factor[..., None] * np.exp(rng.normal(0, channels, 3)).astype(np.float32)


def _blur(plane: np.ndarray, deviation: float, stretch: float = 1.0) -> np.ndarray:
    if deviation <= 0:
        return plane
    along = deviation * math.sqrt(stretch)
    across = deviation / math.sqrt(stretch)
    return cv2.GaussianBlur(plane, (0, 0), along, sigmaY=across, borderType=cv2.BORDER_REFLECT_101)


def _smoothed(planes: np.ndarray, deviation: float, tail: float, stretch: float = 1.0) -> np.ndarray:
    """A Gaussian, a share of it three times as wide and three times as high, since that much less of noise is left."""
    near = _blur(planes, deviation, stretch)
    if not tail or not deviation:
        return near
    return cv2.addWeighted(near, 1 - tail, _blur(near, math.sqrt(8) * deviation, stretch), 3 * tail, 0)


def smooth_noise(noise: np.ndarray, smoothing: Smoothing) -> np.ndarray:
    """Noise (H, W, 3), float32 RGB, as it is left by smoothing of luma and chroma and by sharpening."""
    planes = cv2.transform(noise, RGB_TO_YCC)
    luma = _smoothed(cv2.extractChannel(planes, 0), smoothing.luma, smoothing.luma_tail, smoothing.stretch)
    if smoothing.sharpen:
        luma = cv2.addWeighted(luma, 1 + smoothing.sharpen, _blur(luma, 1.0), -smoothing.sharpen, 0)
    chroma = _smoothed(planes[..., 1:], smoothing.chroma, smoothing.chroma_tail)
    reference = float(luma.std())
    found = float(chroma.std())
    if reference > 0 and found > 0:
        chroma = chroma * np.float32(smoothing.ratio * reference / found)
    return cv2.transform(cv2.merge([luma, chroma]), _YCC_TO_RGB)
