"""Options and fixtures that all tests share."""

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

# Before torch is imported, here and in the processes that tests start: several workers share the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parent.parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="torch device the operator and network tests run on (cpu, cuda)")


def pytest_configure(config: pytest.Config) -> None:
    name = config.getoption("--device")
    if name == "cpu":
        return
    import torch

    if torch.device(name).type == "cuda":
        if not torch.cuda.is_available():
            raise pytest.UsageError(f"--device {name}: torch {torch.__version__} sees no CUDA device")
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest):
    """The torch device of `--device`."""
    import torch

    return torch.device(request.config.getoption("--device"))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Every test starts from the same random state, in whatever order the tests run."""
    import numpy as np
    import torch

    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 (BasicSR and the evaluation protocol draw from the global state)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def test_data() -> Callable[[str], Path]:
    """`test_data("Set12")` is the folder of that test set; the test is skipped where it is not at hand."""
    stated = os.environ.get("VHEATIR_TEST_DATA")
    root = Path(stated) if stated else ROOT.parent / "shared" / "data" / "restoration" / "test"

    def folder(name: str) -> Path:
        if not (root / name).is_dir():
            pytest.skip(f"no folder {name} in {root}; set VHEATIR_TEST_DATA to the folder that holds the test sets")
        return root / name

    return folder
