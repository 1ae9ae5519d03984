"""Small layers on channels-last maps (B, H, W, C), shared by the restoration network and the backbones."""

import torch
from einops import rearrange
from torch import Tensor, nn


def to_channels_last(image: Tensor) -> Tensor:
    """(B, C, H, W) to (B, H, W, C): a view where the memory is channels-last already."""
    return rearrange(image, "b c h w -> b h w c")


def to_channels_first(maps: Tensor) -> Tensor:
    """(B, H, W, C) to (B, C, H, W) in channels-last memory: a view of contiguous maps."""
    return rearrange(maps, "b h w c -> b c h w")


class DropPath(nn.Module):
    """Stochastic depth per sample: drops a residual branch with probability `rate` and rescales the kept ones.

    Source: Huang et al., Deep Networks with Stochastic Depth, arXiv 1603.09382.
    """

    def __init__(self, rate: float = 0.0):
        super().__init__()
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"drop path rate must be in [0, 1), got {rate}")
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0.0:
            return x
        keep = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(1 - self.rate)
        return x * keep / (1 - self.rate)

    def extra_repr(self) -> str:
        return f"rate={self.rate}"


def init_linear(module: nn.Module) -> None:
    """Linear weights from a normal of std 0.02 cut at two units, biases zero; for `Module.apply`."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def drop_path_rates(rate: float, depth: int) -> list[float]:
    """Stochastic-depth rates that grow linearly from 0 at the first of `depth` blocks to `rate` at the last."""
    return torch.linspace(0, rate, depth, device="cpu").tolist()  # also where a network is built on "meta"
