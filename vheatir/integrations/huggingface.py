"""The restoration networks as models of the Hugging Face Hub: `HubVHeatUNet.from_pretrained("owner/name")`.

A folder that `vheatir export NAME --hub DIR` has written can be given instead of a repository's name. Its config.json
says under "vheatir", "arch" whether the weights are for `VHeatUNet`, `VHeatIR` or `VHeatVideoNet`; the classes of the
others refuse them.
"""

from typing import Any

from vheatir.archs.vheatir_arch import VHeatIR
from vheatir.archs.vheatunet_arch import VHeatUNet
from vheatir.archs.vheatvideo_arch import VHeatVideoNet
from vheatir.errors import UserError

try:
    from huggingface_hub import PyTorchModelHubMixin
except ImportError:
    raise UserError("vheatir.hub needs huggingface_hub; run `pip install 'vheatir[export]'`") from None


class _InEvalMode(PyTorchModelHubMixin):
    @classmethod
    def from_pretrained(cls, *arguments: Any, **options: Any) -> Any:
        """As the mixin's, which left networks in training mode in earlier versions, and takes whatever weights fit.

        Raises:
            UserError: the weights are those of another network.
        """
        try:
            loaded: Any = super().from_pretrained(*arguments, **{"strict": True, **options})
        except RuntimeError as error:
            raise UserError(
                f"{cls.__name__}: the weights do not fit ({error}); config.json says under vheatir, arch, whether they "
                "are for HubVHeatUNet, HubVHeatIR or HubVHeatVideoNet"
            ) from error
        return loaded.eval()


class HubVHeatIR(VHeatIR, _InEvalMode, library_name="vheatir"):
    """`VHeatIR` with `from_pretrained`, `save_pretrained` and `push_to_hub`; its configuration is the arguments."""


class HubVHeatUNet(VHeatUNet, _InEvalMode, library_name="vheatir"):
    """`VHeatUNet` with `from_pretrained`, `save_pretrained` and `push_to_hub`; its configuration is the arguments."""


class HubVHeatVideoNet(VHeatVideoNet, _InEvalMode, library_name="vheatir"):
    """`VHeatVideoNet` with `from_pretrained`, `save_pretrained`, `push_to_hub`; its configuration is the arguments."""
