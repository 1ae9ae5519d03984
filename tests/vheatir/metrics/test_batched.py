"""Batch metrics on the device against the protocol's own, image by image."""

import numpy as np
import pytest
import torch

from vheatir.data.degradations import add_gaussian_noise
from vheatir.image_io.arrays import to_uint8
from vheatir.metrics.batched import batch_psnr_ssim
from vheatir.metrics.fidelity import psnr, ssim

TOLERANCE = {torch.float64: (1e-9, 1e-8), torch.float32: (1e-4, 1e-5)}  # dB, SSIM


def batch(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    ramp = np.linspace(0, 1, shape[1] * shape[2]).reshape(1, shape[1], shape[2], 1)
    target = np.broadcast_to(ramp, shape) * rng.random((shape[0], 1, 1, shape[3]))
    noisy = [add_gaussian_noise(image.squeeze(), 10 + 20 * index, rng) for index, image in enumerate(target)]
    return np.stack(noisy).astype(np.float64).reshape(shape), target


@pytest.mark.parametrize("border", [0, 2])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", [(3, 40, 57, 3), (1, 16, 15, 3), (2, 33, 20, 1)], ids=str)
def test_batches_score_as_their_images(shape, dtype, border, device):
    restored, target = batch(shape)
    tensors = (torch.from_numpy(i.transpose(0, 3, 1, 2).copy()).to(device, dtype) for i in (restored, target))
    found = batch_psnr_ssim(*tensors, border=border)
    for values, figure, tolerance in zip(found, (psnr, ssim), TOLERANCE[dtype]):
        images = ([to_uint8(image.squeeze()) for image in batched] for batched in (restored, target))
        expected = [figure(a, b, border=border) for a, b in zip(*images)]
        assert values.shape == (shape[0],) and values.device.type == device.type
        np.testing.assert_allclose(values.cpu().numpy(), expected, rtol=0, atol=tolerance)


def test_equal_images_are_infinite_and_one():
    image = torch.rand(2, 3, 16, 16)
    found = batch_psnr_ssim(image, image)
    assert torch.isinf(found[0]).all()
    torch.testing.assert_close(found[1], torch.ones(2))


def test_half_precision_is_computed_in_float32():
    image = torch.rand(1, 3, 20, 20)
    found = batch_psnr_ssim(image.half(), (image * 0.9).half())
    assert found[0].dtype == found[1].dtype == torch.float32


@pytest.mark.parametrize(
    ("restored", "target", "border", "error"),
    [
        (torch.rand(1, 3, 20, 20), torch.rand(1, 3, 20, 21), 0, ValueError),
        (torch.rand(3, 20, 20), torch.rand(3, 20, 20), 0, ValueError),
        (torch.rand(1, 3, 20, 20), torch.rand(1, 3, 20, 20), 5, ValueError),
        (torch.zeros(1, 3, 20, 20, dtype=torch.uint8), torch.zeros(1, 3, 20, 20, dtype=torch.uint8), 0, TypeError),
    ],
    ids=["shapes", "no batch", "border", "integers"],
)
def test_wrong_batches_are_refused(restored, target, border, error):
    with pytest.raises(error):
        batch_psnr_ssim(restored, target, border=border)
