"""The restoration network as a model of the Hugging Face Hub: `HubVHeatIR.from_pretrained("owner/name")`.

A folder that `vheatir export NAME --hub DIR` has written can be given instead of a repository's name.
"""

from vheatir.archs.vheatir_arch import VHeatIR
from vheatir.errors import UserError

try:
    from huggingface_hub import PyTorchModelHubMixin
except ImportError:
    raise UserError("vheatir.hub needs huggingface_hub; run `pip install 'vheatir[export]'`") from None


class HubVHeatIR(VHeatIR, PyTorchModelHubMixin, library_name="vheatir"):
    """`VHeatIR` with `from_pretrained`, `save_pretrained` and `push_to_hub`; its configuration is the arguments."""
