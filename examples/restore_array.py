"""Restore an image that is a NumPy array: remove Gaussian noise of unknown strength.

Needs `pip install vheatir scikit-image`. Takes about five seconds on one processor core.
"""

import numpy as np
import skimage.data

import vheatir
from vheatir.metrics.fidelity import psnr


def as_bytes(image: np.ndarray) -> np.ndarray:
    """Float image in [0, 1] to uint8, as PSNR is computed."""
    return np.rint(image.clip(0, 1) * 255).astype(np.uint8)


def main(size: int = 256, sigma: float = 25.0) -> tuple[float, float]:
    """PSNR in dB before and after restoring a `size` x `size` crop with noise of `sigma` (0-255 scale)."""
    clean = skimage.data.chelsea()[:size, 100 : 100 + size].astype(np.float32) / 255  # (H, W, 3), RGB in [0, 1]
    noisy = clean + np.random.default_rng(0).normal(0, sigma / 255, clean.shape).astype(np.float32)

    restorer = vheatir.Restorer("denoise")  # loads the shipped weights; use it for many images
    restored = restorer.restore(noisy)  # same shape and dtype, clipped to [0, 1]

    before, after = (psnr(as_bytes(image), as_bytes(clean)) for image in (noisy, restored))
    print(f"noisy {before:.2f} dB, restored {after:.2f} dB")
    return before, after


if __name__ == "__main__":
    main()
