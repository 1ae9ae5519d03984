"""`vheatir export`: networks as ONNX, as a torch.export program, as a folder for the Hub, or for BasicSR.

`vheatir.export(...)` is the function of the command, see `vheatir.export.api.export`. `decompositions` is for
programs of your own networks, see `vheatir.export.graph.decompositions`.
"""

from typing import TYPE_CHECKING

from vheatir.utils.lazy import callable_package

if TYPE_CHECKING:
    from vheatir.export.api import export
    from vheatir.export.graph import decompositions

__all__ = ["decompositions", "export"]

callable_package(__name__, {"export": "vheatir.export.api", "decompositions": "vheatir.export.graph"})
