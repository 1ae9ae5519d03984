"""Restoring: arrays keep shape and dtype, files go where they should, one broken file does not stop the others."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from vheatir import weights
from vheatir.archs.vheatir_arch import VHeatIR
from vheatir.cli import main as vheatir_main
from vheatir.errors import UserError
from vheatir.image_io import Image, read_image, write_image
from vheatir.restore.restorer import Restorer

CONFIG = {"dim": 8, "depths": [1], "embed_size": 8, "downscale": 2}


def write_weights(path, task="denoise", **changes):
    """A small network whose random last layer really changes the image."""
    torch.manual_seed(0)
    network = VHeatIR(**CONFIG | changes)
    torch.nn.init.normal_(network.conv_last.weight, std=0.02)
    metadata = {"task": task, "levels": "none", "license": "none", "config": json.dumps(network.config)}
    metadata["color"] = "gray" if network.config["in_chans"] == 1 else "color"
    weights.save(path, network.state_dict(), metadata)
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return write_weights(tmp_path_factory.mktemp("weights") / "tiny.safetensors")


@pytest.fixture(scope="module")
def restorer(trained):
    return Restorer("denoise", weights=trained, device="cpu")


@pytest.fixture
def command(trained, tmp_path, monkeypatch):
    """`vheatir restore` in an empty folder; returns the exit status."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        fixed = ["--task", "denoise", "--weights", trained, "--device", "cpu"]
        return vheatir_main(["restore", *map(str, [*arguments, *fixed])])

    return call


def noisy(shape, dtype=np.float32):
    return (0.5 + 0.3 * np.random.default_rng(0).standard_normal(shape)).astype(dtype)


def save_image(path, shape=(20, 24, 3), depth=8, alpha=False):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    opacity = rng.uniform(size=shape[:2]).astype(np.float32) if alpha else None
    write_image(path, Image(rng.uniform(size=shape).astype(np.float32), opacity, bit_depth=depth))
    return path


def below(folder):
    return sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file())


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(1, 1), (1, 1, 3), (1, 257), (257, 1, 3), (31, 45), (31, 45, 3)], ids=str)
def test_shape_and_dtype_stay_and_the_result_is_in_range(restorer, shape, dtype):
    image = noisy(shape, dtype)
    before = image.copy()
    result = restorer.restore(image)
    assert (result.shape, result.dtype) == (shape, dtype)
    assert result.min() >= 0 and result.max() <= 1
    np.testing.assert_array_equal(image, before)


def test_the_network_sees_the_input_unclipped_and_once(restorer):
    image = noisy((24, 30, 3)) * 2 - 0.5
    assert image.min() < -0.5 and image.max() > 1.5
    with torch.no_grad():
        direct = restorer.network(torch.from_numpy(image).permute(2, 0, 1)[None])[0].permute(1, 2, 0).clamp(0, 1)
    np.testing.assert_allclose(restorer.restore(image), direct.numpy(), atol=1e-6)
    assert np.abs(direct.numpy() - image.clip(0, 1)).max() > 0.01, "the network of this test does something"


def test_gray_goes_through_a_color_network_as_three_equal_channels(restorer):
    image = noisy((24, 30))
    color = restorer.network(torch.from_numpy(image).expand(1, 3, -1, -1))[0].mean(0).clamp(0, 1)
    np.testing.assert_allclose(restorer.restore(image), color.detach().numpy(), atol=1e-6)


@pytest.mark.parametrize("view", [lambda a: a[::-1], lambda a: a[:, ::2], lambda a: a.transpose(1, 0, 2)])
def test_views_are_taken_like_copies(restorer, view):
    image = view(noisy((24, 30, 3)))
    np.testing.assert_array_equal(restorer.restore(image), restorer.restore(image.copy()))


def test_tiles_of_a_flat_image_show_no_seams(trained):
    """Far from its border a flat image is flat, whole or in tiles."""
    image = np.full((150, 170, 3), 0.4, np.float32)
    tiled = Restorer("denoise", weights=trained, device="cpu", tile=64, overlap=16).restore(image)
    whole = Restorer("denoise", weights=trained, device="cpu", tile=0).restore(image)
    assert np.abs(tiled - whole).max() < 0.05


def test_gray_weights_restore_gray_and_refuse_color(tmp_path):
    gray = Restorer("denoise", weights=write_weights(tmp_path / "gray.safetensors", in_chans=1), device="cpu")
    assert gray.restore(noisy((9, 12))).shape == (9, 12)
    with pytest.raises(ValueError, match="gray"):
        gray.restore(noisy((9, 12, 3)))


@pytest.mark.parametrize(
    ("image", "error", "advice"),
    [
        (np.zeros((4, 4, 3), np.uint8), TypeError, "/ 255"),
        (np.zeros((4, 4, 3), np.int64), TypeError, "int64"),
        ([[0.5]], TypeError, r"list; give np\.asarray\(image\)"),
        (torch.zeros(3, 4, 4), TypeError, r"Tensor; .*permute\(1, 2, 0\).*numpy\(\)"),
        (np.zeros((4, 4, 3), ">f4"), TypeError, r">f4; give image\.astype\('float32'\)"),
        (np.zeros((4, 4, 4), np.float32), ValueError, "alpha"),
        (np.zeros((3, 4, 4), np.float32), ValueError, r"\(3, 4, 4\); .* image\.transpose\(1, 2, 0\)"),
        (np.zeros((1, 4, 4), np.float32), ValueError, r"give image\[0\]"),
        (np.zeros((4, 4, 1), np.float32), ValueError, r"give image\[\.\.\., 0\]"),
        (np.zeros((2, 4, 4, 3), np.float32), ValueError, "one by one"),
        (np.zeros((0, 4, 3), np.float32), ValueError, "height, width"),
        (np.zeros(4, np.float32), ValueError, "height, width"),
        (np.array([[0.5, np.nan], [np.inf, -np.inf]]), ValueError, "3 NaN or infinite"),
        (np.full((4, 4), 200.0), ValueError, "divide by the value of white"),
    ],
    ids=lambda value: None if isinstance(value, type) else str(np.shape(value)),
)
def test_unsuitable_images_say_what_to_do(restorer, image, error, advice):
    with pytest.raises(error, match=advice):
        restorer.restore(image)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"task": "sharpen"}, "known: photo, denoise, jpeg"),
        ({"task": "jpeg"}, "are for the task 'denoise'"),
        ({"tile": 8}, "at least 16"),
        ({"tile": 32, "overlap": 20}, "half the tile"),
        ({"device": "cuda:99"}, "cuda:99"),
        ({"device": "abacus"}, "abacus"),
        ({"weights": "no such weights"}, "neither a file nor a shipped name"),
    ],
    ids=str,
)
def test_unsuitable_options_are_user_errors(trained, options, reason):
    with pytest.raises(UserError, match=reason):
        Restorer(**{"task": "denoise", "weights": trained, "device": "cpu"} | options)


@pytest.mark.parametrize("task", ["photo", "denoise", "jpeg"])
def test_weights_trained_on_pairs_serve_every_task(task, tmp_path, restorer):
    """What they remove is known to who made the pairs alone."""
    of_pairs = Restorer(task, weights=write_weights(tmp_path / "a.safetensors", task="paired"), device="cpu")
    image = noisy((24, 20, 3))
    np.testing.assert_allclose(of_pairs.restore(image), restorer.restore(image), atol=1e-6)


def test_a_level_is_estimated_given_or_refused(tmp_path, restorer):
    takes_level = Restorer("denoise", weights=write_weights(tmp_path / "a.safetensors", level_map=True), device="cpu")
    image = noisy((64, 64, 3)) * 0.2 + 0.4
    low, high, estimated = (takes_level.restore(image, level=level) for level in (0, 60, None))
    measured = takes_level.measure(lambda start, stop: (image[start:stop], None), image.shape)
    np.testing.assert_array_equal(estimated, takes_level.restore(image, level=measured))
    assert 10 < measured < 25 and np.abs(high - low).max() > 1e-4
    with pytest.raises(ValueError, match="from 0 to 255"):
        takes_level.restore(image, level=300)
    with pytest.raises(ValueError, match="blind"):
        restorer.restore(image, level=25)


@pytest.mark.parametrize("task, level, wanted", [("denoise", 51, 0.2), ("jpeg", 40, 0.4), ("jpeg", None, 0.95)])
def test_the_network_sees_the_level_as_in_training(task, level, wanted, tmp_path):
    """From 0 to 1; 95 is the quality of an image that shows no trace of compression."""
    restorer = Restorer(task, weights=write_weights(tmp_path / "a.safetensors", task, level_map=True), device="cpu")
    network, seen = restorer.network, []
    restorer.network = lambda images, given: seen.append(given) or network(images, given)
    restorer.restore(noisy((64, 64, 3)), level=level)
    torch.testing.assert_close(seen[0], torch.tensor([wanted]))


def test_weights_that_make_nan_are_refused(trained):
    restorer = Restorer("denoise", weights=trained, device="cpu")
    restorer.network = lambda images: images / 0
    with pytest.raises(ValueError, match="the network made NaN or infinite values"):
        restorer.restore(noisy((20, 20, 3)))


@pytest.mark.parametrize("strength", [0, 0.3, 1])
def test_strength_lies_on_the_line_from_the_input_to_the_restored(trained, restorer, strength):
    image = noisy((24, 30, 3)) * 0.1 + 0.4
    partly = Restorer("denoise", weights=trained, device="cpu", strength=strength).restore(image)
    np.testing.assert_allclose(partly, image + strength * (restorer.restore(image) - image), atol=1e-6)


@pytest.mark.parametrize("shape", [(24, 30, 3), (17, 9)], ids=str)
def test_ensemble_is_the_mean_over_flips_and_rotations(trained, restorer, shape):
    """So it commutes with them, which the single pass does not."""
    image = noisy(shape) * 0.1 + 0.4
    ensemble = Restorer("denoise", weights=trained, device="cpu", ensemble=True)
    result = ensemble.restore(image)
    turns = [(turns, flip) for turns in range(4) for flip in (False, True)]
    single = []
    for turn, flip in turns:
        turned = np.rot90(image, turn)[:, ::-1] if flip else np.rot90(image, turn)
        back = restorer.restore(turned)
        single.append(np.rot90(back[:, ::-1] if flip else back, -turn))
    np.testing.assert_allclose(result, np.mean(single, axis=0), atol=1e-5)
    np.testing.assert_allclose(ensemble.restore(np.rot90(image)), np.rot90(result), atol=1e-5)
    assert np.abs(single[1] - single[0]).max() > 1e-4


def test_colors_under_alpha_leave_no_halos_and_stay(restorer):
    """What cannot be seen does not change what can, and comes back as it was."""
    image, alpha = noisy((40, 50, 3)) * 0.1 + 0.4, np.ones((40, 50), np.float32)
    alpha[:, 20:] = 0
    black, white = image.copy(), image.copy()
    black[:, 20:], white[:, 20:] = 0, 1
    results = [restorer.restore(pixels, alpha=alpha) for pixels in (black, white)]
    np.testing.assert_array_equal(results[0][:, :20], results[1][:, :20])
    np.testing.assert_array_equal(results[0][:, 20:], 0)
    np.testing.assert_array_equal(results[1][:, 20:], 1)
    assert np.abs(restorer.restore(black) - restorer.restore(white))[:, :20].max() > 0.01, "halos without alpha"


def test_what_shows_through_a_little_is_restored(restorer):
    image = noisy((24, 30, 3)) * 0.1 + 0.4
    faint = restorer.restore(image, alpha=np.full((24, 30), 0.01, np.float32))
    np.testing.assert_array_equal(faint, restorer.restore(image))


KINDS = [(".png", 8), (".png", 16), (".tif", 16), (".tif", 32), (".jpg", 8), (".webp", 8), (".bmp", 8)]


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 257), (31, 45), (31, 45, 3)], ids=str)
@pytest.mark.parametrize(("suffix", "depth"), KINDS, ids=str)
def test_files_keep_format_depth_size_and_alpha(command, restorer, tmp_path, suffix, depth, shape):
    source = read_image(save_image(tmp_path / f"in{suffix}", shape, depth, alpha=suffix != ".jpg"))
    assert command("in" + suffix, "-o", "out") == 0
    result = read_image(tmp_path / "out" / f"in{suffix}")
    assert (result.pixels.shape, result.bit_depth) == (source.pixels.shape, depth)
    if suffix != ".jpg":
        np.testing.assert_array_equal(result.alpha, source.alpha)
    if suffix not in (".jpg", ".webp"):
        step = 1e-6 if depth == 32 else 0.51 / (2**depth - 1)
        expected = restorer.restore(source.pixels, alpha=source.alpha)
        pixels = result.pixels.clip(0, 1) if depth == 32 else result.pixels  # floats keep what leaves the range
        np.testing.assert_allclose(pixels, expected, atol=step)


def test_sixteen_bit_results_are_not_rounded_to_eight(command, tmp_path):
    save_image(tmp_path / "in.png", (40, 40, 3), depth=16)
    assert command("in.png", "-o", "out") == 0
    result = cv2.imread(str(tmp_path / "out" / "in.png"), cv2.IMREAD_UNCHANGED)
    assert result.dtype == np.uint16 and len(np.unique(result % 257)) > 100


def test_progress_is_told_tile_by_tile(trained):
    shares = []
    Restorer("denoise", weights=trained, device="cpu", tile=16, overlap=4).restore(
        noisy((20, 40)), on_tile=shares.append
    )
    assert shares == sorted(shares) and shares[-1] == 1 and len(shares) == 8


def test_by_default_gray_images_go_through_the_gray_weights(monkeypatch, tmp_path):
    color, gray = tmp_path / "color.safetensors", tmp_path / "gray.safetensors"
    write_weights(color)
    write_weights(gray, in_chans=1)
    monkeypatch.setitem(weights.DEFAULTS, "denoise", {"color": color, "gray": gray})
    image = np.random.default_rng(0).random((20, 24), dtype=np.float32)
    restored = Restorer("denoise", device="cpu").restore(image)
    expected = Restorer("denoise", gray, device="cpu").restore(image)
    np.testing.assert_allclose(restored, expected, atol=1e-6)  # packed weights may lie elsewhere in memory
    assert np.abs(restored - Restorer("denoise", color, device="cpu").restore(image)).max() > 1e-3
    wide = np.repeat(image[..., None], 3, axis=2)
    expected = Restorer("denoise", color, device="cpu").restore(wide)
    np.testing.assert_allclose(Restorer("denoise", device="cpu").restore(wide), expected, atol=1e-6)
