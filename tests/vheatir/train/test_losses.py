"""The PSNR loss counts images alike. The JPEG consistency loss: small for what was compressed, gradients that lead
there, blind to the context.
"""

import pytest
import torch
from torch.utils.data import default_collate

from vheatir.data.batch_degradations import finish_batch
from vheatir.train.losses import JPEGConsistencyLoss, PSNRLoss, _whole_blocks


def samples(build, root, count=6, **options):
    dataset = build("jpeg", root, gray_probability=0, **{"gt_size": 72, "quality": 20, **options})
    return default_collate([dataset[n] for n in range(count)])


@pytest.mark.parametrize("in_chans", [1, 3])
@pytest.mark.parametrize("double", [0, 1])
def test_the_clean_image_is_consistent_with_its_compression_and_a_blurred_one_is_not(
    in_chans, double, photo_folder, build
):
    batch = samples(build, photo_folder(size=140), in_chans=in_chans, double_probability=double)
    loss, (lq, gt, passes) = JPEGConsistencyLoss(), (batch[key] for key in ("lq", "gt", "jpeg"))
    assert passes.shape == (6, 1 + double, 3)
    clean = loss(gt, lq, passes)
    assert clean < 0.5 * (gt - lq).abs().mean()
    blurred = torch.nn.functional.avg_pool2d(gt, 5, stride=1, padding=2, count_include_pad=False)
    assert loss(blurred, lq, passes) > 1.5 * clean
    shifted = passes.clone()
    shifted[:, -1, 1:] = (shifted[:, -1, 1:] + 4) % 8
    assert loss(gt, lq, shifted) > 1.5 * clean, "another grid is another compression"
    torch.testing.assert_close(JPEGConsistencyLoss(0.25)(gt, lq, passes), 0.25 * clean)


def test_gradient_of_consistency_is_that_of_finite_differences(photo_folder, build):
    batch = samples(build, photo_folder(size=120), count=2, gt_size=64, in_chans=1)
    loss = JPEGConsistencyLoss()
    lq, passes = batch["lq"].double(), batch["jpeg"]
    restored = (lq + 0.02 * torch.randn_like(lq)).requires_grad_()
    loss(restored, lq, passes).backward()
    assert restored.grad.isfinite().all() and restored.grad.abs().max() > 0
    for _ in range(3):
        direction = torch.randn_like(lq)
        step = 1e-6 * direction  # small enough to cross few of the rounding's jumps in slope
        with torch.no_grad():
            difference = (loss(restored + step, lq, passes) - loss(restored - step, lq, passes)) / 2e-6
        torch.testing.assert_close((restored.grad * direction).sum(), difference, rtol=1e-3, atol=1e-6)


def test_descent_on_consistency_approaches_the_compressed_image(photo_folder, build):
    batch = samples(build, photo_folder(size=120), count=2)
    loss, passes = JPEGConsistencyLoss(), batch["jpeg"]
    restored = (batch["lq"] + 0.1 * torch.randn_like(batch["lq"])).requires_grad_()
    optimizer, values = torch.optim.Adam([restored], lr=3e-3), []
    for _ in range(25):
        optimizer.zero_grad()
        values.append(loss(restored, batch["lq"], passes))
        values[-1].backward()
        optimizer.step()
    assert values[-1] < 0.7 * values[0]


@pytest.mark.parametrize("in_chans", [1, 3])
@pytest.mark.parametrize("double", [0, 0.5, 1])
def test_pixels_beyond_the_crop_do_not_count(in_chans, double, photo_folder, build):
    """What the same codec made with the pixels around the crop is reproduced without them, but for the rounding."""
    options = {"double_probability": double, "in_chans": in_chans, "on_device": ["jpeg_approximate"]}
    batch = finish_batch(samples(build, photo_folder(size=140), count=8, **options), torch.device("cpu"))
    assert JPEGConsistencyLoss()(batch["gt"], batch["lq"], batch["jpeg"]) < 0.6 / 255
    moved = (batch["gt"] + 2 / 255).clamp(0, 1)
    assert JPEGConsistencyLoss()(moved, batch["lq"], batch["jpeg"]) > 1 / 255


def test_whole_blocks_by_hand():
    inside = _whole_blocks(torch.tensor([[0, 0, 0], [20, 3, 0]]), 32, 8)
    assert inside[:, 0].tolist() == [False] * 5 + [True] * 24 + [False] * 3 and inside[5].all()
    inside = _whole_blocks(torch.tensor([[30, 2, 0], [20, 3, 0]]), 40, 8)  # grids begin at 3 and 5; 3..35, then 5..29
    assert inside[:, 0].tolist() == [False] * 5 + [True] * 24 + [False] * 11
    with pytest.raises(ValueError, match="may hold no whole block; 64 are enough"):
        JPEGConsistencyLoss()(torch.rand(1, 3, 48, 48), torch.rand(1, 3, 48, 48), torch.ones(1, 2, 3))


def test_consistency_is_the_mean_over_whole_blocks_alone():
    """Flat gray comes out of the codec nearly as it went in; pixels that do not count must not dilute the mean."""
    gray = torch.full((2, 1, 40, 40), 128 / 255)
    passes = torch.tensor([[[30, 2, 0], [20, 3, 0]], [[0, 0, 0], [20, 1, 7]]])
    found = JPEGConsistencyLoss()(gray, gray + 0.1, passes)
    torch.testing.assert_close(found, torch.tensor(0.1), atol=3e-3, rtol=0)


def test_psnr_loss_is_the_negative_psnr_and_every_image_counts_alike():
    torch.manual_seed(0)
    target = torch.rand(2, 3, 16, 16, dtype=torch.float64)
    error = torch.randn_like(target) * torch.tensor([1e-2, 1e-1]).view(2, 1, 1, 1)
    restored = (target + error).requires_grad_()
    loss = PSNRLoss(floor=1e-12)(restored, target)
    decibels = [-10 * float(torch.log10(one.square().mean())) for one in error]
    assert -float(loss) == pytest.approx(sum(decibels) / 2, abs=1e-6)
    loss.backward()
    # A gain of 1 % in the error is worth the same, large or small.
    gains = (restored.grad * error).sum((1, 2, 3))
    torch.testing.assert_close(gains[0], gains[1], rtol=1e-6, atol=0)
    assert float(PSNRLoss(2.0, "sum", 1e-12)(restored, target)) == pytest.approx(4 * float(loss))


def test_psnr_loss_is_finite_for_a_perfect_image():
    image = torch.rand(1, 1, 8, 8).requires_grad_()
    loss = PSNRLoss()(image, image.detach())
    loss.backward()
    assert float(loss) == pytest.approx(-60) and image.grad.isfinite().all()


@pytest.mark.parametrize("wrong", [{"reduction": "none"}, {"floor": 0}])
def test_psnr_loss_refuses_what_it_does_not_know(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        PSNRLoss(**wrong)
