"""CameraNoiseDataset: pure samples, targets that are the clean image, noise like that of real cameras."""

import math

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from vheatir.data.camera_dataset import CameraNoiseDataset
from vheatir.data.noise_statistics import noise_statistics, spread
from vheatir.data.sampling import IterationSampler
from vheatir.data.sources import close_environments, decode_image
from vheatir.errors import UserError
from vheatir.prepare.patches import make_lmdb

PLAIN = {"soft_probability": 0, "shrink_probability": 0, "web_probability": 0, "clean_probability": 0}


@pytest.fixture
def camera(photo_folder):
    """`camera(size=80, **options)`: training crops of 32 pixels from nine photographs."""
    roots = {}

    def make(size=80, **options):
        if size not in roots:
            roots[size] = photo_folder(f"size{size}", size)
        return CameraNoiseDataset({"phase": "train", "gt_size": 32, "dataroot_gt": str(roots[size]), **options})

    yield make
    close_environments()


def whole_numbers(tensor):
    """uint8 (H, W, C) of a sample's plane, after a check that it holds whole 8-bit values."""
    scaled = tensor.permute(1, 2, 0).numpy() * 255
    np.testing.assert_allclose(scaled, np.rint(scaled), atol=1e-3)
    return np.rint(scaled).astype(np.uint8)


def test_sample_depends_on_seed_and_number_only(camera):
    forward, backward = camera(gray_probability=0.3), camera(gray_probability=0.3)
    first = [forward[number] for number in range(40)]
    for number in reversed(range(40)):
        for name in ("lq", "gt"):
            assert torch.equal(first[number][name], backward[number][name])
    assert len({sample["lq"].numpy().tobytes() for sample in first}) == 40
    assert all(sample["lq"].shape == sample["gt"].shape == (3, 32, 32) for sample in first)
    assert not any(torch.equal(sample["lq"], camera(seed=1)[number]["lq"]) for number, sample in enumerate(first))


def test_workers_storage_and_resume_do_not_change_the_batches(camera, tmp_path):
    dataset = camera()
    want = list(DataLoader(dataset, batch_sampler=IterationSampler(4, 6)))
    make_lmdb(dataset.source.root, tmp_path / "packed.lmdb")
    packed = CameraNoiseDataset({"phase": "train", "gt_size": 32, "dataroot_gt": str(tmp_path / "packed.lmdb")})
    packed.check()
    got = DataLoader(packed, batch_sampler=IterationSampler(4, 6, start_iteration=2), num_workers=2)
    for left, right in zip(want[2:], got, strict=True):
        assert torch.equal(left["lq"], right["lq"]) and torch.equal(left["gt"], right["gt"])


def test_target_is_a_part_of_the_clean_image(camera):
    dataset = camera(augment=False, gray_probability=0, **PLAIN)
    for number in range(20):
        sample = dataset[number]
        with open(sample["gt_path"], "rb") as file:
            whole = decode_image(file.read(), "")
        target = whole_numbers(sample["gt"])
        *_, (x, y), _ = cv2.minMaxLoc(cv2.matchTemplate(whole, target, cv2.TM_SQDIFF))
        np.testing.assert_array_equal(whole[y : y + 32, x : x + 32], target)
        assert not torch.equal(sample["lq"], sample["gt"])
        whole_numbers(sample["lq"])


def test_share_of_images_without_noise(camera):
    dataset = camera(clean_probability=0.4, jpeg_probability=0, web_probability=0)
    same = sum(torch.equal(dataset[number]["lq"], dataset[number]["gt"]) for number in range(200))
    assert 60 < same < 100
    compressed = camera(clean_probability=1, jpeg_probability=1, web_probability=0, quality=70)[0]
    assert 0 < float((compressed["lq"] - compressed["gt"]).std()) * 255 < 6


def test_half_of_the_jpeg_grids_begin_with_the_crop(camera):
    options = {"clean_probability": 1, "jpeg_probability": 1, "quality": 8, "subsampling": "4:4:4", "gt_size": 64}
    dataset = camera(size=150, **(PLAIN | options))
    aligned = 0
    for number in range(60):
        steps = (dataset[number]["lq"][1].diff(dim=axis).abs().mean(1 - axis) for axis in (0, 1))
        edges = [np.argmax([float(step[place::8].mean()) for place in range(8)]) for step in steps]
        aligned += edges == [7, 7]  # the step from pixel 7 to pixel 8
    assert aligned > 20


@pytest.mark.parametrize("kind", ["soft", "shrink", "web"])
def test_images_are_softened_shrunk_and_resized_with_their_target(kind, camera):
    def detail(**options):
        dataset = camera(size=300, gray_probability=0, jpeg_probability=0, **{**PLAIN, **options})
        planes = torch.stack([dataset[number]["gt"] for number in range(60)])
        return float(((planes[..., 1:] - planes[..., :-1]).abs().mean()) / planes.std())

    extra = {"web_quality": 95, "soft_scale": 3, "shrink_scale": 2, "web_scale": 2}
    changed = detail(**{f"{kind}_probability": 1, f"{kind}_scale": extra[f"{kind}_scale"]})
    assert changed < 0.6 * detail() if kind == "soft" else changed > 1.1 * detail()


def test_gray_images_have_the_luma_of_camera_noise(camera, tmp_path):
    for sample in (camera(gray_probability=1, **PLAIN)[0], camera(in_chans=1, **PLAIN)[0]):
        assert all(torch.equal(plane, sample["lq"][0]) for plane in sample["lq"])
        assert 0.3 < float((sample["lq"] - sample["gt"]).std()) * 255 < 30
    cv2.imwrite(str(tmp_path / "plane.png"), np.tile(np.arange(90, dtype=np.uint8), (90, 1)))
    gray = CameraNoiseDataset({"phase": "val", "dataroot_gt": str(tmp_path), **PLAIN})[0]
    assert gray["lq"].shape == (3, 90, 90) and torch.equal(gray["lq"][0], gray["lq"][2])


def test_validation_takes_whole_images_each_with_a_camera_of_its_own(camera):
    dataset, again = camera(phase="val", clean_probability=0), camera(phase="val", clean_probability=0)
    assert len(dataset) == 9
    strengths = set()
    for index in range(9):
        one, other = dataset[index], again[index]
        assert torch.equal(one["lq"], other["lq"]) and torch.equal(one["gt"], other["gt"])
        assert one["lq"].shape == one["gt"].shape and min(one["lq"].shape[1:]) == 80
        strengths.add(round(float((one["lq"] - one["gt"]).std()) * 255, 2))
    assert len(strengths) == 9 and max(strengths) > 2 * min(strengths)
    assert not torch.equal(camera(phase="val", seed=5)[0]["lq"], dataset[0]["lq"])


def test_synthesized_noise_looks_like_that_of_cameras(camera):
    """Medians and ranges beside those measured on CC15 and PolyU (docs/training.md)."""
    dataset = camera(size=200, gt_size=96, gray_probability=0, web_probability=0, clean_probability=0)
    found = [
        noise_statistics(whole_numbers(sample["lq"]), whole_numbers(sample["gt"]))
        for sample in (dataset[n] for n in range(150))
    ]
    quantiles = spread(found)
    median = {name: values[1] for name, values in quantiles.items()}
    assert 0.45 < median["luma_1"] < 0.7 and 0.05 < median["luma_2"] < 0.25
    for lag, real in enumerate((0.87, 0.75, 0.6, 0.45), 1):
        assert median[f"chroma_{lag}"] == pytest.approx(real, abs=0.12)
    assert 0.33 < median["ratio"] < 0.7
    real = {"std": (3.05, 5.75), "luma_1": (0.43, 0.70), "chroma_1": (0.85, 0.93), "ratio": (0.31, 0.67)}
    for name, (low, high) in real.items():  # 10 % and 90 % of the 65 pairs
        assert quantiles[name][0] <= low + 0.03 and high <= quantiles[name][2] + 0.03, (name, quantiles[name])
    stripes = [max(one.rows, one.columns) for one in found]
    assert np.quantile(stripes, 0.1) < 0.18 and np.quantile(stripes, 0.9) > 0.34
    assert quantiles["direction"][0] < 0.02 and quantiles["direction"][2] > 0.15


def test_uneven_noise_has_other_strengths_in_places_and_channels(camera):
    plain = {"gray_probability": 0, "jpeg_probability": 0, "smooth_probability": 0, "size": 200, "gt_size": 96, **PLAIN}
    plain["row_probability"] = 0
    even, off = camera(uneven_probability=0, **plain), camera(uneven_probability=0, uneven_places=1, **plain)
    uneven = camera(uneven_probability=1, uneven_places=0.8, uneven_channels=0.8, **plain)

    def strengths(dataset, number):
        noise = (dataset[number]["lq"] - dataset[number]["gt"]).numpy()
        return noise.reshape(3, 4, 24, 4, 24).std((2, 4)), noise.std((1, 2))

    assert all(torch.equal(even[number]["lq"], off[number]["lq"]) for number in range(9)), "old seeds stay valid"
    places, channels = [], []
    for number in range(30):
        assert torch.equal(uneven[number]["gt"], even[number]["gt"])
        found = [np.concatenate([np.log(part).ravel() for part in strengths(one, number)]) for one in (even, uneven)]
        change = found[1] - found[0]
        places.append((change[:48].reshape(3, -1) - change[48:, None]).std())
        channels.append(change[48:].std())
    assert 0.2 < np.median(places) < 0.8 and 0.3 < np.median(channels) < 1.0


def test_row_noise_in_a_share_of_samples(camera):
    plain = {"gray_probability": 0, "jpeg_probability": 0, "uneven_probability": 0, "size": 200, "gt_size": 96, **PLAIN}
    even, off = camera(row_probability=0, **plain), camera(row_probability=0, row_noise=2, **plain)
    striped = camera(row_probability=1, row_noise=1, **plain)

    def stripes(dataset, number):
        found = noise_statistics(*(whole_numbers(dataset[number][name]) for name in ("lq", "gt")))
        return found.rows, found.columns

    assert all(torch.equal(even[number]["lq"], off[number]["lq"]) for number in range(9)), "old seeds stay valid"
    found = np.array([stripes(striped, number) for number in range(40)])
    upright = found[:, 1] > found[:, 0]
    assert 8 < upright.sum() < 32
    assert np.median(found.max(1)) > 2 * np.median([stripes(even, number) for number in range(40)])


def test_smoothing_goes_further_along_rows_or_columns(camera):
    plain = {"gray_probability": 0, "jpeg_probability": 0, "size": 200, "gt_size": 96, "smooth_probability": 1, **PLAIN}
    plain |= {"uneven_probability": 0, "row_probability": 0, "resize_probability": 0}
    even, stretched = camera(smooth_stretch=1, **plain), camera(smooth_stretch=2, **plain)

    def along_rows(dataset, number):
        noise = (dataset[number]["lq"] - dataset[number]["gt"]).mean(0).double()
        rows, columns = noise[:, 1:] - noise[:, :-1], noise[1:] - noise[:-1]
        return float(rows.square().mean() / columns.square().mean())

    assert all(0.8 < along_rows(even, number) < 1.25 for number in range(40))
    found = np.array([along_rows(stretched, number) for number in range(40)])
    assert 8 < (found < 1).sum() < 32 and np.median(np.abs(np.log(found))) > math.log(1.5)


def test_no_color_shifts(camera):
    dataset = camera(gray_probability=0, one_sided_probability=0, jpeg_probability=0, **PLAIN)
    shift = torch.stack([(sample["lq"] - sample["gt"]).mean((1, 2)) for sample in (dataset[n] for n in range(300))])
    error = shift.std(0) / 300**0.5
    assert (shift.mean(0).abs() < 5 * error + 0.1 / 255).all()


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"shot_noise": 0}, "shot_noise"),
        ({"shot_noise": {"min": 0.01, "max": 0.001}}, "shot_noise"),
        ({"bits": 12.5}, "bits"),
        ({"quality": 0}, "quality"),
        ({"demosaicing": "vng"}, "demosaicing"),
        ({"demosaicing": []}, "demosaicing"),
        ({"subsampling": ["4:1:1"]}, "subsampling"),
        ({"jpeg_probability": 2}, "jpeg_probability"),
        ({"soft_probability": 0.7, "shrink_probability": 0.5}, "soft_probability"),
        ({"on_device": ["augment"]}, "on_device"),
        ({"gamma": "2.2"}, "gamma"),
        ({"gt_size": 60}, "gt_size"),
    ],
    ids=str,
)
def test_wrong_option_names_its_key(options, key, camera):
    with pytest.raises(UserError, match=key):
        camera(**options)[0]


def test_every_option_of_the_recipe_is_known_and_has_its_default():
    from pathlib import Path

    from vheatir.data import camera_dataset
    from vheatir.train.options import read_options

    recipe = Path(__file__).resolve().parents[3] / "options" / "photo_light.yml"
    table = read_options(recipe)["datasets"]["train"]
    defaults = {
        key: default for key, (_, _, default) in {**camera_dataset._NUMBERS, **camera_dataset._INTEGERS}.items()
    }
    defaults |= camera_dataset._SHARES | {"demosaicing": ["bilinear", "edge_aware", "malvar"]}
    assert {key: table[key] for key in defaults} == defaults
    assert sorted(table["subsampling"]) == sorted(camera_dataset._NAMES["subsampling"])
