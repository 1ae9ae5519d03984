"""Use the operator in a block of your own, and train it.

The block learns how far heat spreads in each channel. It is shown images and the same images blurred by heat conduction
with a known diffusivity, and finds that diffusivity. Needs the core installation; takes a few seconds.
"""

import torch
from torch import Tensor, nn

import vheatir


class Diffuse(nn.Module):
    """Heat conduction over (B, H, W, C) feature maps with one learned diffusivity for each channel."""

    def __init__(self, channels: int):
        super().__init__()
        self.log_k = nn.Parameter(torch.zeros(channels))  # the diffusivity k is positive, so its logarithm is learned

    def forward(self, x: Tensor) -> Tensor:
        _, height, width, channels = x.shape
        k = self.log_k.exp().expand(height, width, channels)  # in squared pixels
        return vheatir.heat_conduction(x, vheatir.decay_map(k))


def main(size: int = 32, steps: int = 150) -> Tensor:
    """The learned diffusivities of three channels; `wanted` holds the true ones."""
    torch.manual_seed(0)
    wanted = torch.tensor([0.3, 1.0, 4.0])
    x = torch.randn(4, size, size, 3)
    blurred = vheatir.heat_conduction(x, vheatir.decay_map(wanted.expand(size, size, 3)))

    block = Diffuse(3)
    optimizer = torch.optim.Adam(block.parameters(), lr=0.05)
    for _ in range(steps):
        loss = (block(x) - blurred).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    learned = block.log_k.detach().exp()
    print("wanted", wanted.tolist(), "learned", [round(k, 3) for k in learned.tolist()])
    return learned


if __name__ == "__main__":
    main()
