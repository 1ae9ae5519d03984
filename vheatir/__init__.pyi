# What type checkers and editors see of __init__.py, which looks these names up on first use.
from vheatir.analyze.api import analyze as analyze
from vheatir.archs.vheatir_arch import VHeatIR as VHeatIR
from vheatir.archs.vheatunet_arch import VHeatUNet as VHeatUNet
from vheatir.bench.api import bench as bench
from vheatir.compare.api import compare as compare
from vheatir.evaluate.api import evaluate as evaluate
from vheatir.export.api import export as export
from vheatir.kernels.dct import dct_matrix as dct_matrix
from vheatir.kernels.dct import decay_map as decay_map
from vheatir.kernels.diffusion.ops import diffuse as diffuse
from vheatir.kernels.diffusion.reference import diffuse_reference as diffuse_reference
from vheatir.kernels.diffusion.tensor import diffuse_tensor as diffuse_tensor
from vheatir.kernels.ops import heat_conduction as heat_conduction
from vheatir.kernels.ops import prepare_decay as prepare_decay
from vheatir.kernels.prepared import PreparedDecay as PreparedDecay
from vheatir.kernels.reference import hco_reference as hco_reference
from vheatir.prepare.api import prepare as prepare
from vheatir.restore.api import restore as restore
from vheatir.restore.restorer import Restorer as Restorer
from vheatir.train.trainer import train as train

__version__: str
__all__ = [
    "PreparedDecay",
    "Restorer",
    "VHeatIR",
    "VHeatUNet",
    "__version__",
    "analyze",
    "bench",
    "compare",
    "dct_matrix",
    "decay_map",
    "diffuse",
    "diffuse_reference",
    "diffuse_tensor",
    "evaluate",
    "export",
    "hco_reference",
    "heat_conduction",
    "prepare",
    "prepare_decay",
    "restore",
    "train",
]
