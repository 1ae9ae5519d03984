"""Training and test samples for denoising, JPEG artifact removal and pairs of folders.

In training, `dataset[n]` is sample n of an endless sequence (n = 0, 1, 2, …) and a pure function of (seed, n): pass n
from `vheatir.data.sampling.IterationSampler`. Epoch n // len(dataset) visits every image once, in an order of its own.
For validation and test, `dataset[i]` is the whole image i, degraded exactly as in the evaluation protocol.

A sample is {"lq", "gt": float32 (C, H, W), RGB in [0, 1], "lq_path", "gt_path": str} and, with `level_map: true`,
"level": float32 scalar; what `on_device` leaves to the device is in extra keys, which
vheatir.data.batch_degradations reads. The classes take BasicSR's option dict and do not import BasicSR.
"""

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import numpy as np
import torch

from vheatir.data.base import RestorationDataset, augment, to_tensor
from vheatir.data.degradations import SUBSAMPLING, add_gaussian_noise, draw_grid_phase, jpeg_crop, jpeg_roundtrip
from vheatir.data.distributions import Distribution
from vheatir.data.drawn_text import draw_text
from vheatir.data.sources import map_threads, raise_problems
from vheatir.errors import UserError
from vheatir.image_io.arrays import gray_opencv, luma_bt601, to_float
from vheatir.utils.files import at_home

_SHAPE = re.compile(r" +\(\d+, ?\d+, ?\d+\)( \d+)?$")  # behind the name in a line of a list
_ALL = {"include": ["*"], "exclude": []}  # patterns of an option file that has none
_Degraded = tuple[np.ndarray | None, np.ndarray, float, Mapping[str, object]]


class SyntheticDataset(RestorationDataset):
    """Clean images that are degraded on the fly.

    A share `gray_probability` of color crops becomes gray, is degraded in one plane and handed out as R = G = B, so
    that a color network learns gray images too. Gray files in a color dataset are always treated so. On a share
    `text_probability` of training crops text and shapes are drawn (vheatir.data.drawn_text).
    """

    OPTIONS = RestorationDataset.OPTIONS | {"gray_probability", "text_probability", "level_map"}
    OF_CROPS = frozenset({"gray_probability", "text_probability"})

    def __init__(self, opt: dict):
        super().__init__(opt)
        self.gray_probability = self._probability(opt, "gray_probability")
        self.text_probability = self._probability(opt, "text_probability")
        self.level_map = self._switch(opt, "level_map")

    def _requirements(self) -> tuple[int, int | None]:
        color_only = self.train and self.in_chans == 3 and self.gray_probability == 0
        return super()._requirements()[0], 3 if color_only else None

    def _subsampling(self, opt: dict) -> list[str]:
        given = opt.get("subsampling") or ["4:2:0"]
        if not isinstance(given, list) or not all(isinstance(one, str) and one in SUBSAMPLING for one in given):
            raise UserError(f"subsampling: expected a list of {', '.join(SUBSAMPLING)}, got {given!r}")
        if "jpeg_approximate" in self.on_device and given != ["4:2:0"]:
            raise UserError(f"subsampling: jpeg_approximate compresses in 4:2:0, got {given!r}; leave one of them out")
        if not self.train and given != ["4:2:0"]:
            raise UserError(f"subsampling: validation and test compress in 4:2:0, got {given!r}; leave it out")
        return given

    def _gray(self, rgb: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The gray crop of a color one."""
        return gray_opencv(rgb)

    def _read_gray(self, key: str) -> np.ndarray:
        """A whole image, uint8 HW, as `vheatir evaluate --gray` reads it."""
        return self.source.read_opencv_gray(key)

    def _whole(self, key: str) -> dict:
        image = self._read_gray(key) if self.in_chans == 1 else self.source.read_native(key)
        return self._pack(key, *self._degrade(image, None))

    def _crop(self, key: str, rng: np.random.Generator, size: int) -> dict:
        image = self.source.read_native(key)
        image = image[self._window(image.shape, self.source.describe(key), rng, size)]
        mode, left = self._symmetry(rng)
        image = self._perhaps_drawn(np.ascontiguousarray(augment(image, mode)), rng)
        as_gray = rng.random() < self.gray_probability
        if image.ndim == 3 and (as_gray or self.in_chans == 1):
            image = self._gray(image, rng)
        return self._pack(key, *self._degrade(image, rng, size)) | left

    def _perhaps_drawn(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The crop, or one with text on it."""
        return draw_text(image, rng) if self._has_text(rng) else image

    def _has_text(self, rng: np.random.Generator) -> bool:
        """Whether a sample has text; without the option no random number is drawn, so old seeds stay valid."""
        return bool(self.text_probability) and rng.random() < self.text_probability

    def _degrade(self, image: np.ndarray, rng: np.random.Generator | None, size: int = 0) -> _Degraded:
        """(degraded, clean, level, extra keys) of a uint8 crop, or of a whole image when `rng` is None.

        `degraded` is None where the device makes it.
        """
        raise NotImplementedError

    def _pack(
        self, key: str, degraded: np.ndarray | None, clean: np.ndarray, level: float, extra: Mapping[str, object]
    ) -> dict:
        images = {"gt": clean} if degraded is None else {"lq": degraded, "gt": clean}
        planes = {name: to_tensor(image) for name, image in images.items()}
        sample = {name: plane.expand(self.in_chans, -1, -1) for name, plane in planes.items()}
        path = self.source.describe(key)
        sample |= {"lq_path": path, "gt_path": path, **extra}
        if self.level_map:
            sample["level"] = torch.tensor(level, dtype=torch.float32)
        return sample


class GaussianNoiseDataset(SyntheticDataset):
    """White Gaussian noise, neither clipped nor rounded; `level` is sigma / 255.

    Options besides the common ones: `sigma` on the 0-255 scale, fixed (`25`), one of a list (`[15, 25, 50]`) or uniform
    from a range (`{min: 0, max: 55}`; with `log: true` in it, uniform in the logarithm, so that small numbers are drawn
    more often). Validation and test take a fixed one and draw from RandomState(0) per image.
    `on_device` may name `noise`: the loader draws the sigma, the device the noise.
    """

    OPTIONS = SyntheticDataset.OPTIONS | {"sigma"}
    STEPS = SyntheticDataset.STEPS | {"noise"}

    def __init__(self, opt: dict):
        super().__init__(opt)
        self.sigma = Distribution.parse(opt.get("sigma"), "sigma", 0, 255)
        if not self.train:
            self.sigma.only("sigma")

    def _degrade(self, image: np.ndarray, rng: np.random.Generator | None, size: int = 0) -> _Degraded:
        sigma = self.sigma.only("sigma") if rng is None else self.sigma.draw(rng)
        clean = to_float(image)
        if "noise" in self.on_device and rng is not None:
            seed = int(rng.integers(2**63))
            return None, clean, sigma / 255, {"noise_seed": seed, "sigma": sigma / 255, "one_plane": image.ndim == 2}
        return add_gaussian_noise(clean, sigma, rng or np.random.RandomState(0)), clean, sigma / 255, {}


class JPEGDataset(SyntheticDataset):
    """Real JPEG compression, gray or color 4:2:0, with the 8x8 grid anywhere in it; `level` is quality / 100.

    Options besides the common ones: `quality` 1-100, fixed, a list or a range, as `sigma` above; `double_probability`:
    share of crops compressed a second time, in half of the cases on a shifted grid; `double_quality`: of that first
    compression (default: as `quality`); `subsampling`: of chroma, a list of 4:2:0, 4:2:2 and 4:4:4 of which each
    compression draws one (default: 4:2:0, as in tests). A crop reads 8 (gray) or 16 (color) pixels of context, twice
    that with double compression. Gray is BT.601 luma in tests; in training half the crops use OpenCV's full range,
    since gray test sets have either.
    `on_device` may name `jpeg_approximate`: the device compresses with kornia's differentiable codec, which is not the
    real one (docs/training.md); then `augment` may be there too. Training samples carry "jpeg": (passes, 3), the
    quality of each compression (0 for none) and the pixels cut off the top and the left after it.
    """

    OPTIONS = SyntheticDataset.OPTIONS | {"quality", "double_probability", "double_quality", "subsampling"}
    OF_CROPS = SyntheticDataset.OF_CROPS | {"double_probability", "double_quality"}
    STEPS = SyntheticDataset.STEPS | {"jpeg_approximate"}

    def __init__(self, opt: dict):
        super().__init__(opt)
        self.quality = Distribution.parse(opt.get("quality"), "quality", 1, 100, integer=True)
        self.double_probability = self._probability(opt, "double_probability")
        first = opt.get("double_quality")
        self.first = self.quality
        if first is not None:
            self.first = Distribution.parse(first, "double_quality", 1, 100, integer=True)
        self.subsampling = self._subsampling(opt)
        self._period = 16 if self.in_chans == 3 else 8  # 4:2:0 repeats its chroma grid every 16 pixels
        self.context = self._period * (2 if self.double_probability else 1)
        if self.on_device == {"augment"}:
            raise UserError(
                "on_device: augment would flip and rotate the blocks of images that are already compressed; add "
                "jpeg_approximate, or leave both to the loader"
            )
        if not self.train:
            self.quality.only("quality")

    def _gray(self, rgb: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return luma_bt601(rgb) if rng.random() < 0.5 else gray_opencv(rgb)

    def _read_gray(self, key: str) -> np.ndarray:
        image = self.source.read_native(key)
        return image if image.ndim == 2 else luma_bt601(image)

    def _degrade(self, image: np.ndarray, rng: np.random.Generator | None, size: int = 0) -> _Degraded:
        if rng is None:
            quality = int(self.quality.only("quality"))
            return jpeg_roundtrip(image, quality), image, quality / 100, {}
        quality = int(self.quality.draw(rng))
        qualities = [quality]
        phases = [draw_grid_phase(rng, self._period)]
        if rng.random() < self.double_probability:
            qualities.insert(0, int(self.first.draw(rng)))
            phases.insert(0, draw_grid_phase(rng, self._period))
        passes = [(quality, *phase) for quality, phase in zip(qualities, phases)]
        passes = [(0, 0, 0)] * (self.context // self._period - len(passes)) + passes
        extra = {"jpeg": torch.tensor(passes)}
        if "jpeg_approximate" in self.on_device:
            return None, image, quality / 100, extra | {"gt_size": size}
        if len(self.subsampling) == 1:
            subsampling = self.subsampling * len(qualities)
        else:
            subsampling = [self.subsampling[int(rng.integers(len(self.subsampling)))] for _ in qualities]
        return *jpeg_crop(image, size, qualities, phases, subsampling), quality / 100, extra


class PairedDataset(RestorationDataset):
    """Degraded and clean images from two folders or LMDBs, matched by relative path without suffix.

    `include` and `exclude` choose among the clean images; degraded ones come with their partners.

    Options besides the common ones: `dataroot_lq`; for folders also BasicSR's `filename_tmpl`, how a degraded image's
    name is made of the clean one's (`"{}_noisy"`), and `meta_info_file`, a list of the clean images to take, a line
    each (`0001.png (480,480,3)`). Both images of a pair have the same size; no gray file is paired with a color image.
    """

    OPTIONS = RestorationDataset.OPTIONS | {"dataroot_lq", "filename_tmpl", "meta_info_file"}

    def __init__(self, opt: dict):
        super().__init__(opt)
        self.degraded = self._open({**opt, "include": None, "exclude": None}, "dataroot_lq")
        self._one_root = self.source.root.resolve() == self.degraded.root.resolve()
        clean = self.source.by_stem()
        if listed := self._listed(opt):
            clean = {stem: key for stem, key in clean.items() if key in listed}
        template = "{}" if self.source.is_lmdb else opt.get("filename_tmpl") or "{}"
        if "{}" not in str(template):
            raise UserError(f"filename_tmpl: expected a name with {{}} for the clean image's, got {template!r}")
        include, exclude = (default if opt.get(key) is None else opt[key] for key, default in _ALL.items())
        degraded = self._degraded_by_stem(set(self.degraded.matching(include, exclude)))
        wanted = {stem: _renamed(stem, template) for stem in clean}
        alone = {name for name in wanted.values() if name not in degraded}
        if not listed:
            others = {_renamed(self.source.stem(key), template) for key in self.source.matching(["*"], [])}
            others |= set(clean) if self._one_root else set()
            alone |= {name for name, (_, matches) in degraded.items() if matches} - others
        if alone:
            raise UserError(
                f"{self.source.root} and {self.degraded.root}: {len(alone)} images have no partner in the other; add "
                f"or remove them: {', '.join(sorted(alone))}"
            )
        self.keys = [key for key in self.source.keys if not listed or key in listed]
        self._partner = {clean[stem]: self._only(degraded[name][0]) for stem, name in wanted.items()}
        if self._one_root and any(key == partner for key, partner in self._partner.items()):
            raise UserError(
                f"dataroot_lq: {self.degraded.root} is dataroot_gt too: images would be restored to "
                "themselves; give the place of the degraded ones"
            )

    def _degraded_by_stem(self, matching: set[str]) -> dict[str, tuple[list[str], bool]]:
        """Keys of the degraded images by relative path without suffix, and whether any of them matches the patterns.

        Patterns choose among the clean images, whose partners may have other suffixes and names. Of two that differ in
        their suffix alone the one that matches them counts.
        """
        found: dict[str, list[str]] = {}
        for key in self.degraded.keys:
            found.setdefault(self.degraded.stem(key), []).append(key)
        chosen = {stem: [key for key in keys if key in matching] for stem, keys in found.items()}
        return {stem: (chosen[stem] or keys, bool(chosen[stem])) for stem, keys in found.items()}

    def _only(self, keys: list[str]) -> str:
        if len(keys) > 1:
            first, second = map(self.degraded.describe, keys[:2])
            raise UserError(f"{second} and {first} differ only in suffix; keep one")
        return keys[0]

    def _listed(self, opt: dict) -> frozenset[str]:
        """The clean images of `meta_info_file`; empty without one. BasicSR's LMDBs have a list of their own."""
        if not opt.get("meta_info_file") or self.source.is_lmdb:
            return frozenset()
        if not isinstance(opt["meta_info_file"], str | Path):
            raise UserError(f"meta_info_file: expected the name of a file, got {opt['meta_info_file']!r}")
        path = at_home(opt["meta_info_file"])
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"meta_info_file: {path}: cannot be read ({error}); give a list or leave it out") from error
        known = set(self.source.keys)
        whole = [_SHAPE.sub("", line.strip()) for line in lines if line.strip()]
        names = frozenset(next((one for one in (name, name.split(" ")[0]) if one in known), name) for name in whole)
        if not names:
            raise UserError(f"meta_info_file: {path}: lists no image; write a line for each, or leave it out")
        if missing := sorted(names.difference(self.source.keys)):
            raise UserError(f"meta_info_file: {path}: not in {self.source.root}: {', '.join(missing)}")
        return names

    def _pair(self, key: str) -> tuple[np.ndarray, np.ndarray, str, str]:
        partner = self._partner[key]
        gray = self.in_chans == 1
        clean = self.source.read(key, gray)
        degraded = self.degraded.read(partner, gray)
        paths = self.degraded.describe(partner), self.source.describe(key)
        if problem := _size_problem(degraded, clean, *paths):
            raise UserError(problem)
        return degraded, clean, *paths

    def _whole(self, key: str) -> dict:
        degraded, clean, lq_path, gt_path = self._pair(key)
        return {"lq": to_tensor(degraded), "gt": to_tensor(clean), "lq_path": lq_path, "gt_path": gt_path}

    def _crop(self, key: str, rng: np.random.Generator, size: int) -> dict:
        degraded, clean, lq_path, gt_path = self._pair(key)
        window = self._window(clean.shape, gt_path, rng, size)
        mode, left = self._symmetry(rng)
        lq, gt = (to_tensor(augment(image[window], mode)) for image in (degraded, clean))
        return {"lq": lq, "gt": gt, "lq_path": lq_path, "gt_path": gt_path, **left}

    def check(self) -> None:
        """As the others', for both sides, and every pair must have one size, and no gray file beside color."""
        size, channels = self._requirements()
        problems = self.source.problems(size, channels, self.keys, self._why())
        problems += self.degraded.problems(size, channels, list(self._partner.values()), self._why())
        if not problems:
            problems = [problem for problem in map_threads(self._mismatch, self.keys) if problem]
        raise_problems(self.source.root, problems, len(self))

    def _mismatch(self, key: str) -> str | None:
        """What is wrong with a pair of files that can be read."""
        partner = self._partner[key]
        clean = self.source.read_native(key)
        degraded = self.degraded.read_native(partner)
        paths = self.degraded.describe(partner), self.source.describe(key)
        if problem := _size_problem(degraded, clean, *paths):
            return problem
        if self.in_chans == 3 and degraded.ndim == 2 and clean.ndim == 3 and (clean != clean[..., :1]).any():
            return f"{paths[0]}: is gray, but {paths[1]} is in color, which no network could bring back"
        return None


def _size_problem(degraded: np.ndarray, clean: np.ndarray, lq_path: str, gt_path: str) -> str | None:
    if degraded.shape[:2] == clean.shape[:2]:
        return None
    return f"{lq_path}: size {degraded.shape[:2]}, but {gt_path} has {clean.shape[:2]}"


def _renamed(stem: str, template: str) -> str:
    """The relative path of a clean image without suffix, as that of its degraded partner."""
    path = PurePosixPath(stem)
    return str(path.with_name(template.replace("{}", path.name)))
