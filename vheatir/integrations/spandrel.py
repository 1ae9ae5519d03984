"""VHeatIR as an architecture of spandrel, so that hosts built on it load our weights.

from vheatir.integrations import spandrel as plugin

plugin.install()
model = spandrel.ModelLoader().load_from_file("denoise_color_blind.safetensors")
restored = model(image)  # (1, 3, H, W) in [0, 1]
"""

from typing import Any

from spandrel import MAIN_REGISTRY, Architecture, ArchRegistry, ArchSupport, ImageModelDescriptor

from vheatir.archs.vheatir_arch import VHeatIR, config_from_state_dict
from vheatir.errors import UserError

_KEYS = {"freq_embed", "conv_first.weight", "conv_last.weight", "groups.0.blocks.0.op.linear.weight"}


class VHeatIRArchitecture(Architecture[VHeatIR]):
    """Detects the state dict of a VHeatIR by its keys and builds the network from its shapes."""

    def __init__(self):
        super().__init__(id="VHeatIR", name="vHeatIR", detect=lambda state: state.keys() >= _KEYS)

    def load(self, state_dict: dict[str, Any]) -> ImageModelDescriptor[VHeatIR]:
        """The network with these weights.

        Raises:
            UserError: the network wants a noise level or quality, for which hosts have no input.
            ValueError: keys or shapes that no VHeatIR has.
        """
        config = config_from_state_dict(state_dict)
        if config["level_map"]:
            raise UserError("these weights take a level as a further input, which spandrel cannot give; use blind ones")
        return ImageModelDescriptor(
            VHeatIR(**config),
            state_dict,
            architecture=self,
            purpose="Restoration",
            tags=[f"{config['dim']}dim", f"{sum(config['depths'])} blocks"],
            supports_half=True,
            supports_bfloat16=True,
            scale=1,
            input_channels=config["in_chans"],
            output_channels=config["in_chans"],
        )


def install(registry: ArchRegistry = MAIN_REGISTRY) -> None:
    """Add the architecture to a registry of spandrel; a second call changes nothing."""
    registry.add(ArchSupport.from_architecture(VHeatIRArchitecture()), ignore_duplicates=True)
