"""Options and fixtures that all tests share."""

import contextlib
import json
import os
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest

# setuptools, which torch.compile imports, refuses to come after something that has imported the old distutils
with contextlib.suppress(ImportError):
    import setuptools  # noqa: F401

# Before torch is imported, here and in the processes that tests start: several workers share the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import vheatir  # noqa: F401 - its aliases let tests that stand alone import BasicSR, which they else would skip

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
    """`test_data("Set12")` is the folder of that test set; the test is skipped where it is missing."""
    stated = os.environ.get("VHEATIR_TEST_DATA")
    root = Path(stated) if stated else ROOT.parent / "shared" / "data" / "restoration" / "test"

    def folder(name: str) -> Path:
        if not (root / name).is_dir():
            pytest.skip(f"no folder {name} in {root}; set VHEATIR_TEST_DATA to the folder that holds the test sets")
        return root / name

    return folder


class Golden:
    """Cases of tests/golden/ (its README has the rules): stored arrays, and the numbers that inputs and weights get."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))

    def arrays(self, case: str):
        """All arrays of a case by name, e.g. `out__f64`."""
        import numpy as np

        with np.load(self.folder / self.manifest["cases"][case]["file"]) as stored:
            return dict(stored)

    def numbers(self, shape, tag: int):
        """The generator's float64 values in [-1, 1) for tensor number `tag`."""
        import numpy as np

        j = np.arange(int(np.prod(shape)), dtype=np.int64) + 1009 * tag + self.manifest["phase"]
        return (2 * ((13 * j * j + 7 * j + 101 * tag) % 9973) / 9973 - 1).reshape(shape)

    def inputs(self, case: str):
        """The case's inputs as float64 tensors by name; a `formula` is a line through the numbers u."""
        import torch

        def value(described: dict):
            u = described["scale"] * self.numbers(described["shape"], described["tag"])
            if "formula" in described:
                start, slope = re.fullmatch(r"([\d.]+) \+ ([\d.]+) \* u", described["formula"]).groups()
                u = float(start) + float(slope) * u
            return torch.from_numpy(u)

        return {name: value(described) for name, described in self.manifest["cases"][case]["inputs"].items()}

    def fill(self, module) -> None:
        """Give every weight of a module the value that the rules assign to its key."""
        import torch

        state = module.state_dict()
        for tag, key in enumerate(sorted(k for k in state if k.split(".")[-1] not in self.manifest["skipped_in_fill"])):
            last, rank = key.split(".")[-1], state[key].ndim
            u = torch.from_numpy(self.numbers(tuple(state[key].shape), tag))
            if last.startswith("gamma"):
                value = 0.5 + 0.25 * u
            elif rank == 1 and last in ("weight", "running_var"):
                value = 1 + 0.1 * u
            else:
                value = (0.1 if rank < 2 else 0.25) * u
            state[key].copy_(value)


@pytest.fixture(scope="session")
def golden() -> Golden:
    """The golden values of the folder that VHEATIR_GOLDEN names, else the committed ones."""
    stated = os.environ.get("VHEATIR_GOLDEN")
    return Golden(Path(stated) if stated else ROOT / "tests" / "golden")
