"""All backbones by name. Importing this module registers them with timm."""

from typing import Any, cast

from timm import create_model as _create_model

from vheatir.backbone.models import unified, vheat
from vheatir.backbone.models.pyramid import Pyramid

# What networks raise for arguments that they do not know or cannot use; timm asserts, and looks names up in tables.
UNBUILDABLE = (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def said_by(error: Exception) -> str:
    """What one of `UNBUILDABLE` says; a name that is in no table is all that Python says of it."""
    return f"unknown {error}" if isinstance(error, KeyError) else str(error)


def list_models() -> list[str]:
    """Names of all backbones of this package."""
    names = [f"unified_{mixer}_{size}" for mixer, sizes in unified.SIZES.items() for size in sizes]
    return [f"vheat_{size}" for size in vheat.SIZES] + names


def create_model(name: str, **arguments: Any) -> Pyramid:
    """`timm.create_model` with the backbones of this package registered.

    Args:
        name: such as "vheat_tiny" or "unified_swin_small".
        **arguments: img_size, num_classes, in_chans, drop_path_rate, features_only, out_indices, pretrained, device and
            dtype (where and of which floating type the weights are made) and further arguments of the network.
    """
    return cast("Pyramid", _create_model(name, **arguments))
