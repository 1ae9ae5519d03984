"""vHeatIR: heat conduction as a global mixer of image features.

Importing this package loads neither torch nor BasicSR: public names are looked up on first use.
"""

import importlib
from pathlib import Path

from vheatir import compat

__version__ = "0.2.0"

# Installed, `kernels` and `backbone` stand inside this folder. In a checkout they stand beside it and are linked into
# it; archives and systems without symbolic links lose the links.
_root = Path(__file__).resolve().parent
if not (_root / "backbone").is_dir() and (_root.parent / "backbone").is_dir():
    __path__.append(str(_root.parent))

compat.install()

# Beside it stands __init__.pyi, which says the same to type checkers and editors; a test compares the two.
_PUBLIC = {
    "heat_conduction": "vheatir.kernels.ops",
    "prepare_decay": "vheatir.kernels.ops",
    "PreparedDecay": "vheatir.kernels.prepared",
    "diffuse": "vheatir.kernels.diffusion.ops",
    "diffuse_tensor": "vheatir.kernels.diffusion.tensor",
    "diffuse_reference": "vheatir.kernels.diffusion.reference",
    "decay_map": "vheatir.kernels.dct",
    "dct_matrix": "vheatir.kernels.dct",
    "hco_reference": "vheatir.kernels.reference",
    "VHeatIR": "vheatir.archs.vheatir_arch",
    "VHeatUNet": "vheatir.archs.vheatunet_arch",
    "Restorer": "vheatir.restore.restorer",
    # The work of the commands. Each is the package or module of the same name too, which passes calls on.
    "analyze": "vheatir.analyze.api",
    "bench": "vheatir.bench.api",
    "compare": "vheatir.compare.api",
    "evaluate": "vheatir.evaluate.api",
    "export": "vheatir.export.api",
    "prepare": "vheatir.prepare.api",
    "restore": "vheatir.restore.api",
    "train": "vheatir.train.trainer",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module 'vheatir' has no attribute {name!r}")
    if f"{_PUBLIC[name]}.".startswith(f"vheatir.{name}."):
        return importlib.import_module(f"vheatir.{name}")
    value = getattr(importlib.import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
