"""`vheatir train`: training of restoration networks.

`vheatir.train("denoise_light")` is the function of the command, see `vheatir.train.trainer.train`.
"""

from typing import TYPE_CHECKING

from vheatir.utils.lazy import callable_package

if TYPE_CHECKING:
    from vheatir.train.trainer import train

__all__ = ["train"]

callable_package(__name__, {"train": "vheatir.train.trainer"})
