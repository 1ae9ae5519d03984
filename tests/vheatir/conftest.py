"""Small image folders for the data tests."""

import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest


def _photo(name: str) -> np.ndarray:
    import skimage.data

    return getattr(skimage.data, name)()


@pytest.fixture
def photo_folder(tmp_path: Path) -> Callable[..., Path]:
    """`photo_folder("gt", size=80)`: nine color crops of scikit-image photos in a folder and one below."""

    def make(name: str = "gt", size: int = 80, count: int = 9) -> Path:
        root = tmp_path / name
        (root / "below").mkdir(parents=True)
        for number in range(count):
            photo = _photo(("astronaut", "coffee", "chelsea")[number % 3])
            y, x = 30 * (number // 3), 40 * (number // 3)
            crop = np.ascontiguousarray(photo[y : y + size, x : x + size + number, ::-1])
            folder, suffix = (root / "below" if number % 2 else root), (".jpg" if number % 4 == 0 else ".png")
            assert cv2.imwrite(str(folder / f"photo{number}{suffix}"), crop)
        return root

    return make


@pytest.fixture
def build() -> Iterator[Callable]:
    """`build("noise" | "jpeg", root, **options)`: a training dataset of 32-pixel crops with everything switched on."""
    from vheatir.data.datasets import GaussianNoiseDataset, JPEGDataset
    from vheatir.data.sources import close_environments

    common = {"phase": "train", "gt_size": 32, "gray_probability": 0.3, "level_map": True}
    own = {
        "noise": (GaussianNoiseDataset, {"sigma": {"min": 0, "max": 55}}),
        "jpeg": (JPEGDataset, {"quality": {"min": 5, "max": 95}, "double_probability": 0.5}),
    }

    def make(kind: str, root: Path, **options):
        cls, defaults = own[kind]
        return cls({"dataroot_gt": str(root), **common, **defaults, **options})

    yield make
    close_environments()


TINY_RECIPE = """
name: tiny
model_type: VHeatIRModel
num_gpu: 0
manual_seed: 3
threads: 1
datasets:
  train:
    {type: GaussianNoiseDataset, dataroot_gt: TRAIN, sigma: 25, gt_size: 16, batch_size_per_gpu: 2, cache: memory}
  val: {type: GaussianNoiseDataset, dataroot_gt: VAL, sigma: 25}
network_g: {type: VHeatIR, dim: 8, depths: [1], embed_size: 8, reach: [0.5, 4.0]}
path: {experiments_root: ROOT}
train:
  ema_decay: 0.9
  optim_g: {type: Adam, lr: 2e-3}
  scheduler: {type: MultiStepLR, milestones: [6, 9], gamma: 0.5}
  total_iter: 12
  warmup_iter: 3
  grad_clip: 1.0
  pixel_opt: {type: CharbonnierLoss, eps: 1e-6}
val:
  val_freq: 6
  metrics: {psnr: {type: vheatir_psnr}}
logger: {print_freq: 2, save_checkpoint_freq: 4, keep_checkpoints: 2, use_tb_logger: false}
"""


@pytest.fixture(scope="session")
def small_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train/ (5 images of 40x44) and val/ (2 of 32x32)."""
    root = tmp_path_factory.mktemp("photos")
    for name, count, size in (("train", 5, (40, 44)), ("val", 2, (32, 32))):
        (root / name).mkdir()
        for number in range(count):
            crop = _photo("astronaut")[60 * number :, 90 * number :][: size[0], : size[1], ::-1]
            assert cv2.imwrite(str(root / name / f"{name}{number}.png"), np.ascontiguousarray(crop))
    return root


@pytest.fixture(scope="session")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In place of BSD: folder/ with names as it has them, and train.lmdb of the same images."""
    from vheatir.prepare.patches import make_lmdb

    root = tmp_path_factory.mktemp("stand-in")
    (root / "folder").mkdir()
    for number, name in enumerate(("100075.jpg", "12003.jpg", "38082.jpg", "385028.jpg")):
        crop = _photo("astronaut")[50 * number :, 50 * number :][:64, :72, ::-1]
        assert cv2.imwrite(str(root / "folder" / name), np.ascontiguousarray(crop))
    make_lmdb(root / "folder", root / "train.lmdb")
    return root


@pytest.fixture
def recipe(small_photos: Path, tmp_path: Path) -> Path:
    """A YAML file that trains a tiny network for 12 iterations, in well under a second."""
    text = TINY_RECIPE.replace("TRAIN", str(small_photos / "train")).replace("VAL", str(small_photos / "val"))
    path = tmp_path / "tiny.yml"
    path.write_text(text.replace("ROOT", str(tmp_path / "runs")))
    return path


class Training:
    """`vheatir train` on a recipe, and what it wrote."""

    def __init__(self, recipe: Path, root: Path):
        self.recipe, self.root = recipe, root

    def argv(self, *overrides: str, name: str = "tiny", resume: bool = False) -> list[str]:
        settings = [part for text in (f"name={name}", *overrides) for part in ("--set", text)]
        return ["-opt", str(self.recipe), *settings, *(["--resume"] if resume else [])]

    def __call__(self, *overrides: str, name: str = "tiny", resume: bool = False, status: int = 0) -> Path:
        """Train with `a.b=c` overrides; returns the run's folder."""
        from vheatir.train.command import main

        assert main(self.argv(*overrides, name=name, resume=resume)) == status
        return self.root / name

    def ranks(self, count: int, *overrides: str, name: str = "tiny", more: tuple[str, ...] = (), patch=None) -> list:
        """Train in so many processes, `patch(rank)` called before in each; how each ended (see ranks.py)."""
        from vheatir.cli import run
        from vheatir.train.command import main
        from vheatir.train.registry import register_all

        register_all()
        cv2.setNumThreads(0)  # its threads do not survive a fork
        argv = [*self.argv(*overrides, name=name), "--launcher", "pytorch", *more]

        def work(rank: int) -> int:
            if patch is not None:
                patch(rank)
            return run(main, argv)

        return _load("ranks").run_ranks(count, work, self.recipe.parent)

    @staticmethod
    def curves(folder: Path) -> list[dict]:
        return [json.loads(line) for line in (folder / "curves.jsonl").read_text().splitlines()]

    def losses(self, folder: Path) -> list[float]:
        return [point["train/l_pix"] for point in self.curves(folder) if "train/l_pix" in point]

    @staticmethod
    def state(folder: Path) -> dict:
        """The model's part of the newest checkpoint."""
        from vheatir.runs.checkpoints import load_latest

        return load_latest(folder / "checkpoints")["model"]

    def assert_same(self, one: Path, other: Path) -> None:
        """Network, average, optimizer and schedule of two runs agree bit for bit."""
        import torch

        a, b = self.state(one), self.state(other)
        assert a.keys() == b.keys() and a["schedulers"] == b["schedulers"]
        for part in ("network", "network_ema"):
            for key in a.get(part, {}):
                assert torch.equal(a[part][key], b[part][key]), f"{part}.{key}"
        moments = [state["optimizers"][0]["state"] for state in (a, b)]
        for key in moments[0]:
            for name, value in moments[0][key].items():
                assert torch.equal(torch.as_tensor(value), torch.as_tensor(moments[1][key][name])), f"{key}.{name}"


@pytest.fixture(scope="session")
def normed() -> str:
    """An override that trains a network with running statistics."""
    from basicsr.utils.registry import ARCH_REGISTRY
    from torch import nn

    from vheatir.train.registry import register_all

    class Normed(nn.Module):
        def __init__(self, width: int = 8):
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.Conv2d(width, 3, 1))

        def forward(self, x):
            return x + self.body(x)

    register_all()
    ARCH_REGISTRY.register(Normed)
    return "network_g={type: Normed}"


@pytest.fixture
def train(recipe: Path, tmp_path: Path) -> Training:
    """Runs `vheatir train` on the recipe with `train("a.b=c", ..., name=..., resume=...)`."""
    import vheatir  # noqa: F401 (the alias that BasicSR needs)

    pytest.importorskip("basicsr", reason="training needs BasicSR")
    return Training(recipe, tmp_path / "runs")


@cache
def _load(name: str):
    """A module in this folder; test folders are no packages, so it is loaded by its place."""
    import importlib.util

    spec = importlib.util.spec_from_file_location(f"vheatir_tests_{name}", Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def tiny():
    """The module tests/vheatir/tiny.py."""
    return _load("tiny")


@pytest.fixture(scope="session")
def load_beside():
    """`load_beside("ranks")`: a module of helpers in this folder."""
    return _load
