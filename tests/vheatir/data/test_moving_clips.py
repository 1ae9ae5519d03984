"""MovingClipsDataset: pure samples, motion as the options say, noise of each frame's own."""

import numpy as np
import pytest
import torch

from vheatir.archs.alignment import motion
from vheatir.data.moving_clips import MovingClipsDataset
from vheatir.errors import UserError

STILL = {"speed": 0, "shake": 0, "turn": 0, "zoom": 0, "parallax_probability": 0}


@pytest.fixture
def clips(photo_folder):
    """`clips(**options)`: training clips of 32 pixels from nine photographs of 160."""
    root = photo_folder(size=160)

    def make(**options):
        return MovingClipsDataset({"phase": "train", "gt_size": 32, "dataroot_gt": str(root), "sigma": 25, **options})

    return make


def frames_of(sample, frames=5):
    """(T, H, W, C) of a sample's input."""
    return sample["lq"].unflatten(0, (frames, -1)).permute(0, 2, 3, 1).numpy()


def shift_between(one, other):
    """Right and down, where most of the pixels went."""
    gray = [torch.from_numpy(frame.mean(2))[None, None] for frame in (one, other)]
    return motion(*gray)[0].flatten(1).median(1).values.numpy()


def test_sample_depends_on_seed_and_number_only(clips):
    forward, backward = clips(gray_probability=0.3), clips(gray_probability=0.3)
    first = [forward[number] for number in range(12)]
    for number in reversed(range(12)):
        assert all(torch.equal(first[number][name], backward[number][name]) for name in ("lq", "gt"))
    assert all(sample["lq"].shape == (15, 32, 32) and sample["gt"].shape == (3, 32, 32) for sample in first)
    assert not torch.equal(first[0]["lq"], clips(seed=1)[0]["lq"])


def test_the_target_is_the_middle_frame(clips):
    sample = clips(sigma=0)[3]
    assert torch.equal(sample["lq"][6:9], sample["gt"])


def test_without_motion_all_frames_are_alike_and_noise_is_each_ones_own(clips):
    dataset = clips(**STILL)
    sample = clips(**STILL, sigma=0)[0]
    assert all(np.array_equal(frame, frames_of(sample)[0]) for frame in frames_of(sample))
    noise = frames_of(dataset[0]) - dataset[0]["gt"].permute(1, 2, 0).numpy()
    flat = noise.reshape(5, -1)
    assert np.abs(flat.std(1) * 255 - 25).max() < 2
    assert np.abs(np.corrcoef(flat) - np.eye(5)).max() < 0.1


@pytest.mark.parametrize("speed", [1.5, 3.0])
def test_frames_move_by_the_speed(clips, speed):
    dataset = clips(**{**STILL, "speed": speed}, sigma=0, gt_size=64, still_probability=0)
    for number in range(3):
        frames = frames_of(dataset[number])
        moved = shift_between(frames[1], frames[3])
        assert np.hypot(*moved) == pytest.approx(2 * speed, abs=0.3)


def test_a_second_layer_moves_by_itself(clips):
    options = {"speed": 3.0, "shake": 0, "turn": 0, "zoom": 0, "still_probability": 0, "sigma": 0, "gt_size": 64}
    one, two = (clips(**options, parallax_probability=share)[0] for share in (0, 1))
    assert not torch.equal(one["gt"], two["gt"])
    assert two["lq"].isfinite().all() and two["lq"].min() >= 0 and two["lq"].max() <= 1


def test_validation_has_whole_clips_that_stay_the_same(clips):
    dataset = clips(phase="val")
    sample = dataset[2]
    clean = dataset.clip(dataset.keys[2], 9)
    assert sample["gt"].shape[1:] == clean.shape[1:3] and clean.shape[0] == 9
    assert torch.equal((sample["gt"] * 255).round().byte(), torch.from_numpy(clean[4]).permute(2, 0, 1))
    assert np.array_equal(dataset.clip(dataset.keys[2], 5), clean[2:7])
    assert torch.equal(dataset[2]["lq"], sample["lq"])


def test_gray_clips_have_one_plane_of_noise(clips):
    color = frames_of(clips(gray_probability=1)[0])
    assert np.array_equal(color[..., 0], color[..., 2])
    gray = clips(in_chans=1)[0]
    assert gray["lq"].shape == (5, 32, 32) and gray["gt"].shape == (1, 32, 32)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"frames": 4}, "frames: expected an odd number"),
        ({"frames": 0}, "frames: expected an integer"),
        ({"speed": -1}, "speed: expected values from 0 to 64"),
        ({"parallax_probability": 2}, "parallax_probability: expected a probability"),
        ({"on_device": ["augment"]}, "on_device: expected a list of nothing"),
    ],
)
def test_wrong_options_are_named(clips, options, message):
    with pytest.raises(UserError, match=message):
        clips(**options)


def test_images_smaller_than_the_crop_are_named(clips):
    with pytest.raises(UserError, match="gt_size 200"):
        clips(gt_size=200)[0]
