"""Text drawn on training crops: what it looks like, and that a share of all samples has it and the others stay."""

import numpy as np
import pytest
import torch

from vheatir.data.camera_dataset import CameraNoiseDataset
from vheatir.data.datasets import SyntheticDataset
from vheatir.data.drawn_text import draw_text
from vheatir.data.moving_clips import MovingClipsDataset

SIZE = 64
SHARP = {"soft_probability": 0, "shrink_probability": 0, "web_probability": 0, "clean_probability": 1}
KINDS = {
    "camera": (CameraNoiseDataset, {**SHARP, "jpeg_probability": 0}),
    "clips": (MovingClipsDataset, {"sigma": 0, "frames": 1, "still_probability": 1}),
}


@pytest.fixture
def sets(photo_folder, build):
    """`sets(kind, **options)`: training crops of 32 pixels."""
    root = photo_folder()

    def make(kind, **options):
        if kind in KINDS:
            made, plain = KINDS[kind]
            return made({"phase": "train", "gt_size": 32, "dataroot_gt": str(root), **plain, **options})
        return build(kind, root, **options)

    return make


@pytest.mark.parametrize("shape", [(SIZE, SIZE, 3), (SIZE, 48), (9, 7, 3), (1, 1, 3)], ids=str)
def test_a_drawn_crop_is_a_copy_of_its_shape(shape):
    crop = np.full(shape, 120, np.uint8)
    for seed in range(40):
        drawn = draw_text(crop, np.random.default_rng(seed))
        assert drawn.shape == shape and drawn.dtype == np.uint8
        np.testing.assert_array_equal(drawn, draw_text(crop, np.random.default_rng(seed)))
    assert (crop == 120).all()


def test_crops_get_letters_on_images_and_on_pages():
    crop = np.random.default_rng(0).integers(100, 156, (SIZE, SIZE, 3)).astype(np.uint8)
    drawn = np.stack([draw_text(crop, np.random.default_rng(seed)) for seed in range(200)])
    changed = (drawn != crop).any(axis=-1).mean(axis=(1, 2))
    pages = changed > 0.98
    assert 0.35 < pages.mean() < 0.65, "half are pages"
    assert (changed > 0.01).mean() > 0.85 and 0.02 < np.median(changed[~pages]) < 0.7
    flat = [len(np.unique(page.reshape(-1, 3), axis=0)) for page in drawn[pages]]
    assert np.median(flat) > 10, "letters have smooth edges"


@pytest.mark.parametrize("kind", ["noise", "jpeg", "camera", "clips"])
def test_a_share_of_samples_has_text(sets, kind):
    none, all_of_them = (sets(kind, text_probability=share) for share in (0, 1))
    count = 60
    again = sets(kind, text_probability=1)
    assert all(torch.equal(all_of_them[number]["gt"], again[number]["gt"]) for number in range(count))
    some = sets(kind, text_probability=0.3)
    extremes = [
        sum(bool(((sample := one[number]["gt"]) == 0).any() or (sample == 1).any()) for number in range(count))
        for one in (none, some, all_of_them)
    ]
    assert extremes[0] < extremes[1] < extremes[2], "black or white is in text"


@pytest.mark.parametrize("kind", ["noise", "jpeg", "camera", "clips"])
def test_without_the_option_no_random_number_is_drawn(sets, kind, monkeypatch):
    """So the samples of old seeds stay what they were."""
    options = {} if kind in KINDS else {"text_probability": 0}
    before = [sets(kind, **options)[number] for number in range(20)]
    monkeypatch.setattr(SyntheticDataset, "_has_text", lambda dataset, rng: False)
    dataset = sets(kind, **options)
    assert all(
        torch.equal(before[number][name], dataset[number][name]) for number in range(20) for name in ("lq", "gt")
    )


def test_text_is_in_target_and_photograph(sets, monkeypatch):
    """In noisy crops too: text drawn on one of both alone would teach to remove it, or to invent it."""
    monkeypatch.setattr("vheatir.data.camera_dataset.draw_text", lambda image, rng: np.full_like(image, 200))
    dataset = sets("camera", text_probability=1, clean_probability=0, shot_noise=1e-4)
    for number in range(20):
        sample = dataset[number]
        assert (sample["gt"] == 200 / 255).all() and sample["lq"].mean() == pytest.approx(200 / 255, abs=0.02)
        assert not torch.equal(sample["lq"], sample["gt"])
    drawn = sets("camera", text_probability=0.5)
    share = np.mean([bool((drawn[number]["gt"] == 200 / 255).all()) for number in range(100)])
    assert 0.35 < share < 0.65


def test_validation_has_no_text(photo_folder):
    root = str(photo_folder())
    made = [
        CameraNoiseDataset({"phase": "val", "dataroot_gt": root, "text_probability": share}) for share in (0.0, 1.0)
    ]
    assert all(torch.equal(made[0][index]["gt"], made[1][index]["gt"]) for index in range(len(made[0])))


def test_a_share_beyond_one_is_refused(sets):
    with pytest.raises(ValueError, match="text_probability: expected a probability"):
        sets("noise", text_probability=1.5)
