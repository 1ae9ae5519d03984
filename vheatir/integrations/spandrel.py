"""Our restoration networks as architectures of spandrel, so that hosts built on it load our weights.

from vheatir.integrations import spandrel as plugin

plugin.install()
model = spandrel.ModelLoader().load_from_file("denoise_color_blind.safetensors")
restored = model(image)  # (1, 3, H, W) in [0, 1]
"""

from collections.abc import Mapping
from typing import Any

from spandrel import MAIN_REGISTRY, Architecture, ArchRegistry, ArchSupport, ImageModelDescriptor
from torch import nn

from vheatir.archs.networks import NETWORKS, arch_of_state_dict, build, config_from_state_dict
from vheatir.errors import UserError


class RestorationArchitecture(Architecture[nn.Module]):
    """Detects the state dict of one of our networks by its keys and builds the network from its shapes.

    Args:
        arch: the network's name in `vheatir.archs.networks`, under which hosts list it too.
    """

    def __init__(self, arch: str):
        super().__init__(id=arch, name="vHeatIR" if arch == "VHeatIR" else arch, detect=self._detect)
        self.arch = arch

    def _detect(self, state: Mapping[str, Any]) -> bool:
        try:
            return arch_of_state_dict(state) == self.arch
        except ValueError:
            return False

    def load(self, state_dict: dict[str, Any]) -> ImageModelDescriptor[nn.Module]:
        """The network with these weights.

        Raises:
            UserError: the network wants a noise level or quality, for which hosts have no input.
            ValueError: keys or shapes that no such network has.
        """
        _, config = config_from_state_dict(state_dict)
        if config.get("level_map"):
            raise UserError("these weights take a level as a further input, which spandrel cannot give; use blind ones")
        blocks = sum(config.get("depths") or [*config["encoder"], config["middle"], *config["decoder"]])
        return ImageModelDescriptor(
            build(self.arch, config),
            state_dict,
            architecture=self,
            purpose="Restoration",
            tags=[f"{config['dim']}dim", f"{blocks} blocks"],
            supports_half=True,
            supports_bfloat16=True,
            scale=1,
            input_channels=config["in_chans"],
            output_channels=config["in_chans"],
        )


def install(registry: ArchRegistry = MAIN_REGISTRY) -> None:
    """Add the architectures to a registry of spandrel; a second call changes nothing."""
    supports = [ArchSupport.from_architecture(RestorationArchitecture(arch)) for arch in NETWORKS]
    registry.add(*supports, ignore_duplicates=True)
