# What type checkers and editors see of __init__.py, which looks these names up on first use.
from vheatir.backbone.layers.freezing import freeze as freeze
from vheatir.backbone.layers.freezing import frozen as frozen
from vheatir.backbone.layers.freezing import kept_info as kept_info
from vheatir.backbone.layers.freezing import unfreeze as unfreeze
from vheatir.backbone.models.checkpoint import load_checkpoint as load_checkpoint
from vheatir.backbone.models.create import create_model as create_model
from vheatir.backbone.models.create import list_models as list_models
from vheatir.backbone.models.dense_backbones import dense_backbone as dense_backbone
from vheatir.backbone.models.meta_arch import MetaArch as MetaArch
from vheatir.backbone.models.vheat import VHeat as VHeat

__all__ = [
    "MetaArch",
    "VHeat",
    "create_model",
    "dense_backbone",
    "freeze",
    "frozen",
    "kept_info",
    "list_models",
    "load_checkpoint",
    "unfreeze",
]
