"""Folders of images to evaluate."""

from pathlib import Path

import cv2
import numpy as np
import pytest


def random_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return cv2.resize(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with two color files, one of them below it, and a gray one."""
    folder = tmp_path / "set"
    (folder / "more").mkdir(parents=True)
    cv2.imwrite(str(folder / "a.png"), random_image(40, 50))
    cv2.imwrite(str(folder / "more" / "b.png"), random_image(33, 47, 1))
    cv2.imwrite(str(folder / "c.png"), random_image(24, 31, 2)[:, :, 0])
    return folder
