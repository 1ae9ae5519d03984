"""Noise, JPEG and gray of the samples: strengths, grid phases, and the protocol's images in validation."""

from collections import Counter

import cv2
import numpy as np
import pytest
import torch

from vheatir.data import datasets
from vheatir.data.degradations import jpeg_roundtrip
from vheatir.data.sources import ImageSource
from vheatir.image_io.arrays import gray_opencv, luma_bt601

KINDS = ("noise", "jpeg")


def test_noise_has_the_stated_deviation_and_is_neither_clipped_nor_rounded(photo_folder, build):
    dataset = build("noise", photo_folder(), sigma=25, gray_probability=0)
    noise = torch.cat([(dataset[n]["lq"] - dataset[n]["gt"]).flatten() for n in range(40)]).double() * 255
    count = len(noise)
    assert abs(noise.mean()) < 5 * 25 / count**0.5
    assert abs(noise.std() - 25) < 5 * 25 / (2 * count) ** 0.5
    assert abs((noise**4).mean() / noise.var() ** 2 - 3) < 5 * (24 / count) ** 0.5, "not Gaussian"
    lq = torch.cat([dataset[n]["lq"].flatten() for n in range(40)])
    assert lq.min() < 0 and lq.max() > 1
    assert (lq * 255 - (lq * 255).round()).abs().mean() > 0.2


@pytest.mark.parametrize("sigma", [25, [15, 25, 50], {"min": 5, "max": 55}], ids=str)
def test_level_is_the_sigma_of_the_sample(sigma, photo_folder, build):
    dataset = build("noise", photo_folder(), sigma=sigma)
    samples = [dataset[n] for n in range(60)]
    levels = [float(sample["level"]) * 255 for sample in samples]
    for sample, level in zip(samples, levels):
        assert sample["level"].dtype == torch.float32 and sample["level"].shape == ()
        assert float((sample["lq"] - sample["gt"]).std()) * 255 == pytest.approx(level, rel=0.15)
    if isinstance(sigma, dict):
        assert 5 <= min(levels) < 12 and 48 < max(levels) <= 55
    else:
        wanted = {float(value) for value in np.atleast_1d(sigma)}
        assert {round(level, 3) for level in levels} == wanted


@pytest.mark.parametrize("in_chans", [1, 3])
def test_validation_noise_is_the_protocols(in_chans, photo_folder, build):
    root = photo_folder()
    dataset = build("noise", root, phase="val", sigma=25, in_chans=in_chans)
    source = ImageSource(root)
    for index, key in enumerate(source.keys):
        clean = source.read_opencv_gray(key) if in_chans == 1 else source.read(key)
        noise = np.random.RandomState(0).normal(0, 25 / 255, clean.shape)
        want = np.atleast_3d((clean / 255 + noise).astype(np.float32)).transpose(2, 0, 1)
        sample = dataset[index]
        np.testing.assert_allclose(sample["lq"].numpy(), want, atol=1e-6)
        assert sample["lq_path"].endswith(key)


# JPEG


@pytest.mark.parametrize("in_chans", [1, 3])
def test_validation_jpeg_is_the_protocols(in_chans, photo_folder, build):
    root = photo_folder()
    dataset = build("jpeg", root, phase="val", quality=10, in_chans=in_chans)
    source = ImageSource(root)
    for index, key in enumerate(source.keys):
        clean = source.read(key)
        clean = luma_bt601(clean) if in_chans == 1 else clean
        sample = dataset[index]
        for name, want in (("gt", clean), ("lq", jpeg_roundtrip(clean, 10))):
            got = sample[name].numpy().transpose(1, 2, 0) * 255
            np.testing.assert_allclose(got, np.atleast_3d(want), atol=1e-4, err_msg=name)


@pytest.mark.parametrize("in_chans", [1, 3])
def test_grid_phase_is_aligned_in_half_the_crops_and_even_in_the_others(in_chans, photo_folder, monkeypatch, build):
    dataset = build("jpeg", photo_folder(), in_chans=in_chans, double_probability=0)
    seen = Counter()
    real = datasets.jpeg_crop

    def spy(image, size, qualities, phases, subsampling):
        assert len(phases) == 1
        seen[phases[0]] += 1
        return real(image, size, qualities, phases)

    monkeypatch.setattr(datasets, "jpeg_crop", spy)
    count, period = 1500, 16 if in_chans == 3 else 8
    for n in range(count):
        dataset[n]
    assert max(map(max, seen)) == period - 1
    aligned = seen.pop((0, 0))
    assert abs(aligned / count - 0.5 - 0.5 / period**2) < 0.06
    for axis in (0, 1):
        places = Counter()
        for phase, times in seen.items():
            places[phase[axis] % 8] += times
        assert sorted(places) == list(range(8))
        assert max(places.values()) < 2 * min(places.values())


def test_grid_of_the_compression_lies_at_the_drawn_phase(tmp_path, monkeypatch, build):
    rng = np.random.default_rng(0)
    cv2.imwrite(str(tmp_path / "a.png"), cv2.GaussianBlur(rng.integers(0, 256, (96, 96), dtype=np.uint8), (5, 5), 0))
    monkeypatch.setattr(datasets, "draw_grid_phase", lambda *_: (3, 6))
    lq = build("jpeg", tmp_path, in_chans=1, quality=5, double_probability=0, augment=False, gt_size=64)[0]["lq"][0]
    steps_y = (lq[1:] - lq[:-1]).abs().mean(1)[: 7 * 8].view(7, 8).mean(0)
    steps_x = (lq[:, 1:] - lq[:, :-1]).abs().mean(0)[: 7 * 8].view(7, 8).mean(0)
    assert (int(steps_y.argmax()) + 1) % 8 == (8 - 3) % 8  # the edge after row r is a block's border
    assert (int(steps_x.argmax()) + 1) % 8 == (8 - 6) % 8


@pytest.mark.parametrize("quality", [10, [10, 40], {"min": 5, "max": 95}], ids=str)
def test_jpeg_level_is_the_quality_of_the_sample(quality, photo_folder, build):
    dataset = build("jpeg", photo_folder(), quality=quality, double_probability=0)
    qualities = {round(100 * float(dataset[n]["level"]), 3) for n in range(60)}
    if isinstance(quality, dict):
        assert 5 <= min(qualities) < 15 and 85 < max(qualities) <= 95
        assert all(value == round(value) for value in qualities)
    else:
        assert qualities == {float(value) for value in np.atleast_1d(quality)}


def test_each_compression_draws_its_chroma_subsampling(photo_folder, monkeypatch, build):
    given = {"double_probability": 0.5, "quality": 40}
    root = photo_folder()
    plain, mixed = (build("jpeg", root, **given, **more) for more in ({}, {"subsampling": ["4:2:0", "4:4:4"]}))
    drawn = []
    real = datasets.jpeg_crop
    monkeypatch.setattr(datasets, "jpeg_crop", lambda *a: drawn.append(a[4]) or real(*a))
    for n in range(40):
        plain[n]
    assert {kind for kinds in drawn for kind in kinds} == {"4:2:0"}
    drawn.clear()
    samples = [mixed[n] for n in range(200)]
    counts = Counter(kind for kinds in drawn for kind in kinds)
    assert set(counts) == {"4:2:0", "4:4:4"} and 0.35 < counts["4:4:4"] / counts.total() < 0.65
    assert any({"4:2:0", "4:4:4"} == set(kinds) for kinds in drawn), "each of two compressions draws its own"
    assert torch.equal(samples[7]["lq"], mixed[7]["lq"]), "a sample is a function of its number"


@pytest.mark.parametrize(("probability", "low", "high"), [(0, 0, 0), (0.25, 0.17, 0.33), (1, 1, 1)])
def test_double_compression_happens_as_often_as_stated(probability, low, high, photo_folder, monkeypatch, build):
    dataset = build("jpeg", photo_folder(), double_probability=probability, quality=40, double_quality=10)
    drawn = []
    real = datasets.jpeg_crop
    monkeypatch.setattr(datasets, "jpeg_crop", lambda *a: drawn.append(a[2]) or real(*a))
    levels = [float(dataset[n]["level"]) for n in range(300)]
    assert low <= sum(qualities == [10, 40] for qualities in drawn) / 300 <= high
    assert all(qualities in ([40], [10, 40]) for qualities in drawn)
    assert levels == pytest.approx([0.4] * 300), "the level is that of the last compression"


# gray


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("probability", "low", "high"), [(0, 0, 0), (0.3, 0.2, 0.4), (1, 1, 1)])
def test_share_of_gray_samples_with_equal_planes_in_both(kind, probability, low, high, photo_folder, build):
    dataset = build(kind, photo_folder(), gray_probability=probability)

    def is_gray(image):
        return torch.equal(image[0], image[1]) and torch.equal(image[0], image[2])

    gray = [sample for sample in (dataset[n] for n in range(200)) if is_gray(sample["gt"])]
    assert all(is_gray(sample["lq"]) for sample in gray)
    assert low <= len(gray) / 200 <= high


def test_half_of_the_gray_jpeg_crops_are_the_luma_of_tests(photo_folder, build):
    dataset, image = build("jpeg", photo_folder()), np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    rng = np.random.default_rng(0)
    drawn = [dataset._gray(image, rng) for _ in range(200)]
    limited = sum(np.array_equal(gray, luma_bt601(image)) for gray in drawn)
    assert 70 < limited < 130 and 200 - limited == sum(np.array_equal(gray, gray_opencv(image)) for gray in drawn)


@pytest.mark.parametrize("kind", KINDS)
def test_gray_file_in_a_color_dataset_is_degraded_in_one_plane(kind, tmp_path, build):
    import skimage.data

    cv2.imwrite(str(tmp_path / "plane.png"), skimage.data.camera()[100:180, 200:280])
    fixed = {"sigma": 25} if kind == "noise" else {"quality": 10}
    for options in ({}, {"phase": "val", **fixed}):
        sample = build(kind, tmp_path, **options)[0]
        for name in ("lq", "gt"):
            assert sample[name].shape[0] == 3
            assert torch.equal(sample[name][0], sample[name][2]), name
        assert not torch.equal(sample["lq"], sample["gt"])


@pytest.mark.parametrize("kind", KINDS)
def test_one_channel_dataset_gives_one_plane(kind, photo_folder, build):
    sample = build(kind, photo_folder(), in_chans=1)[0]
    assert sample["lq"].shape == sample["gt"].shape == (1, 32, 32)
    assert sample["lq"].dtype == sample["gt"].dtype == torch.float32
