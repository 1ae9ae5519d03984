"""Clips made of still images: a camera that pans, shakes, turns and zooms, before one or two layers."""

from dataclasses import dataclass

import cv2
import numpy as np
import torch

from vheatir.data.base import WHOLE, augment, philox
from vheatir.data.datasets import SyntheticDataset
from vheatir.data.degradations import add_gaussian_noise
from vheatir.data.distributions import Distribution
from vheatir.errors import UserError
from vheatir.image_io.arrays import gray_opencv, to_float

_NUMBERS: dict[str, tuple[float, float, object]] = {  # key: least, most, default
    "speed": (0, 64, {"min": 0.0, "max": 4.0}),
    "shake": (0, 8, {"min": 0.0, "max": 0.5}),
    "turn": (0, 10, {"min": 0.0, "max": 0.6}),
    "zoom": (0, 10, {"min": 0.0, "max": 1.0}),
}
_SHARES = {"still_probability": 0.1, "parallax_probability": 0.4}
_BLOB = 0.15  # of a crop's side: size of the parts of a mask
_EDGE = 1.0  # pixels over which one layer covers the other
_MOST_FRAMES = 1000


@dataclass(frozen=True)
class CameraPath:
    """Where a camera looks in each frame, relative to the middle one.

    Attributes:
        places: (T, 2) right and down, in pixels of the image.
        angles: (T,) in radians.
        scales: (T,) pixels of the image for each of the frame.
    """

    places: np.ndarray
    angles: np.ndarray
    scales: np.ndarray

    def matrix(self, frame: int, start: np.ndarray, center: float | np.ndarray) -> np.ndarray:
        """(2, 3), from pixels of a frame to those of the image.

        Args:
            frame: its number.
            start: (2,) where the middle frame's center lies in the image.
            center: (2,) of a frame, in its own pixels.
        """
        cosine = np.cos(self.angles[frame])
        sine = np.sin(self.angles[frame])
        linear = self.scales[frame] * np.array([[cosine, -sine], [sine, cosine]])
        return np.column_stack([linear, start + self.places[frame] - linear @ np.broadcast_to(center, 2)])


class MovingClipsDataset(SyntheticDataset):
    """Clips of moving images with white Gaussian noise, drawn for each frame; the target is the middle frame.

    `lq` holds the frames one after the other, (frames * C, H, W), as `VHeatVideoNet` takes them; `gt` is (C, H, W). All
    frames are sampled between the pixels of the image (Lanczos), rounded to 8 bits, and mirrored where the camera
    leaves it.

    Options besides the common ones: `sigma` as in `GaussianNoiseDataset`; `frames` of a clip, an odd number; and,
    fixed, as a list or as a range, `speed` in pixels per frame, in any direction; `shake`, the standard deviation of
    each frame's own displacement, in pixels; `turn` in degrees per frame and `zoom` in percent per frame, either way;
    `still_probability`, the share of clips in which nothing moves; `parallax_probability`, the share with a second
    layer, cut out of the same image, that moves by itself. `text_probability` draws on the whole image, before the
    clip is cut out of it. Validation and test draw from the seed and the image's
    place in the folder.
    """

    OPTIONS = (SyntheticDataset.OPTIONS - {"level_map"}) | {"sigma", "frames"} | set(_NUMBERS) | set(_SHARES)
    STEPS = frozenset()

    def __init__(self, opt: dict):
        super().__init__(opt)
        self.sigma = Distribution.parse(opt.get("sigma"), "sigma", 0, 255)
        if not self.train:
            self.sigma.only("sigma")
        self.frames = self._integer(opt, "frames", 5, 1, _MOST_FRAMES)
        if self.frames % 2 == 0:
            raise UserError(f"frames: expected an odd number, with a frame in the middle, got {self.frames}")
        self.drawn = {
            key: Distribution.parse(opt.get(key, default), key, low, high)
            for key, (low, high, default) in _NUMBERS.items()
        }
        self.shares = {key: self._probability({key: opt.get(key, default)}, key) for key, default in _SHARES.items()}

    def clip(self, key: str, frames: int) -> np.ndarray:
        """Clean frames of a whole image, uint8 (T, H, W[, 3]), as validation has them.

        Args:
            key: of the image.
            frames: T; those around the middle are the same for any number.
        """
        image = self.source.read_native(key)
        rng = philox(WHOLE, self.seed, self.keys.index(key))
        return self._moving(image, image.shape[:2], frames, rng)

    def _whole(self, key: str) -> dict:
        clean = self.clip(key, self.frames)
        if self.in_chans == 1 and clean.ndim == 4:
            clean = np.stack([gray_opencv(frame) for frame in clean])
        return self._sample(key, clean, self.sigma.only("sigma"), np.random.RandomState(0))

    def _crop(self, key: str, rng: np.random.Generator, size: int) -> dict:
        image = self.source.read_native(key)
        self._window(image.shape, self.source.describe(key), rng, size)  # refuses images that are smaller
        mode, _ = self._symmetry(rng)
        image = self._perhaps_drawn(image, rng)
        as_gray = rng.random() < self.gray_probability
        clean = self._moving(image, (size, size), self.frames, rng)
        if clean.ndim == 4 and (as_gray or self.in_chans == 1):
            clean = np.stack([self._gray(frame, rng) for frame in clean])
        clean = np.stack([augment(frame, mode) for frame in clean])
        return self._sample(key, clean, self.sigma.draw(rng), rng)

    def _sample(self, key: str, clean: np.ndarray, sigma: float, rng) -> dict:
        frames = np.stack([to_float(frame) for frame in clean])
        noisy = np.stack([add_gaussian_noise(frame, sigma, rng) for frame in frames])
        path = self.source.describe(key)
        middle = self._planes(frames[self.frames // 2][None])
        return {"lq": self._planes(noisy), "gt": middle, "lq_path": path, "gt_path": path}

    def _planes(self, frames: np.ndarray) -> torch.Tensor:
        """(T * C, H, W) of (T, H, W[, 3])."""
        maps = frames[..., None] if frames.ndim == 3 else frames
        planes = torch.from_numpy(np.ascontiguousarray(maps.transpose(0, 3, 1, 2)))
        return planes.expand(-1, self.in_chans, -1, -1).flatten(0, 1)

    def _moving(self, image: np.ndarray, size: tuple[int, int], frames: int, rng: np.random.Generator) -> np.ndarray:
        """Clean frames of (rows, columns), uint8."""
        still = rng.random() < self.shares["still_probability"]
        has_layers = rng.random() < self.shares["parallax_probability"]
        whole = size == image.shape[:2]
        layers = [
            (self._path(rng, frames, still), self._start(rng, image, size, centered=whole and number == 0))
            for number in range(1 + has_layers)
        ]
        mask = _blobs(rng, size) if has_layers else None
        found = []
        for number in range(frames):
            seen = [_seen(image, path.matrix(number, start, _center(size)), size) for path, start in layers]
            frame = seen[0]
            if mask is not None:
                place = layers[1][0].matrix(number, _center(mask.shape), _center(size))
                cover = np.clip(_seen(mask, place, size, cv2.INTER_LINEAR), 0, 1)
                cover = cover if image.ndim == 2 else cover[..., None]
                frame = np.rint(seen[0] + cover * (seen[1].astype(np.float32) - seen[0])).astype(np.uint8)
            found.append(frame)
        return np.stack(found)

    def _path(self, rng: np.random.Generator, frames: int, still: bool) -> CameraPath:
        draw = {key: numbers.draw(rng) for key, numbers in self.drawn.items()}
        direction = rng.uniform(0, 2 * np.pi)
        turn, zoom = (draw[key] * rng.choice([-1, 1]) for key in ("turn", "zoom"))
        time = np.arange(frames) - frames // 2
        shakes = np.random.default_rng(rng.integers(2**63)).normal(0, draw["shake"], (_MOST_FRAMES, 2))
        first = _MOST_FRAMES // 2 - frames // 2  # the middle frame's shake is the same for any number of frames
        velocity = draw["speed"] * np.array([np.cos(direction), np.sin(direction)])
        moves = 0 if still else 1
        return CameraPath(
            places=moves * (time[:, None] * velocity + shakes[first : first + frames]),
            angles=moves * np.deg2rad(turn) * time,
            scales=np.exp(moves * zoom / 100 * time),
        )

    @staticmethod
    def _start(rng: np.random.Generator, image: np.ndarray, size: tuple[int, int], *, centered: bool) -> np.ndarray:
        """Center of the middle frame in the image, between pixels."""
        if centered:
            return _center(image.shape) + rng.uniform(-0.5, 0.5, 2)
        room = np.maximum(np.array(image.shape[1::-1]) - np.array(size[::-1]), 0)
        return _center(size) + rng.uniform(0, 1, 2) * room


def _center(size: tuple[int, ...]) -> np.ndarray:
    """x and y of the center of (rows, columns, ...)."""
    return (np.array(size[1::-1]) - 1) / 2


def _seen(
    image: np.ndarray, matrix: np.ndarray, size: tuple[int, int], interpolation: int = cv2.INTER_LANCZOS4
) -> np.ndarray:
    """The frame of (rows, columns) that a camera sees."""
    flags = interpolation | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(image, matrix, size[::-1], flags=flags, borderMode=cv2.BORDER_REFLECT)


def _blobs(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """A mask of round parts, float32 from 0 to 1, of twice the size."""
    shape = tuple(2 * side for side in size)
    blur = max(_BLOB * min(size), _EDGE)
    noise = cv2.GaussianBlur(rng.normal(0, 1, shape).astype(np.float32), (0, 0), blur)
    steepness = max(float(noise.std()) / blur, 1e-12)  # about its change from pixel to pixel
    return np.clip((noise - np.quantile(noise, 0.55)) / (steepness * _EDGE) + 0.5, 0, 1).astype(np.float32)
