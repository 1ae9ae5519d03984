"""Small layers on channels-last maps (B, H, W, C), shared by the restoration network and the backbones."""

from contextlib import AbstractContextManager, nullcontext
from functools import cache

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vheatir.backbone.layers.freezing import KeptForms
from vheatir.kernels.plain import are_plain


def full_precision(like: Tensor) -> AbstractContextManager:
    """Autocast off for the device of a tensor; on "meta", which has none, nothing to do."""
    return nullcontext() if like.is_meta else torch.autocast(like.device.type, enabled=False)


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


MOST_ROWS_PACKED = 4096  # with more of them, bringing the weight into oneDNN's order costs nothing beside the product


class _Product(KeptForms):
    """Products and convolutions with one weight, then GELU if asked for.

    Without gradients, in float32 on a processor with AVX2 or AVX-512, oneDNN does the product, faster than what torch
    calls for `F.linear`, and with AVX-512 the GELU too (docs/performance.md). In a frozen network a weight for few
    rows, and that of a convolution anywhere, is kept in the order of the product as well.
    """

    def product(self, x: Tensor, gelu: bool = False) -> Tensor:
        """(..., C) to (..., C')."""
        kept = self.may_keep(self.weight)
        if _is_for_onednn(x, self.weight):
            inside = gelu and _has_fast_onednn_gelu()
            act = "gelu" if inside else "none"
            weight = self._reordered(x.numel() // x.shape[-1]) if kept else self.weight.flatten(1)
            y = torch.ops.mkldnn._linear_pointwise(x, weight, self.bias, act, [], "none")
        else:
            inside = False
            y = F.linear(x, self.weight.flatten(1), self.bias)
        return F.gelu(y) if gelu and not inside else y

    def _reordered(self, rows: int) -> Tensor:
        weight = self.weight.detach().flatten(1)
        if rows > MOST_ROWS_PACKED:
            return weight
        reorder = torch.ops.mkldnn._reorder_linear_weight
        return self.keep("linear", [self.weight], lambda: reorder(weight, rows))


def _is_plain_float32(x: Tensor, weight: Tensor) -> bool:
    """Whether this is a product of values in float32 on the CPU that nothing else will be asked of."""
    return (
        not torch.is_grad_enabled()
        and are_plain(x, weight)
        and x.is_cpu
        and x.dtype == weight.dtype == torch.float32
        and x.numel() > 0
        and not torch.is_autocast_enabled("cpu")
    )


def _is_for_onednn(x: Tensor, weight: Tensor) -> bool:
    return _is_plain_float32(x, weight) and has_fast_onednn()


@cache
def has_fast_onednn() -> bool:
    """Whether oneDNN's products with fused neighbors are there, on a processor where they are fast."""
    operators = ("_linear_pointwise", "_reorder_linear_weight", "_convolution_pointwise", "_reorder_convolution_weight")
    there = torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, name) for name in operators)
    return there and torch.backends.cpu.get_cpu_capability().startswith("AVX")


@cache
def _has_fast_onednn_gelu() -> bool:
    return torch.backends.cpu.get_cpu_capability().startswith("AVX512")


class Linear(_Product, nn.Linear):
    """A linear layer; its parameters and keys are those of `nn.Linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x)


class ChannelsLastConv2d(_Product, nn.Conv2d):
    """A convolution of (B, H, W, C) maps, then GELU if asked for; its parameters and keys are those of `nn.Conv2d`."""

    def forward(self, maps: Tensor, gelu: bool = False) -> Tensor:
        if self.kernel_size == (1, 1) and self.stride == (1, 1) and self.groups == 1:
            return self.product(maps, gelu)
        y = to_channels_last(self._convolve(to_channels_first(maps)))
        return F.gelu(y) if gelu else y

    def _convolve(self, image: Tensor) -> Tensor:
        if not (self.may_keep(self.weight) and _is_plain_float32(image, self.weight)):
            return super().forward(image)
        weight = self.weight.detach()
        if not has_fast_onednn() or self.padding_mode != "zeros" or isinstance(self.padding, str):
            # For a channels-last image torch would make such a copy in each call.
            last = torch.channels_last
            weight = self.keep(last, [self.weight], lambda: weight.contiguous(memory_format=last))
            return self._conv_forward(image, weight, self.bias)
        shape = self.padding, self.stride, self.dilation, self.groups
        reorder = torch.ops.mkldnn._reorder_convolution_weight
        weight = self.keep(shape, [self.weight], lambda: reorder(weight, *shape, image.shape))
        return torch.ops.mkldnn._convolution_pointwise(image, weight, self.bias, *shape, "none", [], "")


class Mlp(nn.Module):
    """Two pointwise convolutions with GELU between, on (B, H, W, C) maps; optionally a depthwise 3x3 in the middle.

    Args:
        dim: channels C.
        hidden: channels between the two convolutions.
        dwconv: add the depthwise convolution (with its own residual), as restoration networks often do.
    """

    def __init__(self, dim: int, hidden: int, dwconv: bool = False):
        super().__init__()
        self.fc1 = ChannelsLastConv2d(dim, hidden, 1)
        self.dwconv = ChannelsLastConv2d(hidden, hidden, 3, padding=1, groups=hidden) if dwconv else None
        self.fc2 = ChannelsLastConv2d(hidden, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.dwconv is None:
            return self.fc2(self.fc1(x, gelu=True))
        x = self.fc1(x)
        return self.fc2(F.gelu(x + self.dwconv(x)))


class LinearMlp(nn.Module):
    """Two linear layers with GELU between, on (..., C); the form whose weights are matrices."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


def init_linear(module: nn.Module) -> None:
    """Linear weights from a normal of std 0.02 cut at two units, biases zero; for `Module.apply`."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def drop_path_rates(rate: float, depth: int) -> list[float]:
    """Stochastic-depth rates that grow linearly from 0 at the first of `depth` blocks to `rate` at the last."""
    return torch.linspace(0, rate, depth, device="cpu").tolist()  # also where a network is built on "meta"
