"""Puts our network, datasets, model and metrics into BasicSR's registries, where a YAML file finds them by name."""

import inspect
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from vheatir.compat import require_basicsr
from vheatir.errors import UserError
from vheatir.train.validation import bgr_or_gray
from vheatir.utils.plugins import import_plugin


@cache
def register_all() -> None:
    """Register everything, once.

    Raises:
        UserError: BasicSR is missing; says what to install.
    """
    require_basicsr()
    from basicsr.utils.registry import (
        ARCH_REGISTRY,
        DATASET_REGISTRY,
        LOSS_REGISTRY,
        METRIC_REGISTRY,
        MODEL_REGISTRY,
    )

    from vheatir.archs.dncnn_arch import DnCNN
    from vheatir.archs.networks import NETWORKS
    from vheatir.archs.swinir_arch import AnySizeSwinIR
    from vheatir.data.camera_dataset import CameraNoiseDataset
    from vheatir.data.datasets import GaussianNoiseDataset, JPEGDataset, PairedDataset
    from vheatir.data.moving_clips import MovingClipsDataset
    from vheatir.metrics import fidelity
    from vheatir.train.losses import JPEGConsistencyLoss, PSNRLoss
    from vheatir.train.model import VHeatIRModel

    for network in (*NETWORKS.values(), DnCNN, AnySizeSwinIR):
        ARCH_REGISTRY.register(network)
    for loss in (JPEGConsistencyLoss, PSNRLoss):
        LOSS_REGISTRY.register(loss)
    MODEL_REGISTRY.register(VHeatIRModel)
    for dataset in (CameraNoiseDataset, GaussianNoiseDataset, JPEGDataset, MovingClipsDataset, PairedDataset):
        DATASET_REGISTRY.register(dataset)
    for name in ("psnr", "ssim", "psnrb"):
        METRIC_REGISTRY.register(_metric(name, getattr(fidelity, name)))


def load_plugins(files: Iterable[str | Path]) -> None:
    """Run Python files of the user's own, and register the datasets in them; the rest they may register themselves.

    Raises:
        UserError: a file that `import_plugin` refuses, or a dataset whose name is taken.
    """
    from basicsr.utils.registry import DATASET_REGISTRY

    from vheatir.data.base import RestorationDataset

    for path in map(Path, files):
        module = import_plugin(path)
        for name, kind in inspect.getmembers(module, inspect.isclass):
            if not issubclass(kind, RestorationDataset) or kind.__module__ != path.stem:
                continue
            if name not in DATASET_REGISTRY:
                DATASET_REGISTRY.register(kind)
            elif DATASET_REGISTRY.get(name) is not kind:
                raise UserError(f"--plugin {path}: there is a dataset {name} already; give the class another name")


def _metric(name: str, function):
    """`function` under the signature that BasicSR's `calculate_metric` calls: uint8 BGR or gray arrays img and img2."""

    def metric(img, img2, border: int = 0, luma: bool = False, better: str = "higher") -> float:
        if better != "higher":
            raise ValueError(f"better: higher {name} is better, got {better!r}")
        return function(bgr_or_gray(img), bgr_or_gray(img2), border=border, luma=luma)

    metric.__name__ = f"vheatir_{name}"
    metric.__doc__ = function.__doc__
    return metric
