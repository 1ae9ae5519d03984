"""`vheatir restore`: images through a network, one or many.

`vheatir.restore("in.jpg", "out.jpg", task="denoise")` is the function of the command, see
`vheatir.restore.api.restore`; `vheatir.Restorer` restores arrays.
"""

from typing import TYPE_CHECKING

from vheatir.utils.lazy import callable_package

if TYPE_CHECKING:
    from vheatir.restore.api import restore

__all__ = ["restore"]

callable_package(__name__, {"restore": "vheatir.restore.api"})
