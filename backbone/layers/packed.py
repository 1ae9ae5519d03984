"""Linear layers and convolutions whose weights may lie in the order in which oneDNN reads them."""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vheatir.backbone.layers.common import to_channels_first, to_channels_last
from vheatir.backbone.layers.freezing import KeptForms
from vheatir.kernels.plain import are_plain

MOST_ROWS_PACKED = 4096  # with more of them, bringing the weight into oneDNN's order costs nothing beside the product


class _Product(KeptForms):
    """Products and convolutions with one weight, then GELU if asked for.

    Without gradients, in float32 on a processor with AVX2 or AVX-512, oneDNN does the product, faster than what torch
    calls for `F.linear`, and with AVX-512 the GELU too (docs/performance.md). In a frozen network a weight for few
    rows, and that of a convolution anywhere, is kept in the order of the product as well.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None

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
def has_onednn_bfloat16() -> bool:
    """Whether oneDNN's products take bfloat16 here: with AVX2 alone, which `has_fast_onednn` allows, they raise."""
    operator = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return operator is not None and operator()


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
