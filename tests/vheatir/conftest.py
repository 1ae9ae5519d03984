"""Small image folders for the data tests."""

from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest


def _photo(name: str) -> np.ndarray:
    import skimage.data

    return getattr(skimage.data, name)()


@pytest.fixture
def photo_folder(tmp_path: Path) -> Callable[..., Path]:
    """`photo_folder("gt", size=80)`: nine colour crops of scikit-image photos in a folder and one below."""

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
