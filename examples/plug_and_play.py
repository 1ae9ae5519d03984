"""Deblur an image with our denoiser as the prior of a plug-and-play solver of deepinv.

Needs `pip install "vheatir[integrations]" scikit-image`; takes about ten seconds on one processor core.
"""

import deepinv
import skimage.data
import torch
from deepinv.optim import L2, PnP, optim_builder

from vheatir.integrations.deepinv import HeatDenoiser


def main(size: int = 128, steps: int = 15, noise: float = 0.03) -> tuple[float, float]:
    """PSNR in dB of a blurred, noisy crop and of the solver's result."""
    torch.manual_seed(0)
    photo = skimage.data.chelsea()[100 : 100 + size, 150 : 150 + size].copy()
    clean = torch.from_numpy(photo).permute(2, 0, 1)[None].float() / 255  # (1, 3, H, W)
    kernel = deepinv.physics.functional.blur.gaussian_blur(sigma=(1.6, 1.6))
    physics = deepinv.physics.BlurFFT((3, size, size), filter=kernel, noise_model=deepinv.physics.GaussianNoise(noise))
    measured = physics(clean)

    sigmas = [0.19 * 0.8**step for step in range(steps)]  # what the denoiser removes, from strong to weak
    solver = optim_builder(
        iteration="HQS",
        prior=PnP(denoiser=HeatDenoiser(inject_noise=True)),
        data_fidelity=L2(),
        max_iter=steps,
        params_algo={"stepsize": [(sigma / noise) ** 2 for sigma in sigmas], "g_param": sigmas},
    )
    with torch.no_grad():
        restored = solver(measured, physics)

    before, after = (-10 * (image - clean).square().mean().log10().item() for image in (measured, restored))
    print(f"measured {before:.2f} dB, restored {after:.2f} dB")
    return before, after


if __name__ == "__main__":
    main()
