"""The restoration networks as models of the Hugging Face Hub: `HubVHeatUNet.from_pretrained("owner/name")`.

A folder that `vheatir export NAME --hub DIR` has written can be given instead of a repository's name. Its config.json
says under "vheatir", "arch" whether the weights are for `VHeatUNet` or `VHeatIR`.
"""

from typing import Any

from vheatir.archs.vheatir_arch import VHeatIR
from vheatir.archs.vheatunet_arch import VHeatUNet
from vheatir.errors import UserError

try:
    from huggingface_hub import PyTorchModelHubMixin
except ImportError:
    raise UserError("vheatir.hub needs huggingface_hub; run `pip install 'vheatir[export]'`") from None


class _InEvalMode(PyTorchModelHubMixin):
    @classmethod
    def from_pretrained(cls, *arguments: Any, **options: Any) -> Any:
        """As the mixin's, which left networks in training mode in earlier versions."""
        loaded: Any = super().from_pretrained(*arguments, **options)
        return loaded.eval()


class HubVHeatIR(VHeatIR, _InEvalMode, library_name="vheatir"):
    """`VHeatIR` with `from_pretrained`, `save_pretrained` and `push_to_hub`; its configuration is the arguments."""


class HubVHeatUNet(VHeatUNet, _InEvalMode, library_name="vheatir"):
    """`VHeatUNet` with `from_pretrained`, `save_pretrained` and `push_to_hub`; its configuration is the arguments."""
