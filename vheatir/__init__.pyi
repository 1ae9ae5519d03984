# What type checkers and editors see of __init__.py, which looks these names up on first use.
from vheatir.archs.vheatir_arch import VHeatIR as VHeatIR
from vheatir.kernels.dct import dct_matrix as dct_matrix
from vheatir.kernels.dct import decay_map as decay_map
from vheatir.kernels.ops import heat_conduction as heat_conduction
from vheatir.kernels.ops import prepare_decay as prepare_decay
from vheatir.kernels.prepared import PreparedDecay as PreparedDecay
from vheatir.kernels.reference import hco_reference as hco_reference
from vheatir.restore.restorer import Restorer as Restorer

__version__: str
__all__ = [
    "PreparedDecay",
    "Restorer",
    "VHeatIR",
    "__version__",
    "dct_matrix",
    "decay_map",
    "hco_reference",
    "heat_conduction",
    "prepare_decay",
]
