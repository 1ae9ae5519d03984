"""`vheatir evaluate`: PSNR, SSIM and PSNR-B, by the protocol of the published tables."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vheatir.evaluate.command import degrade, evaluate, evaluate_image, main

__all__ = ["degrade", "evaluate", "evaluate_image", "main"]


def __getattr__(name: str):
    if name not in __all__:
        raise AttributeError(f"module 'vheatir.evaluate' has no attribute {name!r}")
    return getattr(importlib.import_module("vheatir.evaluate.command"), name)
