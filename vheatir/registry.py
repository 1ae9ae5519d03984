"""Puts our network, datasets, model and metrics into BasicSR's registries, where a YAML file finds them by name."""

from functools import cache

from vheatir.compat import require_basicsr


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
    from vheatir.archs.vheatir_arch import VHeatIR
    from vheatir.data.datasets import GaussianNoiseDataset, JPEGDataset, PairedDataset
    from vheatir.losses import JPEGConsistencyLoss
    from vheatir.metrics import fidelity
    from vheatir.models.swinir import AnySizeSwinIR
    from vheatir.models.vheatir_model import VHeatIRModel

    for network in (VHeatIR, DnCNN, AnySizeSwinIR):
        ARCH_REGISTRY.register(network)
    LOSS_REGISTRY.register(JPEGConsistencyLoss)
    MODEL_REGISTRY.register(VHeatIRModel)
    for dataset in (GaussianNoiseDataset, JPEGDataset, PairedDataset):
        DATASET_REGISTRY.register(dataset)
    for name in ("psnr", "ssim", "psnrb"):
        METRIC_REGISTRY.register(_metric(name, getattr(fidelity, name)))


def _metric(name: str, function):
    """`function` under the signature that BasicSR's `calculate_metric` calls: uint8 RGB arrays img and img2."""

    def metric(img, img2, border: int = 0, luma: bool = False) -> float:
        return function(img, img2, border=border, luma=luma)

    metric.__name__, metric.__doc__ = f"vheatir_{name}", function.__doc__
    return metric
