"""Training and test samples for denoising, JPEG artefact removal and pairs of folders.

In training, `dataset[n]` is sample n of an endless sequence (n = 0, 1, 2, …) and a pure function of (seed, n): pass n
from `vheatir.data.sampler.IterationSampler`. Epoch n // len(dataset) visits every image once, in an order of its own.
For validation and test, `dataset[i]` is the whole image i, degraded exactly as in the evaluation protocol.

A sample is {"lq", "gt": float32 (C, H, W), RGB in [0, 1], "lq_path", "gt_path": str} and, with `level_map: true`,
"level": float32 scalar. The classes take BasicSR's option dict and do not import BasicSR.
"""

import operator

import numpy as np
import torch
from torch.utils.data import Dataset

from vheatir.data.degradations import (
    add_gaussian_noise,
    draw_grid_phase,
    gray_opencv,
    jpeg_crop,
    jpeg_roundtrip,
    luma_bt601,
    to_float,
)
from vheatir.data.levels import Levels, is_number
from vheatir.data.sources import ImageSource, map_threads, raise_problems
from vheatir.errors import UserError

_ORDER, _SAMPLE = 0, 1  # streams of random numbers that never meet


def _philox(stream: int, seed: int, number: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=np.array([seed, number], np.uint64), counter=[0, 0, 0, stream]))


def augment(image: np.ndarray, mode: int) -> np.ndarray:
    """One of the 8 symmetries of the square: bit 0 of `mode` mirrors x, bit 1 mirrors y, bit 2 swaps the axes."""
    if mode & 1:
        image = image[:, ::-1]
    if mode & 2:
        image = image[::-1]
    return image.swapaxes(0, 1) if mode & 4 else image


def _tensor(image: np.ndarray) -> torch.Tensor:
    """float32 (C, H, W) of uint8 or float HWC or HW."""
    if image.dtype == np.uint8:
        image = to_float(image)
    return torch.from_numpy(np.ascontiguousarray(np.atleast_3d(image).transpose(2, 0, 1)))


class _RestorationDataset(Dataset):
    """Options, crops, symmetries and epochs, common to all three kinds.

    Options: `phase` train | val | test; `in_chans` 3 | 1; `gt_size` training crop in pixels; `augment` true: 8 flips
    and rotations (the default), or BasicSR's `use_hflip` and `use_rot`; `seed`; `cache` none | memory;
    `io_backend` {type: disk | lmdb}, by default told from the name; `include`, `exclude`: lists of shell patterns that
    image names must or must not match (a split of one folder into training and validation).
    """

    OPTIONS = frozenset(
        {"type", "name", "phase", "in_chans", "gt_size", "augment", "use_hflip", "use_rot", "seed", "cache"}
        | {"io_backend", "dataroot_gt", "include", "exclude"}
    )
    context = 0  # pixels beyond gt_size that the degradation needs

    def __init__(self, opt: dict):
        self.train = str(opt.get("phase", "train")).split("_")[0] == "train"
        self.in_chans = self._integer(opt, "in_chans", 3, 1, 3)
        if self.in_chans == 2:
            raise UserError("in_chans: expected 3 (colour) or 1 (gray), got 2")
        self.seed = self._integer(opt, "seed", 0, 0, 2**64 - 1)
        self.gt_size = self._integer(opt, "gt_size", None, 1, 65000) if self.train else None
        if opt.get("augment", "use_hflip" not in opt and "use_rot" not in opt):
            self._modes = range(8)
        else:
            flips, turns = bool(opt.get("use_hflip")), bool(opt.get("use_rot"))
            self._modes = [mode for mode in range(8) if (flips or not mode & 1) and (turns or not mode & 6)]
        self.source = self._open(opt, "dataroot_gt")
        self.keys = self.source.keys
        self._orders: dict[int, np.ndarray] = {}

    @staticmethod
    def _integer(opt: dict, key: str, default: int | None, low: int, high: int) -> int:
        value = opt.get(key, default)
        if not is_number(value, integer=True) or not low <= value <= high:
            raise UserError(f"{key}: expected an integer from {low} to {high}, got {value!r}")
        return value

    @staticmethod
    def _probability(opt: dict, key: str) -> float:
        value = opt.get(key, 0)
        if not is_number(value) or not 0 <= value <= 1:
            raise UserError(f"{key}: expected a probability from 0 to 1, got {value!r}")
        return float(value)

    @staticmethod
    def _open(opt: dict, key: str) -> ImageSource:
        if not opt.get(key):
            raise UserError(f"{key}: expected a folder or an LMDB with images, got {opt.get(key)!r}")
        backend = (opt.get("io_backend") or {}).get("type")
        patterns = {name: opt[name] for name in ("include", "exclude") if opt.get(name) is not None}
        for name, value in patterns.items():
            if not isinstance(value, list) or not all(isinstance(pattern, str) for pattern in value):
                raise UserError(f"{name}: expected a list of patterns such as ['2*.jpg'], got {value!r}")
        return ImageSource(opt[key], backend, opt.get("cache", "none"), **patterns)

    def __len__(self) -> int:
        """Number of images; training samples go on beyond it, epoch after epoch."""
        return len(self.keys)

    def __getitem__(self, index: int) -> dict:
        index = operator.index(index)
        if not self.train:
            if not 0 <= index < len(self):
                raise IndexError(f"image {index} of {len(self)}")
            return self._whole(self.keys[index])
        if index < 0:
            raise IndexError(f"sample {index}: training samples are numbered from 0")
        epoch, position = divmod(index, len(self))
        return self._crop(self.keys[self._order(epoch)[position]], _philox(_SAMPLE, self.seed, index))

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:
            if len(self._orders) > 1:
                self._orders.pop(min(self._orders))
            self._orders[epoch] = _philox(_ORDER, self.seed, epoch).permutation(len(self))
        return self._orders[epoch]

    def _window(self, shape: tuple[int, ...], name: str, rng: np.random.Generator) -> tuple[slice, slice]:
        """Where to cut gt_size + context pixels."""
        side = self.gt_size + self.context
        if min(shape[:2]) < side:
            raise UserError(
                f"{name}: {shape[0]}x{shape[1]} pixels, but gt_size {self.gt_size} needs at least {side} on each side; "
                "remove the image or lower gt_size"
            )
        y, x = (int(rng.integers(length - side + 1)) for length in shape[:2])
        return slice(y, y + side), slice(x, x + side)

    def _mode(self, rng: np.random.Generator) -> int:
        return self._modes[int(rng.integers(len(self._modes)))]

    def _whole(self, key: str) -> dict:
        raise NotImplementedError

    def _crop(self, key: str, rng: np.random.Generator) -> dict:
        raise NotImplementedError

    def check(self) -> None:
        """Decode every image once; one UserError lists all that are broken, too small or gray where colour counts.

        Run it before training. With `cache: memory` it fills the cache.
        """
        self.source.check(*self._requirements())

    def _requirements(self) -> tuple[int, int | None]:
        return (self.gt_size + self.context if self.train else 1), None


class _SyntheticDataset(_RestorationDataset):
    """Clean images that are degraded on the fly.

    A share `gray_probability` of colour crops becomes gray, is degraded in one plane and handed out as R = G = B, so
    that a colour network learns gray pictures too. Gray files in a colour dataset are always treated so.
    """

    OPTIONS = _RestorationDataset.OPTIONS | {"gray_probability", "level_map"}

    def __init__(self, opt: dict):
        super().__init__(opt)
        self.gray_probability = self._probability(opt, "gray_probability")
        self.level_map = bool(opt.get("level_map", False))

    def _requirements(self) -> tuple[int, int | None]:
        colour_only = self.train and self.in_chans == 3 and self.gray_probability == 0
        return super()._requirements()[0], 3 if colour_only else None

    def _gray(self, rgb: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
        """The gray picture of a colour one; without `rng` as the test protocol has it."""
        return gray_opencv(rgb)

    def _whole(self, key: str) -> dict:
        image = self.source.read_native(key)
        if self.in_chans == 1 and image.ndim == 3:
            image = self._gray(image, None)
        return self._pack(key, *self._degrade(image, None))

    def _crop(self, key: str, rng: np.random.Generator) -> dict:
        image = self.source.read_native(key)
        image = image[self._window(image.shape, self.source.describe(key), rng)]
        image = np.ascontiguousarray(augment(image, self._mode(rng)))
        as_gray = rng.random() < self.gray_probability
        if image.ndim == 3 and (as_gray or self.in_chans == 1):
            image = self._gray(image, rng)
        return self._pack(key, *self._degrade(image, rng))

    def _degrade(self, image: np.ndarray, rng: np.random.Generator | None) -> tuple[np.ndarray, np.ndarray, float]:
        """(degraded, clean, level) of a uint8 crop, or of a whole image when `rng` is None."""
        raise NotImplementedError

    def _pack(self, key: str, degraded: np.ndarray, clean: np.ndarray, level: float) -> dict:
        lq, gt = _tensor(degraded), _tensor(clean)
        if len(gt) < self.in_chans:
            lq, gt = lq.repeat(self.in_chans, 1, 1), gt.repeat(self.in_chans, 1, 1)
        path = self.source.describe(key)
        sample = {"lq": lq, "gt": gt, "lq_path": path, "gt_path": path}
        if self.level_map:
            sample["level"] = torch.tensor(level, dtype=torch.float32)
        return sample


class GaussianNoiseDataset(_SyntheticDataset):
    """White Gaussian noise, neither clipped nor rounded; `level` is sigma / 255.

    Options besides the common ones: `sigma` on the 0-255 scale, fixed (`25`), one of a list (`[15, 25, 50]`) or uniform
    from a range (`{min: 0, max: 55}`); validation and test take a fixed one and draw from RandomState(0) per image.
    """

    OPTIONS = _SyntheticDataset.OPTIONS | {"sigma"}

    def __init__(self, opt: dict):
        super().__init__(opt)
        self.sigma = Levels.parse(opt.get("sigma"), "sigma", 0, 255)
        if not self.train:
            self.sigma.only("sigma")

    def _degrade(self, image: np.ndarray, rng: np.random.Generator | None) -> tuple[np.ndarray, np.ndarray, float]:
        sigma = self.sigma.only("sigma") if rng is None else self.sigma.draw(rng)
        clean = to_float(image)
        return add_gaussian_noise(clean, sigma, rng or np.random.RandomState(0)), clean, sigma / 255


class JPEGDataset(_SyntheticDataset):
    """Real JPEG compression, gray or colour 4:2:0, with the 8x8 grid anywhere in it; `level` is quality / 100.

    Options besides the common ones: `quality` 1-100, fixed, a list or a range, as `sigma` above; `double_probability`:
    share of crops compressed a second time on a shifted grid; `double_quality`: of that first compression (default:
    as `quality`). A crop reads 8 (gray) or 16 (colour) pixels of context, twice that with double compression. Gray is
    BT.601 luma in tests; in training half the crops use OpenCV's full range, since gray test sets have either.
    """

    OPTIONS = _SyntheticDataset.OPTIONS | {"quality", "double_probability", "double_quality"}

    def __init__(self, opt: dict):
        super().__init__(opt)
        self.quality = Levels.parse(opt.get("quality"), "quality", 1, 100, integer=True)
        self.double_probability = self._probability(opt, "double_probability")
        first = opt.get("double_quality")
        self.first = self.quality if first is None else Levels.parse(first, "double_quality", 1, 100, integer=True)
        self._period = 16 if self.in_chans == 3 else 8  # 4:2:0 repeats its chroma grid every 16 pixels
        self.context = self._period * (2 if self.double_probability else 1)
        if not self.train:
            self.quality.only("quality")

    def _gray(self, rgb: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
        return luma_bt601(rgb) if rng is None or rng.random() < 0.5 else gray_opencv(rgb)

    def _degrade(self, image: np.ndarray, rng: np.random.Generator | None) -> tuple[np.ndarray, np.ndarray, float]:
        if rng is None:
            quality = self.quality.only("quality")
            return jpeg_roundtrip(image, quality), image, quality / 100
        quality = self.quality.draw(rng)
        qualities, phases = [quality], [draw_grid_phase(rng, self._period)]
        if rng.random() < self.double_probability:
            qualities.insert(0, self.first.draw(rng))
            phases.insert(0, draw_grid_phase(rng, self._period))
        return *jpeg_crop(image, self.gt_size, qualities, phases), quality / 100


class PairedDataset(_RestorationDataset):
    """Degraded and clean images from two folders or LMDBs, matched by relative path without suffix.

    Options besides the common ones: `dataroot_lq`. Both images of a pair have the same size.
    """

    OPTIONS = _RestorationDataset.OPTIONS | {"dataroot_lq"}

    def __init__(self, opt: dict):
        super().__init__(opt)
        self.degraded = self._open(opt, "dataroot_lq")
        clean, degraded = self.source.by_stem(), self.degraded.by_stem()
        if alone := sorted(set(clean) ^ set(degraded)):
            raise UserError(
                f"{self.source.root} and {self.degraded.root}: {len(alone)} images have no partner in the other; add "
                f"or remove them: {', '.join(alone)}"
            )
        self._partner = {key: degraded[stem] for stem, key in clean.items()}

    def _pair(self, key: str) -> tuple[np.ndarray, np.ndarray, str, str]:
        partner, gray = self._partner[key], self.in_chans == 1
        clean, degraded = self.source.read(key, gray), self.degraded.read(partner, gray)
        paths = self.degraded.describe(partner), self.source.describe(key)
        if clean.shape != degraded.shape:
            raise UserError(f"{paths[0]}: size {degraded.shape[:2]}, but {paths[1]} has {clean.shape[:2]}")
        return degraded, clean, *paths

    def _whole(self, key: str) -> dict:
        degraded, clean, lq_path, gt_path = self._pair(key)
        return {"lq": _tensor(degraded), "gt": _tensor(clean), "lq_path": lq_path, "gt_path": gt_path}

    def _crop(self, key: str, rng: np.random.Generator) -> dict:
        degraded, clean, lq_path, gt_path = self._pair(key)
        window, mode = self._window(clean.shape, gt_path, rng), self._mode(rng)
        lq, gt = (_tensor(augment(image[window], mode)) for image in (degraded, clean))
        return {"lq": lq, "gt": gt, "lq_path": lq_path, "gt_path": gt_path}

    def check(self) -> None:
        """As the others', for both sides, and every pair must have one size."""
        size, channels = self._requirements()
        problems = [*self.source.problems(size, channels), *self.degraded.problems(size, channels)]
        if not problems:
            problems = [problem for problem in map_threads(self._mismatch, self.keys) if problem]
        raise_problems(self.source.root, problems, len(self))

    def _mismatch(self, key: str) -> str | None:
        try:
            self._pair(key)
        except UserError as error:
            return str(error)
        return None
