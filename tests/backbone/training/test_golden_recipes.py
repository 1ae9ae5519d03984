"""Golden cases that hold no network: schedules of the recipes, views and figures of the invariance evaluation."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("torchvision", reason="the backbones need the extra `backbone`")

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torchvision.transforms import functional as T

from vheatir.backbone.analysis import invariance
from vheatir.backbone.training.schedules import unified_schedule, vheat_schedule

FOLDER = Path(os.environ.get("VHEATIR_GOLDEN") or Path(__file__).parent.parent.parent / "golden")
CASES = json.loads((FOLDER / "manifest.json").read_text(encoding="utf-8"))["cases"]


def needs(case: str) -> pytest.MarkDecorator:
    """The committed set holds every case, another one may not."""
    return pytest.mark.skipif("VHEATIR_GOLDEN" in os.environ and case not in CASES, reason=f"the set has no {case}")


@needs("recipe/schedules")
def test_schedules(golden):
    args, arrays = CASES["recipe/schedules"]["constructor"], golden.arrays("recipe/schedules")
    length = {"epochs": args["E"], "warmup_epochs": args["W"], "iterations": args["I"]}
    for name, rates in args.items():
        if isinstance(rates, dict):
            schedule = vheat_schedule if name == "vheat_lr" else unified_schedule
            np.testing.assert_allclose(schedule(**length, **rates), arrays[name], rtol=1e-12, atol=0)
    decay = arrays["unified_wd"]
    np.testing.assert_allclose(unified_schedule(**{**length, "warmup_epochs": 0}, base=decay[0], final=decay[0]), decay)


def view(image: Image.Image, name: str, size: int, ratio: float) -> Image.Image:
    kind, *numbers = name.split("_")
    if kind == "standard":
        return invariance.standard_view(image, size, float(numbers[0]))
    if kind == "scale":
        return invariance.scaled_view(image, size, float(numbers[0]))
    if kind == "rotate":
        return invariance.rotated_view(
            image, size, float(numbers[1]), before_crop=numbers[0] == "pre", crop_ratio=ratio
        )
    if kind == "shift":
        pixels, direction = int(numbers[0]), int(numbers[1].removeprefix("mode"))
        return invariance.shifted_view(image, size, pixels, direction, crop_ratio=ratio)
    raise AssertionError(f"no test knows the view {name}")


@needs("invariance/transforms")
def test_views(golden):
    args, arrays = CASES["invariance/transforms"]["constructor"], golden.arrays("invariance/transforms")
    formula = r"uint8 img\[y,x,c\] = \((\d+)x \+ (\d+)y \+ (\d+)c \+ floor\(xy/(\d+)\)\) mod 256"
    by_x, by_y, by_c, part = map(int, re.fullmatch(formula, args["image_formula"]).groups())
    y, x, c = np.indices((*args["image_hw"], 3))
    image = Image.fromarray(((by_x * x + by_y * y + by_c * c + x * y // part) % 256).astype(np.uint8))
    for name, want in arrays.items():
        seen = T.to_tensor(view(image, name, args["crop"], args["crop_ratio"]))
        seen = T.normalize(seen, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
        error = (seen - torch.from_numpy(want)).abs().max().item()
        # Another version of Pillow may round some pixels by a step or two.
        assert error <= 2 / 255 / 0.224, f"{name}: largest error {error:.3g}"


@needs("invariance/metrics")
def test_batch_metrics(golden):
    arrays = {name: torch.from_numpy(value) for name, value in golden.arrays("invariance/metrics").items()}
    inputs = [arrays.pop(name) for name in ("standard_logits", "transformed_logits", "labels")]
    got = invariance.batch_metrics(*inputs)
    assert set(got) == set(arrays)
    for name, want in arrays.items():
        torch.testing.assert_close(got[name], want, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("direction", range(8))
def test_a_full_shift_moves_the_content_by_its_distance(direction):
    """Unlike the published view, in all eight directions and beyond the margin of the resized image."""
    pixels = np.random.default_rng(0).integers(1, 256, (40, 40, 3), dtype=np.uint8)
    image, far = Image.fromarray(pixels), 20
    down, right = (far * step for step in invariance.DIRECTIONS[direction])
    padded = np.pad(pixels, ((50, 50), (50, 50), (0, 0)))
    want = padded[52 + down : 52 + down + 35, 52 + right : 52 + right + 35]
    got = np.array(invariance.shifted_view(image, 35, far, direction, published=False))
    np.testing.assert_array_equal(got, want)
