"""`vheatir analyze`: measures and figures of backbones.

`vheatir.analyze("cost", model=["vheat_tiny"])` is the function of the command, see `vheatir.analyze.api.analyze`.
"""

from typing import TYPE_CHECKING

from vheatir.utils.lazy import callable_package

if TYPE_CHECKING:
    from vheatir.analyze.api import analyze

__all__ = ["analyze"]

callable_package(__name__, {"analyze": "vheatir.analyze.api"})
