"""Backbones of this package for mmdetection and mmsegmentation, where these are installed.

In a configuration of theirs:

    custom_imports = dict(imports=["vheatir.openmmlab"])
    model = dict(backbone=dict(type="VHeatIRBackbone", name="vheat_tiny", img_size=512, checkpoint="vheat_tiny.pth"))

Importing this module registers the class with the installed registries. Tested against a stand-in for a registry
alone: mmdet 3.3 and mmseg 1.2 need builds of mmcv that do not install beside a current PyTorch.
"""

import importlib
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from vheatir.backbone.models.feature_maps import build_features, load_features

_REGISTRIES = ("mmdet.registry", "mmseg.registry")


class VHeatIRBackbone(nn.Module):
    """Maps of the four stages of any backbone, as the neck or head of an OpenMMLab model takes them.

    Args:
        name: such as "vheat_tiny" or "unified_swin_small".
        checkpoint: classifier's weights, loaded by `init_weights`, which OpenMMLab's models call before training.
        weights, embeddings: see `vheatir.backbone.models.feature_maps.load_features`.
        **network: arguments of `dense_backbone`.
    """

    def __init__(
        self,
        name: str,
        checkpoint: str | None = None,
        weights: str = "model",
        embeddings: str = "index",
        **network: Any,
    ):
        super().__init__()
        self.body = build_features({"name": name, **network})
        self.checkpoint = checkpoint
        self.weights = weights
        self.embeddings = embeddings

    def init_weights(self) -> None:
        """Load the checkpoint, where there is one; the report is logged."""
        if self.checkpoint is not None:
            load_features(self.body, self.checkpoint, self.weights, self.embeddings)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Normalized images (B, 3, H, W) to maps of strides 4, 8, 16 and 32."""
        return tuple(self.body(x))


def register(registries: Iterable[Any] | None = None) -> list[Any]:
    """Register the backbone with OpenMMLab's registries of models.

    Args:
        registries: objects with `register_module`; None for those of mmdet and mmseg that can be imported.

    Returns:
        The registries that have it now.
    """
    if registries is None:
        registries = [registry for name in _REGISTRIES if (registry := _installed(name)) is not None]
    registries = list(registries)
    for registry in registries:
        registry.register_module(module=VHeatIRBackbone, force=True)
    return registries


def _installed(name: str) -> Any | None:
    try:
        return importlib.import_module(name).MODELS
    except ModuleNotFoundError as error:
        if error.name != name.partition(".")[0]:  # installed, but something that it needs is not
            raise
        return None


register()
