"""`vheatir evaluate`: PSNR, SSIM and PSNR-B, by the protocol of the published tables.

`vheatir.evaluate(...)` is the function of the command, see `vheatir.evaluate.api.evaluate`.
"""

from typing import TYPE_CHECKING

from vheatir.utils.lazy import callable_package

if TYPE_CHECKING:
    from vheatir.evaluate.api import evaluate
    from vheatir.evaluate.command import main
    from vheatir.evaluate.protocol import degrade, evaluate_image

__all__ = ["degrade", "evaluate", "evaluate_image", "main"]

callable_package(
    __name__,
    {
        "degrade": "vheatir.evaluate.protocol",
        "evaluate": "vheatir.evaluate.api",
        "evaluate_image": "vheatir.evaluate.protocol",
        "main": "vheatir.evaluate.command",
    },
)
