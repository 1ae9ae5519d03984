"""BasicSR's SwinIR as a network that takes images of any size, to compare with."""

from basicsr.archs.swinir_arch import SwinIR
from torch import Tensor

from vheatir.archs.vheatir_arch import cropped, padded


class AnySizeSwinIR(SwinIR):
    """SwinIR (arXiv 2108.10257) for restoration at the size of the input (`upscale` 1).

    Input and output: (B, in_chans, H, W) in [0, 1], any H, W >= 1: padded, mirrored, to a multiple of the window,
    which BasicSR leaves to the caller, and cropped back. Arguments: as BasicSR's `SwinIR`.
    """

    def __init__(self, window_size: int = 8, **arguments):
        super().__init__(window_size=window_size, upscale=1, upsampler="", **arguments)
        self.multiple_of = window_size

    def forward(self, image: Tensor) -> Tensor:
        """Restore (B, in_chans, H, W)."""
        height, width = image.shape[2:]
        step = self.multiple_of
        larger = padded(image, height + -height % step, width + -width % step)
        return cropped(super().forward(larger), height, width)
