"""Networks that give the maps of four stages: this package's backbones, and torchvision's ResNets beside them."""

from pathlib import Path

from torch import Tensor, nn
from torchvision import models

from vheatir.backbone.models.checkpoint import LoadReport, lacks, load_checkpoint, read_state, without_prefix
from vheatir.backbone.models.create import UNBUILDABLE, list_models, said_by
from vheatir.backbone.models.dense_backbones import dense_backbone
from vheatir.backbone.models.pyramid import Pyramid

# Of ImageNet, RGB in [0, 1]: 123.675, 116.28, 103.53 and 58.395, 57.12, 57.375 of 255.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class ResidualMaps(nn.Module):
    """Maps of a ResNet's four stages: images (B, 3, H, W) to a list of (B, C, H/4, W/4) ... (B, 8C, H/32, W/32).

    Keys are torchvision's, without the classifier `fc`.
    """

    in_chans = 3

    def __init__(self, name: str):
        super().__init__()
        network = models.get_model(name, weights=None)
        width = network.get_submodule("fc").in_features
        assert isinstance(width, int)
        self.dims = (width // 8, width // 4, width // 2, width)
        for key, module in network.named_children():
            if key not in ("avgpool", "fc"):
                self.add_module(key, module)

    def forward(self, x: Tensor) -> list[Tensor]:
        for name in ("conv1", "bn1", "relu", "maxpool"):
            x = self.get_submodule(name)(x)
        found = []
        for name in ("layer1", "layer2", "layer3", "layer4"):
            x = self.get_submodule(name)(x)
            found.append(x)
        return found


def residual_networks() -> list[str]:
    """Names of torchvision's ResNets."""
    return models.list_models(module=models, include=("resnet*", "resnext*", "wide_resnet*"))


def build_features(table: dict) -> nn.Module:
    """The network of a recipe's section `backbone`, with fresh weights; its widths are in `dims`.

    Args:
        table: `name` of a backbone or of a ResNet of torchvision, and the backbone's arguments.

    Raises:
        ValueError: an unknown name or argument.
    """
    arguments = dict(table)
    name = arguments.pop("name")
    checkpointing = arguments.pop("grad_checkpointing", False)
    if name in residual_networks():
        if arguments or checkpointing:
            raise ValueError(f"backbone: {name} takes no arguments, got {', '.join(table)}")
        return ResidualMaps(name)
    if name not in list_models():
        known = ", ".join([*list_models(), *residual_networks()])
        raise ValueError(f"backbone.name: unknown {name!r}; known: {known}")
    try:
        network = dense_backbone(name, **arguments)
    except UNBUILDABLE as error:
        raise ValueError(f"backbone: {name} cannot be built from {arguments}: {said_by(error)}") from error
    if network.in_chans != 3:
        raise ValueError(f"backbone.in_chans must be 3, images are read as RGB, got {network.in_chans}")
    if len(network.out_indices) < len(network.dims):
        raise ValueError(f"backbone.out_indices: all four stages are needed, got {network.out_indices}")
    network.set_grad_checkpointing(bool(checkpointing))
    return network


def load_features(network: nn.Module, path: str | Path, weights: str, embeddings: str) -> LoadReport:
    """Load a classifier's checkpoint, or a backbone's own, into a network that gives maps.

    Args:
        network: what `build_features` made.
        path: .safetensors, .pth or .pt.
        weights: "model" or "ema".
        embeddings: how frequency embeddings are brought to the network's img_size: "relative" keeps each entry's
            frequency per pixel, "index" its index, as the published conversion for detection does.

    Raises:
        FileNotFoundError, ValueError: no such file, or it does not fit.
    """
    if isinstance(network, Pyramid):
        return load_checkpoint(network, path, weights=weights, embeddings=embeddings)
    stored, report = read_state(path, weights)
    state = without_prefix(stored, network.state_dict(), report, weights)
    try:
        result = network.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit the backbone: {error}") from error
    report.loaded = len(state) - len(result.unexpected_keys)
    report.unused += result.unexpected_keys
    if result.missing_keys:
        raise ValueError(lacks(path, result.missing_keys, stored))
    return report
