"""The task "photo": the default of restoring, strengths of luma and color, what is told, clean images left alone."""

import json

import cv2
import numpy as np
import pytest
import skimage.data
import torch
from numpy.testing import assert_allclose

from vheatir import Restorer, weights
from vheatir.archs.vheatunet_arch import VHeatUNet
from vheatir.cli import main
from vheatir.data.camera import (
    PHASES,
    SRGB_TO_CAMERA,
    Shot,
    Smoothing,
    ToneCurve,
    add_within_range,
    camera_noise,
    read_variance,
    smooth_noise,
)
from vheatir.errors import UserError
from vheatir.image_io import Stored
from vheatir.image_io.arrays import to_float
from vheatir.restore.one_file import find_level

LUMA = np.array([0.299, 0.587, 0.114])


@pytest.fixture
def photo_weights(tmp_path):
    """Weights of a small network that changes images a good deal."""
    torch.manual_seed(0)
    network = VHeatUNet(dim=8, encoder=[1], middle=1, decoder=[1], attention=["heat", "heat"])
    torch.nn.init.normal_(network.conv_last.weight, std=0.02)
    path = tmp_path / "photo.safetensors"
    about = {"arch": "VHeatUNet", "task": "photo", "color": "color", "levels": "none", "license": "none"}
    weights.save(path, network.state_dict(), {**about, "config": json.dumps(network.config)})
    return path


def image():
    return to_float(skimage.data.astronaut()[30:94, 200:280])


def test_luma_and_chroma_are_shares_of_the_change(photo_weights):
    clean = image()
    full = Restorer("photo", photo_weights).restore(clean) - clean
    found = Restorer("photo", photo_weights, luma=0.5, chroma=0.25).restore(clean) - clean
    of_luma = (full @ LUMA)[..., None]
    whole, part = full + clean, found + clean
    inside = ((whole > 0) & (whole < 1) & (part > 0) & (part < 1)).all(2)  # not clipped
    assert inside.mean() > 0.2
    assert_allclose(found[inside], (0.5 * of_luma + 0.25 * (full - of_luma))[inside], atol=2e-6)


def test_without_chroma_only_the_brightness_changes(photo_weights):
    clean = image()
    change = Restorer("photo", photo_weights, chroma=0).restore(clean) - clean
    inside = ((change + clean > 0) & (change + clean < 1)).all(2)  # not clipped
    assert np.abs(change[inside]).max() > 1e-3
    assert np.ptp(change[inside], axis=1).max() < 1e-6


def test_strength_multiplies_both(photo_weights):
    clean = image()
    one = Restorer("photo", photo_weights, strength=0.5).restore(clean)
    both = Restorer("photo", photo_weights, luma=0.5, chroma=0.5).restore(clean)
    assert_allclose(one, both, atol=1e-6)


def test_gray_images_have_no_color_to_change(photo_weights):
    gray = image()[..., 0]
    full = Restorer("photo", photo_weights).restore(gray)
    assert_allclose(Restorer("photo", photo_weights, chroma=0).restore(gray), full, atol=1e-6)


@pytest.mark.parametrize("name", ["strength", "luma", "chroma"])
@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan")])
def test_shares_out_of_range_are_refused(name, value, photo_weights):
    with pytest.raises(UserError, match=f"{name} must lie between 0"):
        Restorer("photo", photo_weights, **{name: value})


@pytest.mark.parametrize("option", ["--sigma", "--quality"])
def test_photo_takes_no_level(option, tmp_path, capsys):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((20, 20, 3), np.uint8))
    assert main(["restore", str(tmp_path / "a.png"), "-o", str(tmp_path / "out"), option, "10"]) == 2
    assert f"{option} does not belong to the task photo" in capsys.readouterr().err


def test_it_is_the_default_and_tells_noise_and_quality(photo_weights, tmp_path, capsys):
    rng = np.random.default_rng(0)
    noisy = np.clip(skimage.data.astronaut()[:200, :240] + rng.normal(0, 12, (200, 240, 3)), 0, 255).astype(np.uint8)
    cv2.imwrite(str(tmp_path / "a.jpg"), noisy[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 83])
    given = ["restore", str(tmp_path / "a.jpg"), "-o", str(tmp_path / "out"), "--weights", str(photo_weights)]
    assert main(given) == 0
    told = capsys.readouterr().err
    assert "noise level" in told and "JPEG quality 83 (from the file)" in told
    assert (tmp_path / "out" / "a.jpg").exists()


def test_noise_that_a_camera_has_smoothed_is_noticed():
    rng = np.random.default_rng(0)
    grain = cv2.GaussianBlur(rng.normal(0, 20, (256, 256, 3)), (0, 0), 1.0)
    noisy = np.clip(0.5 + grain / 255, 0, 1).astype(np.float32)
    restorer = Restorer("photo")
    found = restorer.measure(lambda start, stop: (noisy[start:stop], None), noisy.shape)
    white = restorer.measure(lambda start, stop: (noisy[start:stop], None), noisy.shape, "denoise")
    assert 0.3 * grain.std() < found < 1.5 * grain.std()
    assert white < 0.5 * found


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 20, 3), (20, 1, 1), (3, 5, 1), (513, 1, 3)], ids=str)
def test_images_of_a_few_pixels_have_a_level_too(shape, photo_weights):
    restorer = Restorer("photo", photo_weights)
    flat = np.full(shape, 0.5, np.float32)
    stored = Stored.of_array(np.full(shape, 128, np.uint8), 8)
    assert restorer.measure(lambda start, stop: (flat[start:stop], None), shape) == pytest.approx(0, abs=1e-4)
    assert find_level(restorer, stored, None).text == "noise level 0.0 (estimated); no trace of JPEG found"


@pytest.mark.parametrize("name", ["astronaut", "coffee", "chelsea"])
def test_shipped_weights_leave_clean_images_alone(name):
    clean = to_float(getattr(skimage.data, name)()[40:240, 60:300])
    restored = Restorer("photo").restore(clean)
    assert -10 * np.log10(np.square(restored - clean).mean()) > 42


@pytest.mark.parametrize("color", [(90, 12, 12), (10, 70, 20), (15, 20, 90), (60, 10, 70)], ids=str)
def test_shipped_weights_do_not_shift_dark_saturated_colors(color):
    """Of a surface in shadow grain goes, and the mean stays within a level of the input's; see docs/photographs.md."""
    rng, clean = np.random.default_rng(0), np.full((96, 96, 3), color, np.uint8)
    shot = Shot(
        curve=ToneCurve(2.2, 0.5),
        gains=np.array([2.0, 1, 1.7]),
        color=SRGB_TO_CAMERA[0],
        shot=2e-3,
        read=read_variance(2e-3, 0.0),
        bits=12,
        phase=next(iter(PHASES)),
        demosaicing="bilinear",
        one_sided=False,
    )
    noise = smooth_noise(camera_noise(clean, shot, rng), Smoothing(0.6, 1.6, 0.1, 0.5, 0.45))
    noisy = np.clip(np.rint(add_within_range(clean, noise)), 0, 255)
    restored = 255 * Restorer("photo").restore((noisy / 255).astype(np.float32))
    assert np.abs((restored - noisy).mean((0, 1))).max() < 1
    assert restored.std((0, 1)).mean() < 0.5 * noisy.std((0, 1)).mean()


def test_shipped_weights_remove_grain():
    rng = np.random.default_rng(0)
    clean = cv2.GaussianBlur(to_float(skimage.data.astronaut()[:192, 100:340]), (0, 0), 0.8)
    luma = cv2.GaussianBlur(rng.normal(0, 1, clean.shape[:2]), (0, 0), 0.6)[..., None]
    chroma = cv2.GaussianBlur(rng.normal(0, 1, clean.shape), (0, 0), 1.6)
    noisy = clean + 6 / 255 * luma / luma.std() + 3 / 255 * chroma / chroma.std()
    restored = Restorer("photo").restore(noisy.astype(np.float32))
    before, after = (10 * np.log10(1 / np.square(one - clean).mean()) for one in (noisy, restored))
    assert after > before + 3
