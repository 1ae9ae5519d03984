"""The project's restoration networks by name: building one, and telling whose weights a state dict holds."""

from collections.abc import Mapping
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from vheatir.archs import vheatir_arch, vheatunet_arch, vheatvideo_arch
from vheatir.archs.base import RestorationNetwork

NETWORKS: dict[str, type[RestorationNetwork]] = {
    "VHeatIR": vheatir_arch.VHeatIR,
    "VHeatUNet": vheatunet_arch.VHeatUNet,
    "VHeatVideoNet": vheatvideo_arch.VHeatVideoNet,
}
_MODULES: dict[str, ModuleType] = {
    "VHeatIR": vheatir_arch,
    "VHeatUNet": vheatunet_arch,
    "VHeatVideoNet": vheatvideo_arch,
}


def build(arch: str, config: Mapping[str, Any]) -> RestorationNetwork:
    """The network of that name with these constructor arguments.

    Raises:
        ValueError: no such network, or an argument out of its range.
        TypeError: an argument that the network does not have.
    """
    if arch not in NETWORKS:
        raise ValueError(f"unknown network {arch!r}; known: {', '.join(NETWORKS)}")
    return NETWORKS[arch](**config)


def name_of(network: nn.Module) -> str | None:
    """The name under which a network is listed here; None for any other network."""
    return next((name for name, kind in NETWORKS.items() if isinstance(network, kind)), None)


def arch_of_state_dict(state: Mapping[str, Tensor]) -> str:
    """The name of the network that a state dict belongs to, by its keys.

    Raises:
        ValueError: the keys are those of none of them.
    """
    if "freq_embed" in state and "groups.0.conv.weight" in state:
        return "VHeatIR"
    if "conv_first.weight" in state and "down.0.weight" in state and "up.0.weight" in state:
        return "VHeatUNet"
    if "mixer.place" in state and "image.conv_first.weight" in state:
        return "VHeatVideoNet"
    first = ", ".join(list(state)[:3])
    raise ValueError(
        f"these weights belong to none of {', '.join(NETWORKS)}; the first keys are {first}; weights of a network of "
        "your own are scored by `vheatir test` with --plugin and its network_g"
    )


def config_from_state_dict(state: Mapping[str, Tensor]) -> tuple[str, dict[str, Any]]:
    """Name and constructor arguments of the network that a state dict belongs to, read from its keys and shapes.

    Raises:
        ValueError: the keys are those of none of the networks here.
    """
    arch = arch_of_state_dict(state)
    return arch, _MODULES[arch].config_from_state_dict(state)


def gray_from_color(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of the gray network that does what the color network of `state` does to R = G = B, averaged to gray.

    Raises:
        ValueError: `state` is that of no color network here.
    """
    return _MODULES[arch_of_state_dict(state)].gray_from_color(state)


def adapted(network: RestorationNetwork, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights from which a network starts that were trained for another kind of input.

    A gray network starts from those of a color one (`gray_from_color`), a video network from those of an image network;
    all others are returned as they are.

    Raises:
        ValueError: `state` is that of none of the networks here, or cannot be adapted.
    """
    found = dict(state)
    is_gray = network.config["in_chans"] == 1
    takes_clips = isinstance(network, vheatvideo_arch.VHeatVideoNet)
    if not (is_gray or takes_clips):
        return found
    arch, config = config_from_state_dict(state)
    if is_gray and config["in_chans"] == 3:
        found = gray_from_color(found)
    if takes_clips and arch == "VHeatUNet":
        image = {vheatvideo_arch.IMAGE + key: value for key, value in found.items()}
        found = {**network.state_dict(), **image}
    return found
