"""The restoration networks as models of the Hugging Face Hub: `HubVHeatUNet.from_pretrained("owner/name")`.

A folder that `vheatir export NAME --hub DIR` has written can be given instead of a repository's name. Its config.json
says under "vheatir", "arch" whether the weights are for `VHeatUNet` or `VHeatIR`.
"""

from vheatir.archs.vheatir_arch import VHeatIR
from vheatir.archs.vheatunet_arch import VHeatUNet
from vheatir.errors import UserError

try:
    from huggingface_hub import PyTorchModelHubMixin
except ImportError:
    raise UserError("vheatir.hub needs huggingface_hub; run `pip install 'vheatir[export]'`") from None


class HubVHeatIR(VHeatIR, PyTorchModelHubMixin, library_name="vheatir"):
    """`VHeatIR` with `from_pretrained`, `save_pretrained` and `push_to_hub`; its configuration is the arguments."""


class HubVHeatUNet(VHeatUNet, PyTorchModelHubMixin, library_name="vheatir"):
    """`VHeatUNet` with `from_pretrained`, `save_pretrained` and `push_to_hub`; its configuration is the arguments."""
