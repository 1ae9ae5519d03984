"""`vheatir bench`: speed and memory against the published formulation.

`vheatir.bench(...)` is the function of the command, see `vheatir.bench.api.bench`.
"""

from typing import TYPE_CHECKING

from vheatir.utils.lazy import callable_package

if TYPE_CHECKING:
    from vheatir.bench.api import bench

__all__ = ["bench"]

callable_package(__name__, {"bench": "vheatir.bench.api"})
