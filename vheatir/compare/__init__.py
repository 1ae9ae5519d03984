"""`vheatir compare`: figures of images before and after.

`vheatir.compare(...)` is the function of the command, see `vheatir.compare.api.compare`.
"""

from typing import TYPE_CHECKING

from vheatir.utils.lazy import callable_package

if TYPE_CHECKING:
    from vheatir.compare.api import compare

__all__ = ["compare"]

callable_package(__name__, {"compare": "vheatir.compare.api"})
