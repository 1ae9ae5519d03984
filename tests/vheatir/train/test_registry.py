"""What BasicSR finds by name after `register_all`."""

import subprocess
import sys

import numpy as np
import pytest

from vheatir.errors import UserError
from vheatir.metrics import fidelity
from vheatir.train.registry import register_all

pytest.importorskip("basicsr", reason="training needs BasicSR")


def test_everything_of_ours_is_registered_once():
    register_all()
    register_all()
    from basicsr.utils import registry

    assert "VHeatIR" in registry.ARCH_REGISTRY and "VHeatIRModel" in registry.MODEL_REGISTRY
    assert {"GaussianNoiseDataset", "JPEGDataset", "PairedDataset"} <= set(registry.DATASET_REGISTRY.keys())
    assert {"vheatir_psnr", "vheatir_ssim", "vheatir_psnrb"} <= set(registry.METRIC_REGISTRY.keys())


@pytest.mark.parametrize("name", ["psnr", "ssim", "psnrb"])
@pytest.mark.parametrize("border", [0, 4])
def test_metrics_are_those_of_the_protocol_on_bgr_as_basicsr_gives_it(name, border):
    register_all()
    from basicsr.metrics import calculate_metric

    rng = np.random.default_rng(0)
    a, b = (rng.integers(0, 256, (32, 40, 3), dtype=np.uint8) for _ in range(2))
    images = {"img": a[..., ::-1], "img2": b[..., ::-1]}
    got = calculate_metric(images, {"type": f"vheatir_{name}", "border": border, "luma": True, "better": "higher"})
    assert got == getattr(fidelity, name)(a, b, border=border, luma=True)


def test_network_is_built_by_name():
    register_all()
    from basicsr.archs import build_network

    assert build_network({"type": "VHeatIR", "dim": 8, "depths": [1], "embed_size": 4}).config["dim"] == 8


def test_missing_basicsr_is_not_remembered(monkeypatch):
    """After the advice is followed, the same process may go on."""
    import importlib.util

    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(UserError, match="training needs BasicSR"):
            register_all.__wrapped__()
    register_all()


def test_our_classes_load_without_basicsr():
    names = ("archs.vheatir_arch", "data.datasets", "train.validation", "runs.checkpoints", "train.options")
    modules = ", ".join(f"vheatir.{name}" for name in names)
    code = f"import sys, {modules}; sys.exit('basicsr' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
