"""LPIPS, DISTS and NIQE: equal images, order, gray, size, and what is missing said.

The trained features are not here: their layers are, with random weights, under the true heads. Whether the figures are
those of the papers is tested where the files for it lie: weights in torch's cache, images below VHEATIR_TEST_DATA.
"""

import json
import math
import os
import sys
import urllib.error
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from vheatir.cli import main as vheatir_main
from vheatir.errors import UserError
from vheatir.evaluate.api import evaluate
from vheatir.image_io.arrays import luma_bt601
from vheatir.metrics.perceptual import NAMES, Perceptual, _images


def photo(side=224):
    import skimage.data

    return np.ascontiguousarray(skimage.data.astronaut()[:side, 100 : 100 + side])


def noisy(image, sigma):
    noise = np.random.default_rng(0).normal(0, sigma, image.shape)
    return np.rint(image + noise).clip(0, 255).astype(np.uint8)


@pytest.fixture
def random_features(monkeypatch):
    """torchvision's AlexNet and VGG16 without their trained weights, and without what is no feature."""
    torchvision = pytest.importorskip("torchvision")
    dists = pytest.importorskip("torchmetrics.functional.image.dists", reason="needs torchmetrics")

    class Network:
        def __init__(self, make):
            with torch.device("meta"):
                self.features = make(weights=None).features
            self.features.to_empty(device="cpu")
            generator = torch.Generator().manual_seed(0)
            for value in self.features.parameters():
                torch.nn.init.normal_(value, std=(2 / max(value[0].numel(), 1)) ** 0.5, generator=generator)

    alexnet, vgg16 = torchvision.models.alexnet, torchvision.models.vgg16
    monkeypatch.setattr(torchvision.models, "alexnet", lambda weights: Network(alexnet))
    monkeypatch.setattr(dists, "vgg16", lambda weights: Network(vgg16))


@pytest.mark.parametrize("name", ["lpips", "dists"])
def test_equal_images_are_at_0_and_more_noise_is_farther(random_features, name):
    measure, image = Perceptual([name]), photo(96)
    assert measure(image, image)[name] == pytest.approx(0, abs=1e-5)
    found = [measure(noisy(image, sigma), image)[name] for sigma in (5, 25, 75)]
    assert 0 < found[0] < found[1] < found[2]
    gray = image[:, :, 1]
    as_color = np.repeat(gray[:, :, None], 3, axis=2)
    far = noisy(gray, 25)
    assert measure(far, gray)[name] == pytest.approx(measure(np.repeat(far[:, :, None], 3, axis=2), as_color)[name])
    assert math.isfinite(measure(image[:32, :32], image[:32, :32])[name])
    with pytest.raises(ValueError, match="32x32 pixels, got 31x96"):
        measure(image[:31], image[:31])


def test_networks_see_rgb_planes_from_0_to_1():
    image = photo(40)
    color, gray = _images("lpips", "cpu", image, image[:, :, 1])
    np.testing.assert_allclose(color[0].permute(1, 2, 0).numpy() * 255, image, atol=1e-4)
    assert torch.equal(gray, color[:, 1:2].expand(-1, 3, -1, -1))


def test_niqe_prefers_photographs_to_noise_and_blur():
    pytest.importorskip("basicsr", reason="NIQE is BasicSR's")
    measure, image = Perceptual(["niqe"]), photo()
    found = {
        "photo": measure(image, image)["niqe"],
        "noise": measure(noisy(image, 50), image)["niqe"],
        "blur": measure(cv2.GaussianBlur(image, (0, 0), 4), image)["niqe"],
    }
    assert 2 < found["photo"] < min(found["noise"], found["blur"]) and max(found.values()) < 100
    assert measure(image, noisy(image, 50))["niqe"] == found["photo"], "the target plays no part"
    luma = luma_bt601(image)
    assert measure(luma, luma)["niqe"] == pytest.approx(found["photo"], rel=1e-4)
    gray = measure(image[:, :, 1], image[:, :, 1])["niqe"]
    assert gray == pytest.approx(found["photo"], rel=0.3) and gray != found["photo"]
    with pytest.raises(ValueError, match="96x192 pixels, got 191x191"):
        measure(image[:191, :191], image[:191, :191])


def test_what_is_missing_is_said(monkeypatch, tmp_path):
    pytest.importorskip("torchmetrics", reason="needs torchmetrics")
    with pytest.raises(UserError, match="unknown metrics ssimx; known: lpips, dists, niqe"):
        Perceptual(["lpips", "ssimx"])

    def offline(*_arguments, **_options):
        raise urllib.error.URLError("no connection")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(UserError, match=r"download.pytorch.org/models/alexnet-.*no connection.*put it at"):
        Perceptual(["lpips"])
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    with pytest.raises(UserError, match=r"vheatir\[metrics\]"):
        Perceptual(["dists"])


def test_an_unusable_device_is_not_taken_for_missing_features(random_features):
    with pytest.raises(UserError, match="the device 'cuda:99' cannot be used"):
        Perceptual(["lpips"], "cuda:99")


def test_the_command_prints_and_writes_them(random_features, tmp_path, capsys, monkeypatch):
    pytest.importorskip("basicsr", reason="NIQE is BasicSR's")
    monkeypatch.chdir(tmp_path)
    Path("clean").mkdir()
    cv2.imwrite("clean/a.png", photo()[:, :, ::-1])
    fixed = ["evaluate", "--task", "denoise", "--data", "clean", "--color", "--sigma", "15", "50", "--weights", "none"]
    assert vheatir_main([*fixed, "--metrics", *NAMES, "--json", "out.json"]) == 0
    said = capsys.readouterr().out
    assert "LPIPS" in said and "DISTS" in said and "NIQE" in said
    low, high = (result["input"] for result in json.loads(Path("out.json").read_text())["results"])
    assert set(low) == {"psnr", "ssim", "psnrb", *NAMES}
    assert all(low[name] < high[name] for name in NAMES)
    assert f"{low['niqe']:.4f}" in said
    cv2.imwrite("clean/small.png", photo(60)[:, :, ::-1])
    assert vheatir_main([*fixed, "--metrics", "niqe"]) == 2
    assert "small.png" in capsys.readouterr().err


def test_an_image_that_is_too_small_at_the_end_shows_before_any_work(tmp_path):
    pytest.importorskip("basicsr", reason="NIQE is BasicSR's")
    for name, side in (("a", 224), ("b", 100)):
        cv2.imwrite(str(tmp_path / f"{name}.png"), photo(side))
    unused = lambda *_: pytest.fail("restored before the sizes were known")  # noqa: E731
    with pytest.raises(UserError, match=r"b\.png: niqe needs 96x192 pixels, got 100x100"):
        evaluate(tmp_path, "denoise", 25, gray=False, method=unused, metrics=["niqe"])


def published(*parts):
    """A file for calibration; the test is skipped where it is missing."""
    path = Path(os.environ.get("VHEATIR_TEST_DATA", "none"), *parts)
    if not path.is_file():
        pytest.skip(f"needs {Path(*parts)} below VHEATIR_TEST_DATA")
    return cv2.imread(str(path))[:, :, ::-1]


def test_niqe_of_the_published_image():
    """MATLAB's value, as BasicSR's documentation gives it for Set14's baboon."""
    pytest.importorskip("basicsr", reason="NIQE is BasicSR's")
    image = published("Set14", "baboon.png")
    assert Perceptual(["niqe"])(image, image)["niqe"] == pytest.approx(5.7296, abs=5e-4)
