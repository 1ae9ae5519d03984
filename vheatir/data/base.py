"""What the training and test sets share: options, crops, symmetries, epochs; see vheatir.data.datasets."""

import math
import operator

import numpy as np
import torch
from torch.utils.data import Dataset

from vheatir.backbone.training.schema import is_number
from vheatir.data.progressive import CropStage, SampleIndex, parse_stages
from vheatir.data.sources import ImageSource
from vheatir.errors import UserError
from vheatir.image_io.arrays import to_float

# streams of random numbers that never meet
_ORDER = 0
_SAMPLE = 1
MIXUP = 2
WHOLE = 3


def philox(stream: int, seed: int, number: int) -> np.random.Generator:
    """The random numbers of a stream, one of those above, for a sample, an epoch or an iteration.

    Args:
        stream: one of the constants above.
        seed: of the data set.
        number: of the sample, epoch or iteration.
    """
    return np.random.Generator(np.random.Philox(key=np.array([seed, number], np.uint64), counter=[0, 0, 0, stream]))


def augment(image: np.ndarray, mode: int) -> np.ndarray:
    """One of the 8 symmetries of the square: bit 0 of `mode` mirrors x, bit 1 mirrors y, bit 2 swaps the axes."""
    if mode & 1:
        image = image[:, ::-1]
    if mode & 2:
        image = image[::-1]
    return image.swapaxes(0, 1) if mode & 4 else image


def to_tensor(image: np.ndarray) -> torch.Tensor:
    """float32 (C, H, W) of uint8 or float HWC or HW."""
    if image.dtype == np.uint8:
        image = to_float(image)
    return torch.from_numpy(np.ascontiguousarray(np.atleast_3d(image).transpose(2, 0, 1)))


class RestorationDataset(Dataset):
    """Options, crops, symmetries and epochs, common to all three kinds.

    Options: `phase` train | val | test; `in_chans` 3 | 1; `gt_size` training crop in pixels; `augment` true: 8 flips
    and rotations (the default), or BasicSR's `use_hflip` and `use_rot`; `seed`; `cache` none | memory;
    `io_backend` {type: disk | lmdb}, by default from the name; `include`, `exclude`: lists of shell patterns that
    image names must or must not match (a split of one folder into training and validation). In training also
    `progressive`: later stages with crops and batches of their own (see vheatir.data.progressive), and `on_device`: a
    list of steps that are left to the device for whole batches (see vheatir.data.batch_degradations), here `augment`.
    """

    OPTIONS = frozenset(
        {"type", "name", "phase", "in_chans", "gt_size", "augment", "use_hflip", "use_rot", "seed", "cache"}
        | {"io_backend", "dataroot_gt", "include", "exclude", "progressive", "on_device"}
    )
    OF_CROPS = frozenset()  # options that validation and test, which take whole images, do not read
    STEPS = frozenset({"augment"})  # what the device can do in place of the loader
    least_side = 1  # of whole images, in pixels; who measures sets what the metrics need
    context = 0  # pixels beyond the crop's side that the degradation needs
    total_iter = math.inf  # iterations of the run: stages that start later never begin

    def __init__(self, opt: dict):
        self.opt = opt  # where BasicSR's own loop looks for the name
        self.train = str(opt.get("phase", "train")).split("_")[0] == "train"
        self.in_chans = self._integer(opt, "in_chans", 3, 1, 3)
        if self.in_chans == 2:
            raise UserError("in_chans: expected 3 (color) or 1 (gray), got 2")
        self.seed = self._integer(opt, "seed", 0, 0, 2**64 - 1)
        self.gt_size = self._integer(opt, "gt_size", None, 1, 65000) if self.train else None
        for key in ("progressive", "on_device"):
            if opt.get(key) and not self.train:
                raise UserError(f"{key}: is for training; validation and test take whole images, degraded as published")
        self.stages = parse_stages(opt) if self.train else ()
        self.on_device = self._steps(opt)
        flips, turns, all_modes = (self._switch(opt, key) for key in ("use_hflip", "use_rot", "augment"))
        if all_modes or ("augment" not in opt and "use_hflip" not in opt and "use_rot" not in opt):
            self._modes = range(8)
        else:
            self._modes = [mode for mode in range(8) if (flips or not mode & 1) and (turns or not mode & 6)]
        self.source = self._open(opt, "dataroot_gt")
        self.keys = self.source.keys
        self._orders: dict[int, np.ndarray] = {}

    @staticmethod
    def _integer(opt: dict, key: str, default: int | None, low: int, high: int) -> int:
        value = opt.get(key, default)
        if not is_number(value, integer=True) or not low <= value <= high:
            raise UserError(f"{key}: expected an integer from {low} to {high}, got {value!r}")
        return int(value)

    def _steps(self, opt: dict) -> frozenset[str]:
        steps = opt.get("on_device") or []
        if not isinstance(steps, list) or not self.STEPS.issuperset(map(str, steps)):
            known = ", ".join(sorted(self.STEPS)) or "nothing, the loader does all steps of this data set"
            raise UserError(f"on_device: expected a list of {known}, got {steps!r}")
        return frozenset(steps)

    @staticmethod
    def _switch(opt: dict, key: str) -> bool:
        value = opt.get(key)
        if value not in (True, False, None):  # any text would be true
            raise UserError(f"{key}: expected true or false, got {value!r}")
        return bool(value)

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
        stated = opt.get("io_backend") or {}
        if not isinstance(stated, dict) or stated.keys() - {"type"}:
            raise UserError(f"io_backend: expected {{type: disk}} or {{type: lmdb}}, got {stated!r}")
        backend = stated.get("type")
        patterns = {name: opt[name] for name in ("include", "exclude") if opt.get(name) is not None}
        for name, value in patterns.items():
            if not isinstance(value, list) or not all(isinstance(pattern, str) for pattern in value):
                raise UserError(f"{name}: expected a list of patterns such as ['2*.jpg'], got {value!r}")
        return ImageSource(opt[key], backend, opt.get("cache", "none"), **patterns)

    def __len__(self) -> int:
        """Number of images; training samples go on beyond it, epoch after epoch."""
        return len(self.keys)

    def __getitem__(self, index: int | SampleIndex) -> dict:
        index, size = index if isinstance(index, SampleIndex) else (operator.index(index), self.gt_size)
        if not self.train:
            if not 0 <= index < len(self):
                raise IndexError(f"image {index} of {len(self)}")
            return self._whole(self.keys[index])
        if index < 0:
            raise IndexError(f"sample {index}: training samples are numbered from 0")
        epoch, position = divmod(index, len(self))
        return self._crop(self.keys[self._order(epoch)[position]], philox(_SAMPLE, self.seed, index), size)

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:
            if len(self._orders) > 1:
                self._orders.pop(min(self._orders))
            self._orders[epoch] = philox(_ORDER, self.seed, epoch).permutation(len(self))
        return self._orders[epoch]

    def _window(
        self, shape: tuple[int, ...], name: str, rng: np.random.Generator, size: int, side: int | None = None
    ) -> tuple[slice, slice]:
        """Where to cut `side` pixels, size + context by default; the image must hold those in any case."""
        least = size + self.context
        if min(shape[:2]) < least:
            raise UserError(
                f"{name}: {shape[0]}x{shape[1]} pixels, but gt_size {size} needs at least {least} on each side; "
                "remove the image or lower gt_size"
            )
        side = least if side is None else side
        y, x = (int(rng.integers(length - side + 1)) for length in shape[:2])
        return slice(y, y + side), slice(x, x + side)

    def _symmetry(self, rng: np.random.Generator) -> tuple[int, dict[str, int]]:
        """A mode for `augment`, and what of it a sample leaves to the device."""
        mode = self._modes[int(rng.integers(len(self._modes)))]
        return (0, {"symmetry": mode}) if "augment" in self.on_device else (mode, {})

    def _whole(self, key: str) -> dict:
        raise NotImplementedError

    def _crop(self, key: str, rng: np.random.Generator, size: int) -> dict:
        raise NotImplementedError

    def check(self) -> None:
        """Decode every image once; one UserError lists all that are broken, too small or gray where color counts.

        Run it before training. With `cache: memory` it fills the cache.
        """
        self.source.check(*self._requirements(), why=self._why())

    def stages_to_run(self) -> list[CropStage]:
        """The stages that begin before the run ends."""
        return [stage for stage in self.stages if stage.start < self.total_iter]

    def _why(self) -> str:
        """What asks for the least side, for messages."""
        if not self.train:
            return ", for SSIM"
        return f", the largest crop (gt_size, progressive){' and what lies around it' if self.context else ''}"

    def _requirements(self) -> tuple[int, int | None]:
        """Least side and channels of the images; None for any."""
        largest = max((stage.gt_size for stage in self.stages_to_run()), default=0)
        return (largest + self.context if self.train else self.least_side), None
