"""Small layers on channels-last maps (B, H, W, C), shared by the restoration network and the backbones."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vheatir.kernels.checks import are_plain


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


_MOST_ROWS_PACKED = 4096  # with more of them, bringing the weight into oneDNN's order costs nothing beside the product


class _Product(nn.Module):
    """Products and convolutions with one weight, then GELU if asked for.

    Without gradients, in float32 on a processor with AVX2 or AVX-512, oneDNN does the product, up to a third faster
    than what torch calls for `F.linear`, and with AVX-512 the GELU too (docs/performance.md). A weight for few rows,
    and that of a convolution anywhere, is kept in the order of the product as well, and dropped like the decays of a
    heat layer: after writing to values of `weight.data`, which torch does not see, call `eval()`.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        # The weight, its version and address, and the same in another order.
        self._packed: tuple[Tensor, tuple, Tensor] | None = None

    def product(self, x: Tensor, gelu: bool = False) -> Tensor:
        """(..., C) to (..., C')."""
        if _is_for_onednn(x, self.weight):
            inside = gelu and _has_fast_onednn_gelu()
            act = "gelu" if inside else "none"
            y = torch.ops.mkldnn._linear_pointwise(x, self._onednn_weight(x), self.bias, act, [], "none")
        else:
            inside = False
            y = F.linear(x, self.weight.flatten(1), self.bias)
        return F.gelu(y) if gelu and not inside else y

    def _onednn_weight(self, x: Tensor) -> Tensor:
        rows = x.numel() // x.shape[-1]
        if rows > _MOST_ROWS_PACKED:
            return self.weight.flatten(1)
        return self._kept(lambda weight: torch.ops.mkldnn._reorder_linear_weight(weight.flatten(1), rows))

    def _kept(self, pack: Callable[[Tensor], Tensor], *order: object) -> Tensor:
        """What `pack` made of the weight, made anew where the weight or the `order` has changed."""
        weight, packed = self.weight, self._packed
        state = weight._version, weight.data_ptr(), *order
        if packed is None or packed[0] is not weight or packed[1] != state:
            packed = self._packed = weight, state, pack(weight.detach())
        return packed[2]

    def train(self, mode: bool = True) -> "_Product":
        self._packed = None
        return super().train(mode)

    def _apply(self, fn, recurse: bool = True) -> "_Product":
        self._packed = None
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_packed": None}


def _may_keep(x: Tensor, weight: Tensor) -> bool:
    """Whether the weight may be kept in another order for this call and later ones."""
    return (
        not torch.is_grad_enabled()
        and are_plain(x, weight)
        and not weight.is_inference()  # it counts no changes, after which what is kept would be stale
        and x.is_cpu
        and x.dtype == weight.dtype == torch.float32
        and x.numel() > 0
        and not torch.is_autocast_enabled("cpu")
    )


def _is_for_onednn(x: Tensor, weight: Tensor) -> bool:
    return _may_keep(x, weight) and _has_fast_onednn()


@cache
def _has_fast_onednn() -> bool:
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
        if not _may_keep(image, self.weight):
            return super().forward(image)
        if not _has_fast_onednn() or self.padding_mode != "zeros" or isinstance(self.padding, str):
            # For a channels-last image torch would make such a copy in each call.
            weight = self._kept(lambda weight: weight.contiguous(memory_format=torch.channels_last), "channels-last")
            return self._conv_forward(image, weight, self.bias)
        shape = self.padding, self.stride, self.dilation, self.groups
        size = image.shape
        weight = self._kept(lambda weight: torch.ops.mkldnn._reorder_convolution_weight(weight, *shape, size), *shape)
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
