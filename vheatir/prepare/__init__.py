"""`vheatir prepare`: image sets fetched, verified, cut and packed.

`vheatir.prepare(...)` is the function of the command, see `vheatir.prepare.api.prepare`.
"""

from typing import TYPE_CHECKING

from vheatir.utils.lazy import callable_package

if TYPE_CHECKING:
    from vheatir.prepare.api import prepare

__all__ = ["prepare"]

callable_package(__name__, {"prepare": "vheatir.prepare.api"})
