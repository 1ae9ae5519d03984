"""PSNR and SSIM of whole batches on their own device, for validation during training; kornia computes the SSIM.

The same protocol as `fidelity`, which stays the one for reported numbers: outputs clamped and rounded to 8 bits,
11x11 Gaussian window over the valid area, mean over the channels. Agrees with it to 1e-4 dB and 1e-5 in float32, to
1e-9 dB and 1e-8 in float64.
"""

import torch
from kornia.metrics import ssim
from torch import Tensor

from vheatir.metrics.fidelity import WINDOW


@torch.no_grad()
def batch_psnr_ssim(restored: Tensor, target: Tensor, *, border: int = 0) -> tuple[Tensor, Tensor]:
    """PSNR in dB and SSIM of each image.

    16-bit inputs are computed in float32. PSNR is inf where an image equals its target.

    Args:
        restored: (B, C, H, W) in [0, 1], clamped and rounded to steps of 1/255.
        target: the same, of the same dtype and device.
        border: pixels cut from each side before comparing.

    Returns:
        Two tensors (B,) on the device of the inputs.

    Raises:
        TypeError: not floating point.
        ValueError: shapes that differ, or too small for the window of the SSIM.
    """
    if restored.shape != target.shape or restored.ndim != 4:
        raise ValueError(f"expected two (B, C, H, W) of one shape, got {tuple(restored.shape)}, {tuple(target.shape)}")
    if not (restored.is_floating_point() and target.is_floating_point()):
        raise TypeError(f"expected floating point in [0, 1], got {restored.dtype} and {target.dtype}")
    height, width = restored.shape[2:]
    if border < 0 or min(height, width) - 2 * border < WINDOW:
        raise ValueError(f"border {border} must be >= 0 and leave {WINDOW}x{WINDOW} pixels of {height}x{width}")
    images = (
        _eight_bits(image)[..., border : height - border, border : width - border] for image in (restored, target)
    )
    restored, target = images
    mse = (restored - target).square().mean(dim=(1, 2, 3))
    similarity = ssim(restored, target, WINDOW, max_val=1.0, eps=0.0, padding="valid")
    return -10 * mse.log10(), similarity.mean(dim=(1, 2, 3))


def _eight_bits(image: Tensor) -> Tensor:
    image = image if image.dtype in (torch.float32, torch.float64) else image.float()
    return (image.clamp(0, 1) * 255).round() / 255
