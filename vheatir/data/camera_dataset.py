"""Training pairs with the noise of cameras: `CameraNoiseDataset`, whose noise vheatir.data.camera makes."""

import math
from dataclasses import dataclass, replace

import cv2
import numpy as np

from vheatir.data.base import WHOLE, augment, philox
from vheatir.data.camera import (
    DEMOSAICING,
    PHASES,
    RGB_TO_YCC,
    SRGB_TO_CAMERA,
    Shot,
    Smoothing,
    ToneCurve,
    add_within_range,
    camera_noise,
    read_variance,
    smooth_noise,
    uneven_noise,
)
from vheatir.data.datasets import SyntheticDataset
from vheatir.data.degradations import SUBSAMPLING, draw_grid_phase, jpeg_roundtrip
from vheatir.data.distributions import Distribution
from vheatir.data.drawn_text import draw_text
from vheatir.errors import UserError

_MARGIN = 2  # pixels cut off all around: demosaicing and filters lack neighbors there
_LEAST = 8  # pixels on a side of any image on the way
_MID_GRAY = 0.18  # of linear light: what photographers call so
_GRID = 16  # pixels after which the JPEG grid of a 4:2:0 file repeats
_NUMBERS: dict[str, tuple[float, float, object]] = {  # key: least, most, default
    "soft_scale": (1, 8, {"min": 1.2, "max": 3.2}),
    "shrink_scale": (1, 8, {"min": 1.0, "max": 2.0}),
    "gamma": (1, 4, {"min": 1.8, "max": 2.4}),
    "contrast": (0, 1, {"min": 0.0, "max": 1.0}),
    "red_gain": (1, 8, {"min": 1.3, "max": 2.6}),
    "blue_gain": (1, 8, {"min": 1.3, "max": 2.6}),
    "shot_noise": (1e-7, 1, {"min": 1e-4, "max": 0.012}),
    "resize_scale": (0.5, 4, {"min": 0.7, "max": 1.6}),
    "smooth_luma": (0, 8, {"min": 0.3, "max": 0.85}),
    "smooth_stretch": (1, 4, {"min": 1.0, "max": 1.5}),
    "smooth_chroma": (0, 8, {"min": 1.2, "max": 2.1}),
    "luma_tail": (0, 1, {"min": 0.0, "max": 0.25}),
    "chroma_tail": (0, 1, {"min": 0.2, "max": 0.9}),
    "chroma_ratio": (0, 4, {"min": 0.2, "max": 0.75}),
    "sharpen": (0, 4, {"min": 0.0, "max": 1.0}),
    "row_noise": (0, 4, {"min": 0.0, "max": 0.3}),
    "row_width": (0, 16, {"min": 0.0, "max": 1.5}),
    "web_scale": (1, 4, {"min": 1.0, "max": 2.0}),
    "uneven_places": (0, 2, {"min": 0.0, "max": 0.5}),
    "uneven_channels": (0, 2, {"min": 0.0, "max": 0.5}),
}
_INTEGERS: dict[str, tuple[int, int, object]] = {
    "bits": (8, 16, [10, 12, 14]),
    "quality": (1, 100, {"min": 70, "max": 100}),
    "web_quality": (1, 100, {"min": 30, "max": 95}),
}
_SHARES = {
    "soft_probability": 0.6,
    "shrink_probability": 0.25,
    "binning_probability": 0.1,
    "one_sided_probability": 0.03,
    "resize_probability": 0.15,
    "smooth_probability": 0.9,
    "sharpen_probability": 0.4,
    "jpeg_probability": 0.7,
    "web_probability": 0.2,
    "double_probability": 0.5,
    "clean_probability": 0.1,
    "uneven_probability": 0.4,
    "row_probability": 0.4,
}
_OF_SHOT = ("gamma", "contrast", "red_gain", "blue_gain", "bits")
_OF_SMOOTHING = {  # attribute of `Smoothing`: key
    "luma": "smooth_luma",
    "chroma": "smooth_chroma",
    "luma_tail": "luma_tail",
    "chroma_tail": "chroma_tail",
    "ratio": "chroma_ratio",
}
_NAMES = {"demosaicing": DEMOSAICING, "subsampling": tuple(SUBSAMPLING)}


@dataclass(frozen=True)
class _Plan:
    """What a sample goes through before and after the camera: drawn first, since it decides how much is cut."""

    enlarge: float  # of the clean image; below 1 it is shrunk
    web: float  # shrinking of the finished image, 1 for none
    noisy: bool
    qualities: tuple[int, ...]  # of each JPEG compression
    subsampling: tuple[str, ...]


class CameraNoiseDataset(SyntheticDataset):
    """Photographs with the noise of cameras and the traces of their files; `gt` is the clean image itself.

    A clean crop is enlarged, shrunk or left as it is; its noise is made on a sensor (vheatir.data.camera: tone curve,
    white balance, color matrix, shot and read noise, in a share row noise, mosaic, demosaicing), resized in a share of
    crops, smoothed and sharpened as cameras do, in a share made uneven over places and channels; the sum is clipped,
    rounded and, in a share, compressed. A further share went through the web: image and target are shrunk, and it is
    compressed once or twice. Some crops have no noise at all.

    Options besides the common ones: those of options/photo_light.yml, which tells their units, ranges and sources and
    has the values that they take when left out. Strengths are fixed, a list, or `{min, max}`; `*_probability` is a
    share of crops from 0 to 1; `demosaicing` and `subsampling` are lists to choose from. Half of the text of
    `text_probability` is as soft as the scene, half is sharp. Validation and test draw from the seed and the image's
    place in the folder: each image has a camera of its own, the same every time.
    """

    OPTIONS = (SyntheticDataset.OPTIONS - {"level_map"}) | set(_NUMBERS) | set(_INTEGERS) | set(_SHARES) | set(_NAMES)
    STEPS = frozenset()  # the blocks of JPEG would be mirrored on the device
    context = 2 * (_MARGIN + _GRID)

    def __init__(self, opt: dict):
        super().__init__(opt)
        self.drawn = {
            key: Distribution.parse(opt.get(key, default), key, low, high)
            for key, (low, high, default) in _NUMBERS.items()
        }
        self.drawn["shot_noise"] = replace(self.drawn["shot_noise"], log=True)
        self.drawn |= {
            key: Distribution.parse(opt.get(key, default), key, low, high, integer=True)
            for key, (low, high, default) in _INTEGERS.items()
        }
        self.shares = {key: self._probability({key: opt.get(key, default)}, key) for key, default in _SHARES.items()}
        if self.shares["soft_probability"] + self.shares["shrink_probability"] > 1:
            raise UserError("soft_probability, shrink_probability: expected at most 1 together; lower one of them")
        self.names = {key: _choices(opt, key, known) for key, known in _NAMES.items()}

    def _happens(self, rng: np.random.Generator, key: str) -> bool:
        return rng.random() < self.shares[f"{key}_probability"]

    def _one_of(self, rng: np.random.Generator, key: str) -> str:
        return self.names[key][int(rng.integers(len(self.names[key])))]

    def _plan(self, rng: np.random.Generator) -> _Plan:
        kind = rng.random()
        enlarge = 1.0
        if kind < self.shares["soft_probability"]:
            enlarge = self.drawn["soft_scale"].draw(rng)
        elif kind < self.shares["soft_probability"] + self.shares["shrink_probability"]:
            enlarge = 1 / self.drawn["shrink_scale"].draw(rng)
        noisy = not self._happens(rng, "clean")
        qualities = []
        web = 1.0
        if self._happens(rng, "jpeg"):
            qualities.append(int(self.drawn["quality"].draw(rng)))
        if self._happens(rng, "web"):
            web = self.drawn["web_scale"].draw(rng)
            qualities = [int(self.drawn["web_quality"].draw(rng)) for _ in range(1 + self._happens(rng, "double"))]
        subsampling = tuple(self._one_of(rng, "subsampling") for _ in qualities)
        return _Plan(enlarge, web, noisy, tuple(qualities), subsampling)

    def _crop(self, key: str, rng: np.random.Generator, size: int) -> dict:
        image = self.source.read_native(key)
        plan = self._plan(rng)
        side = size + 2 * _MARGIN + _GRID * len(plan.qualities)
        window = min(max(round(side * plan.web / plan.enlarge), _LEAST), *image.shape[:2])
        part = self._window(image.shape, self.source.describe(key), rng, size, window)
        mode, left = self._symmetry(rng)
        image = np.ascontiguousarray(augment(image[part], mode))
        if image.ndim == 3 and (rng.random() < self.gray_probability or self.in_chans == 1):
            image = self._gray(image, rng)
        sharp = False
        if self._has_text(rng):
            sharp = rng.random() < 0.5  # as on a screen; else as soft as the scene
            image = image if sharp else draw_text(image, rng)
        noisy, clean = self._photograph(image, (side, side), plan, rng, text=sharp)
        inside = slice(_MARGIN, side - _MARGIN)  # before the compression: what is cut off later shifts its grid
        phases = [draw_grid_phase(rng, _GRID) for _ in plan.qualities]
        noisy, clean = _compress(noisy[inside, inside], clean[inside, inside], plan, phases)
        return self._pack(key, noisy[:size, :size], clean[:size, :size], 0.0, left)

    def _whole(self, key: str) -> dict:
        image = self.source.read(key, gray=True) if self.in_chans == 1 else self.source.read_native(key)
        rng = philox(WHOLE, self.seed, self.keys.index(key))
        plan = self._plan(rng)
        shape = image.shape[:2]
        if plan.enlarge > 1:
            rows, columns = (max(round(length / plan.enlarge), _LEAST) for length in shape)
            top = (shape[0] - rows) // 2
            left = (shape[1] - columns) // 2
            image = np.ascontiguousarray(image[top : top + rows, left : left + columns])
        noisy, clean = self._photograph(image, shape, plan, rng)
        noisy, clean = _compress(noisy, clean, plan, [(0, 0)] * len(plan.qualities))
        return self._pack(key, noisy, clean, 0.0, {})

    def _photograph(
        self, image: np.ndarray, shape: tuple[int, ...], plan: _Plan, rng: np.random.Generator, *, text: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Noisy and clean uint8 images of `shape` (rows, columns), before compression; with `text` drawn on both."""
        clean = _resized(image, tuple(round(length * plan.web) for length in shape))
        clean = draw_text(clean, rng) if text else clean
        noisy = self._exposed(clean, rng) if plan.noisy else clean
        if noisy.shape[:2] != shape:
            noisy, clean = _resized(noisy, shape), _resized(clean, shape)
        return np.clip(np.rint(noisy), 0, 255).astype(np.uint8), clean

    def _exposed(self, clean: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A uint8 image, RGB or gray, with noise: float32 in 0 .. 255."""
        color = clean if clean.ndim == 3 else cv2.cvtColor(clean, cv2.COLOR_GRAY2RGB)
        if self._happens(rng, "resize"):
            scale = self.drawn["resize_scale"].draw(rng)
            color = _resized(color, tuple(max(round(length * scale), _LEAST) for length in clean.shape[:2]))
        shot = self._shot(rng)
        noise = _resized(camera_noise(color, shot, rng), clean.shape[:2])
        if self._happens(rng, "smooth"):
            noise = smooth_noise(noise, self._smoothing(rng))
        if self.shares["uneven_probability"] and self._happens(rng, "uneven"):  # else old seeds stay valid
            places, channels = (self.drawn[f"uneven_{name}"].draw(rng) for name in ("places", "channels"))
            noise = uneven_noise(noise, places, channels, rng)
        if clean.ndim == 2:
            noise = cv2.transform(noise, RGB_TO_YCC[:1])
        return clean + 255 * noise if shot.one_sided else add_within_range(clean, noise)

    def _with_row_noise(self, shot: Shot, rng: np.random.Generator) -> Shot:
        if not self.shares["row_probability"] or not self._happens(rng, "row"):  # without it, old seeds stay valid
            return shot
        strength, width = (self.drawn[f"row_{name}"].draw(rng) for name in ("noise", "width"))
        deviation = math.sqrt(_MID_GRAY * shot.shot + shot.read)
        return replace(shot, rows=strength * deviation, row_width=width, upright=bool(rng.integers(2)))

    def _shot(self, rng: np.random.Generator) -> Shot:
        draw = {key: self.drawn[key].draw(rng) for key in _OF_SHOT}
        weights = rng.dirichlet(np.ones(len(SRGB_TO_CAMERA)))  # between the cameras, as in the paper
        slope = self.drawn["shot_noise"].draw(rng)
        binned = self._happens(rng, "binning")
        shot = Shot(
            curve=ToneCurve(draw["gamma"], draw["contrast"]),
            gains=np.array([draw["red_gain"], 1, draw["blue_gain"]]),
            color=np.tensordot(weights, SRGB_TO_CAMERA, 1),
            shot=slope,
            read=read_variance(slope, rng.normal(0, 0.26)),
            bits=int(draw["bits"]),
            phase=list(PHASES)[int(rng.integers(len(PHASES)))],
            demosaicing=None if binned else self._one_of(rng, "demosaicing"),
            one_sided=self._happens(rng, "one_sided"),
        )
        return self._with_row_noise(shot, rng)

    def _smoothing(self, rng: np.random.Generator) -> Smoothing:
        draw = {name: self.drawn[key].draw(rng) for name, key in _OF_SMOOTHING.items()}
        sharpen = self.drawn["sharpen"].draw(rng) if self._happens(rng, "sharpen") else 0.0
        stretch = self.drawn["smooth_stretch"].draw(rng)
        return Smoothing(**draw, sharpen=sharpen, stretch=stretch if rng.random() < 0.5 else 1 / stretch)


def _choices(opt: dict, key: str, known: tuple[str, ...]) -> tuple[str, ...]:
    value = opt.get(key, list(known))
    names = value if isinstance(value, list) else [value]
    if not names or any(name not in known for name in names):
        raise UserError(f"{key}: expected a list of {', '.join(known)}, got {value!r}")
    return tuple(names)


def _resized(image: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The image at (rows, columns): mean of areas where it shrinks, cubic where it grows."""
    if image.shape[:2] == shape:
        return image
    grows = math.prod(shape) > math.prod(image.shape[:2])
    return cv2.resize(image, shape[::-1], interpolation=cv2.INTER_CUBIC if grows else cv2.INTER_AREA)


def _compress(
    noisy: np.ndarray, clean: np.ndarray, plan: _Plan, phases: list[tuple[int, int]]
) -> tuple[np.ndarray, np.ndarray]:
    """Each JPEG compression of the noisy image; both lose the pixels of `phases` at the top and the left after it."""
    for quality, subsampling, (y, x) in zip(plan.qualities, plan.subsampling, phases, strict=True):
        noisy = jpeg_roundtrip(np.ascontiguousarray(noisy), quality, subsampling)[y:, x:]
        clean = clean[y:, x:]
    return noisy, clean
