"""Metrics beside fidelity: LPIPS and DISTS compare with the clean image by features of networks, NIQE needs none.

LPIPS and DISTS are torchmetrics' (Apache-2.0), NIQE is BasicSR's (Apache-2.0); lower is better for all three. The
features are those of AlexNet and VGG16 as torchvision trained them on ImageNet, which are fetched at first use.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vheatir.compat import basicsr_niqe
from vheatir.errors import UserError
from vheatir.metrics import PERCEPTUAL
from vheatir.utils.devices import device_named

NAMES = PERCEPTUAL
BLOCK = 96  # pixels; NIQE takes statistics over blocks of this side, at least two
SMALLEST = 32  # pixels; what the features' poolings leave something of

Metric = Callable[[np.ndarray, np.ndarray], float]


class Perceptual:
    """Measures chosen metrics of two uint8 images of equal shape, HWC RGB or HW (gray).

    Args:
        names: of `NAMES`.
        device: a torch device, for LPIPS and DISTS.

    Raises:
        UserError: unknown names, an unusable device, a missing library, or features that cannot be fetched.
    """

    def __init__(self, names: Sequence[str], device: str = "cpu"):
        if unknown := [name for name in names if name not in NAMES]:
            raise UserError(f"unknown metrics {', '.join(unknown)}; known: {', '.join(NAMES)}")
        device_named(device)  # one that cannot be used would be taken for features that cannot be loaded
        make = {"lpips": _lpips, "dists": _dists, "niqe": lambda _device: niqe_function()}
        self._metrics: dict[str, Metric] = {name: make[name](device) for name in dict.fromkeys(names)}

    def check_size(self, height: int, width: int) -> None:
        """ValueError where an image of that size is too small for one of the metrics."""
        for name in self._metrics:
            _check_size(name, height, width)

    def __call__(self, image: np.ndarray, target: np.ndarray) -> dict[str, float]:
        """Each metric under its name; ValueError for images that are too small for one."""
        return {name: metric(image, target) for name, metric in self._metrics.items()}


def _torchmetrics(name: str) -> None:
    try:
        import torchmetrics  # noqa: F401
        import torchvision  # noqa: F401
    except ImportError as error:
        raise UserError(f"{name} needs {error.name}; run `pip install 'vheatir[metrics]'`") from None


def _with_features(name: str, network: str, make: Callable):
    """What `make` builds on torchvision's trained `network`."""
    import torchvision

    try:
        return make()
    except (OSError, RuntimeError) as error:  # no connection, no space, a cut file whose hash is wrong
        choices: Any = torchvision.models.get_model_weights(network)  # each network has its own enumeration
        weights = choices.DEFAULT
        place = Path(torch.hub.get_dir(), "checkpoints", os.path.basename(weights.url))
        raise UserError(f"{name} needs {weights.url}, which cannot be loaded ({error}); put it at {place}") from error


def _check_size(name: str, height: int, width: int) -> None:
    if name == "niqe":
        fits = (height // BLOCK) * (width // BLOCK) >= 2
        least = (BLOCK, 2 * BLOCK)
    else:
        fits = min(height, width) >= SMALLEST
        least = (SMALLEST, SMALLEST)
    if not fits:
        raise ValueError(f"{name} needs {least[0]}x{least[1]} pixels, got {height}x{width}")


def _images(name: str, device: str, *images: np.ndarray):
    """(1, 3, H, W) in [0, 1] of each image; a gray one is three equal channels."""
    for image in images:
        _check_size(name, *image.shape[:2])
        planes = image if image.ndim == 3 else np.repeat(image[:, :, None], 3, axis=2)
        yield torch.from_numpy(np.ascontiguousarray(planes)).to(device).permute(2, 0, 1)[None].float() / 255


def _lpips(device: str) -> Metric:
    """LPIPS 0.1 on AlexNet, Zhang et al., arXiv 1801.03924: 0 where equal, some 0.7 where nothing is alike."""
    _torchmetrics("lpips")
    from torchmetrics.image import LearnedPerceptualImagePatchSimilarity

    metric = _with_features(
        "lpips", "alexnet", lambda: LearnedPerceptualImagePatchSimilarity("alex", normalize=True).to(device)
    )

    def measure(image: np.ndarray, target: np.ndarray) -> float:
        with torch.no_grad():
            return float(metric(*_images("lpips", device, image, target)))

    return measure


def _dists(device: str) -> Metric:
    """DISTS on VGG16, Ding et al., arXiv 2004.07728; images at their own size, as they are."""
    _torchmetrics("dists")
    from torchmetrics.functional.image.dists import DISTSNetwork

    network = _with_features("dists", "vgg16", lambda: DISTSNetwork().to(device))

    def measure(image: np.ndarray, target: np.ndarray) -> float:
        with torch.no_grad():
            return float(network(*_images("dists", device, image, target)))

    return measure


def niqe_function() -> Metric:
    """NIQE, Mittal et al. 2013, with the authors' model of pristine images, on BT.601 luma; the target plays no part.

    Agrees with the authors' MATLAB code on BasicSR's own test image to four digits. Border 0, blocks of 96x96.
    """
    calculate = basicsr_niqe()

    def measure(image: np.ndarray, _target: np.ndarray) -> float:
        _check_size("niqe", *image.shape[:2])
        if image.ndim == 2:
            return float(calculate(image, 0, input_order="HW"))
        return float(calculate(np.ascontiguousarray(image[:, :, ::-1]), 0))

    return measure
