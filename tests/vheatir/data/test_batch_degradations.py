"""What the device does for whole batches, against the loader: same strengths, same symmetries, like images."""

import pytest
import torch
from torch.utils.data import DataLoader, default_collate

from vheatir.data.batch_degradations import finish_batch
from vheatir.data.sampling import IterationSampler
from vheatir.errors import UserError
from vheatir.metrics.batched import batch_psnr_ssim


def batches(dataset, count, device, size=8, **settings):
    """The first `count` batches as the network gets them."""
    loader = DataLoader(dataset, batch_sampler=IterationSampler(size, count, **settings))
    return [finish_batch(batch, device) for batch in loader]


def test_noise_on_the_device_has_the_statistics_of_the_loaders(photo_folder, build, device):
    root, options = photo_folder(), {"sigma": {"min": 5, "max": 55}, "gray_probability": 0.4}
    loaded = batches(build("noise", root, **options), 20, device)
    made = batches(build("noise", root, on_device=["noise"], **options), 20, device)
    deviations = []
    for left, right in zip(loaded, made, strict=True):
        assert torch.equal(left["gt"], right["gt"]) and torch.equal(left["level"], right["level"])
        for batch in (left, right):
            noise = (batch["lq"] - batch["gt"]) / batch["level"].float()[:, None, None, None]
            gray = (batch["gt"] == batch["gt"][:, :1]).flatten(1).all(1)
            assert (noise[gray] - noise[gray][:, :1]).abs().max() < 1e-4, "gray samples have one plane of noise"
            correlation = (noise[~gray][:, 0] * noise[~gray][:, 1]).mean()
            assert abs(correlation) < 5 / noise[~gray][:, 0].numel() ** 0.5, "color ones have three"
            deviations.append(noise[:, 0].flatten())
    for one_side in (torch.cat(deviations[0::2]).double(), torch.cat(deviations[1::2]).double()):
        count = len(one_side)
        assert abs(one_side.mean()) < 5 / count**0.5
        assert abs(one_side.std() - 1) < 5 / (2 * count) ** 0.5
        assert abs((one_side**4).mean() - 3) < 5 * (96 / count) ** 0.5, "not Gaussian"


@pytest.mark.parametrize("workers", [0, 2])
def test_resumed_batches_of_the_device_are_the_same_bit_for_bit(workers, photo_folder, build, device):
    root, options = photo_folder(), {"on_device": ["noise", "augment"]}
    whole = batches(build("noise", root, **options), 6, device)
    sampler = IterationSampler(8, 6, start_iteration=4)
    loader = DataLoader(build("noise", root, **options), batch_sampler=sampler, num_workers=workers)
    torch.manual_seed(5)  # whatever the global state is
    for want, batch in zip(whole[4:], loader, strict=True):
        got = finish_batch(batch, device)
        assert torch.equal(want["lq"], got["lq"]) and torch.equal(want["gt"], got["gt"])
    noises = torch.cat([batch["lq"] - batch["gt"] for batch in whole])
    assert len({plane.cpu().numpy().tobytes() for plane in noises}) == len(noises), "no two samples share their noise"


def test_two_ranks_make_on_the_device_what_one_process_makes(photo_folder, build, device):
    dataset = build("noise", photo_folder(), on_device=["noise", "augment"])
    whole = batches(dataset, 3, device)
    ranks = [batches(dataset, 3, device, rank=rank, world_size=2) for rank in (0, 1)]
    for batch, *parts in zip(whole, *ranks, strict=True):
        assert torch.equal(batch["lq"], torch.cat([part["lq"] for part in parts]))


def test_symmetries_of_the_device_are_the_loaders(photo_folder, build, device):
    root, options = photo_folder(), {"sigma": 0, "gray_probability": 0}
    loaded = batches(build("noise", root, **options), 10, device)
    made = batches(build("noise", root, on_device=["augment"], **options), 10, device)
    for left, right in zip(loaded, made, strict=True):
        assert torch.equal(left["gt"], right["gt"]) and torch.equal(left["lq"], right["lq"])


@pytest.mark.parametrize("in_chans", [1, 3])
def test_approximate_jpeg_is_near_the_real_one_of_the_same_samples(in_chans, photo_folder, build, device):
    """In quality, grid and number of compressions; half of the samples are compressed twice."""
    options = {"in_chans": in_chans, "gray_probability": 0, "quality": {"min": 10, "max": 60}, "gt_size": 32}
    root = photo_folder(size=100)
    loaded = batches(build("jpeg", root, **options), 6, device)
    made = batches(build("jpeg", root, on_device=["jpeg_approximate", "augment"], **options), 6, device)
    nearness, damage, approximated = [], [], []
    for left, right in zip(loaded, made, strict=True):
        assert torch.equal(left["level"], right["level"])
        if in_chans == 3:  # gray takes one of two formulae by chance
            assert torch.equal(left["gt"], right["gt"])
        nearness.append(batch_psnr_ssim(right["lq"], left["lq"])[0])
        damage.append(batch_psnr_ssim(left["lq"], left["gt"])[0])
        approximated.append(batch_psnr_ssim(right["lq"], right["gt"])[0])
        assert (right["lq"] * 255 - (right["lq"] * 255).round()).abs().max() < 1e-3
    nearness, damage, approximated = (torch.cat(figures) for figures in (nearness, damage, approximated))
    assert (nearness > damage + 2).float().mean() > 0.95 and nearness.mean() > damage.mean() + 6
    assert abs(approximated.mean() - damage.mean()) < 1.5  # soft rounding is a little kinder


def test_pairs_leave_their_symmetries_to_the_device(photo_folder, device):
    from vheatir.data.datasets import PairedDataset

    roots = {"dataroot_gt": str(photo_folder("gt")), "dataroot_lq": str(photo_folder("lq"))}
    loaded, made = (
        batches(PairedDataset({**roots, "gt_size": 32, "on_device": steps}), 3, device) for steps in ([], ["augment"])
    )
    for left, right in zip(loaded, made, strict=True):
        assert torch.equal(left["gt"], right["gt"]) and torch.equal(left["lq"], right["lq"])


def test_a_batch_with_nothing_left_to_do_is_only_moved(photo_folder, build, device):
    dataset = build("noise", photo_folder())
    batch = default_collate([dataset[n] for n in range(3)])
    done = finish_batch(batch, device)
    assert done.keys() == batch.keys() and torch.equal(done["lq"].cpu(), batch["lq"])


@pytest.mark.parametrize(
    "kind, options, message",
    [
        ("noise", {"on_device": ["jpeg"]}, r"on_device: expected a list of augment, noise, got \['jpeg'\]"),
        ("jpeg", {"on_device": ["noise"]}, r"expected a list of augment, jpeg_approximate"),
        ("noise", {"on_device": "noise"}, r"expected a list of augment, noise, got 'noise'"),
        ("jpeg", {"on_device": ["augment"]}, "would flip and rotate the blocks"),
        ("noise", {"on_device": ["noise"], "phase": "val", "sigma": 25}, "on_device: is for training"),
        ("noise", {"progressive": [{}], "phase": "val", "sigma": 25}, "progressive: is for training"),
    ],
)
def test_wrong_steps_are_refused(kind, options, message, photo_folder, build):
    with pytest.raises(UserError, match=message):
        build(kind, photo_folder(), **options)
