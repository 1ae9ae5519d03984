"""Backbones: vHeat and the unified mixers.

The heat layer and block that restoration uses need torch alone. The names below need timm; they are looked up on first
use, and using one of them, or `import vheatir.backbone` after `import timm`, registers all models with timm.
"""

import importlib
import sys

# Beside it stands __init__.pyi, which says the same to type checkers and editors; a test compares the two.
_PUBLIC = {
    "create_model": "vheatir.backbone.models.create",
    "dense_backbone": "vheatir.backbone.models.dense_backbones",
    "freeze": "vheatir.backbone.layers.freezing",
    "frozen": "vheatir.backbone.layers.freezing",
    "kept_info": "vheatir.backbone.layers.freezing",
    "load_checkpoint": "vheatir.backbone.models.checkpoint",
    "list_models": "vheatir.backbone.models.create",
    "MetaArch": "vheatir.backbone.models.meta_arch",
    "unfreeze": "vheatir.backbone.layers.freezing",
    "VHeat": "vheatir.backbone.models.vheat",
}
__all__ = list(_PUBLIC)


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module 'vheatir.backbone' has no attribute {name!r}")
    value = getattr(importlib.import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})


if "timm.models" in sys.modules:
    importlib.import_module("vheatir.backbone.models.create")
