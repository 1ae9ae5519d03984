"""The U-shaped restoration network: gated convolutions, and heat attention at the resolutions that are given."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vheatir.archs.base import RestorationNetwork, is_empty
from vheatir.archs.heat_attention import ATTENTION, GRID, GateHeat, HeatAttention, attention_of_state, build_attention
from vheatir.archs.vheatir_arch import check_counts, check_inputs, cropped, level_plane, padded
from vheatir.backbone.layers.common import to_channels_first, to_channels_last
from vheatir.backbone.layers.embedding import check_reach
from vheatir.backbone.layers.freezing import KeptForms
from vheatir.backbone.layers.packed import (
    MOST_ROWS_PACKED,
    ChannelsLastConv2d,
    Linear,
    has_fast_onednn,
    has_onednn_bfloat16,
)
from vheatir.kernels.cpu.gate import depthwise_gate, fork_norm, halves_product, residual_sum
from vheatir.kernels.plain import are_plain, full_precision, has_hooks, is_autocast_on


class GatedBlock(KeptForms):
    """Two residual branches on (B, H, W, C) maps, each scaled per channel from zero.

    The first: norm, linear, depthwise 3x3, product of both halves, attention, linear. The second: norm, linear, product
    of both halves, linear.

    Args:
        dim: channels C.
        attention: one of `ATTENTION`.
        reach: see `HeatAttention`.
        window: side of a JPEG coder's block in pixels of this map, for "grid".

    Source: NAFNet (arXiv 2204.04676), with heat in its attention.
    """

    def __init__(self, dim: int, attention: str, reach: tuple[float, float], window: int = GRID):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.expand = Linear(dim, 2 * dim)
        self.dwconv = ChannelsLastConv2d(2 * dim, 2 * dim, 3, padding=1, groups=2 * dim)
        self.attention = build_attention(attention, dim, reach, window)
        self.project = Linear(dim, dim)
        self.scale1 = nn.Parameter(torch.zeros(dim))
        self.norm2 = nn.LayerNorm(dim)
        self.fc1 = Linear(dim, 2 * dim)
        self.fc2 = Linear(dim, dim)
        self.scale2 = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to the same shape; of a float32 network float32 also under autocast."""
        mixes = self.scale1.dtype == torch.float32  # else the norms have no float32 to offer
        if mixes and x.dtype in (torch.bfloat16, torch.float16) and is_autocast_on(x):
            x = x.float()
        attention = self.attention
        heats_gate = isinstance(attention, GateHeat)
        may_fuse = self.may_keep(*self.parameters()) and _is_plain(x) and _fuses_products() and not heats_gate
        if may_fuse and self._is_as_built():
            return self._fused(x)
        narrows = x.is_cpu and is_autocast_on(x) and x.dtype != torch.float64  # which autocast leaves alone
        dtype = torch.get_autocast_dtype("cpu") if narrows else x.dtype
        x, y = fork_norm(x, self.norm1, dtype)
        y = self.expand(y)
        if heats_gate:
            y, gate = self.dwconv(y).chunk(2, dim=-1)
            y = attention(y) * gate
        else:
            y = self._gated(y)
            if attention is not None:
                y = attention(y)
        x, y = fork_norm(x, self.norm2, dtype, _scaled(self.project, y, self.scale1))
        return residual_sum(x, _scaled(self.fc2, halves_product(self.fc1(y)), self.scale2))

    def _is_as_built(self) -> bool:
        """Whether no layer was replaced, as adapters do, and none has hooks: `_fused` calls no layers."""
        products: list[nn.Module | None] = [self.expand, self.project, self.fc1, self.fc2]
        if self.attention is not None:
            products.append(getattr(self.attention, "linear", None))
        return (
            all(type(layer) is Linear for layer in products)
            and type(self.dwconv) is ChannelsLastConv2d
            and not any(has_hooks(part) for part in self.modules() if part is not self)
        )

    def _gated(self, y: Tensor) -> Tensor:
        """The product of both halves of the convolution, at once where nobody asks to be called with that."""
        if type(self.dwconv) is not ChannelsLastConv2d or has_hooks(self.dwconv):
            return halves_product(self.dwconv(y))
        return depthwise_gate(y, self.dwconv.weight, _bias(self.dwconv))

    def _fused(self, x: Tensor) -> Tensor:
        """`forward` of a frozen network on a CPU, with fewer passes over memory."""
        dtype = torch.bfloat16 if torch.is_autocast_enabled("cpu") else torch.float32
        rows = x.numel() // x.shape[-1]
        few = rows if rows <= MOST_ROWS_PACKED else 0
        forms = self.keep((dtype, few), list(self.parameters()), lambda: _Forms(self, dtype, few))
        with full_precision(x):
            product = torch.ops.mkldnn._linear_pointwise
            onto = torch.ops.mkldnn._linear_pointwise.binary
            y = product(fork_norm(x, self.norm1, dtype)[1], *forms.expand, "none", [], "")
            y = depthwise_gate(y, self.dwconv.weight, _bias(self.dwconv))
            attention = self.attention
            if attention is not None:
                assert not isinstance(attention, GateHeat), "it is not fused"
                average = attention.average(y)
                if average.shape == y.shape:
                    y = onto(average, y, *forms.attention, "mul")
                else:
                    y = attention.times(y, product(average, *forms.attention, "none", [], ""))
            if dtype == torch.float32:  # the product adds, else the norm
                x, y = fork_norm(onto(y, x, *forms.project, "add"), self.norm2, dtype)
            else:
                x, y = fork_norm(x, self.norm2, dtype, product(y, *forms.project, "none", [], ""))
            y = halves_product(product(y, *forms.fc1, "none", [], ""))
            if dtype == torch.float32:
                return onto(y, x, *forms.fc2, "add")
            return residual_sum(x, product(y, *forms.fc2, "none", [], ""))


def _bias(layer: nn.Conv2d) -> Tensor:
    assert layer.bias is not None, "convolutions here are built with one"
    return layer.bias


def _scaled(layer: Linear, x: Tensor, scale: Tensor) -> Tensor:
    """layer(x) * scale; the scale goes to the weights, which are fewer than the results."""
    if type(layer) is not Linear or layer.bias is None or has_hooks(layer):
        return layer(x) * scale
    return F.linear(x, layer.weight * scale[:, None], layer.bias * scale)


def _is_plain(x: Tensor) -> bool:
    """Whether maps are float32 on a CPU, and nothing but their values is asked for."""
    return not torch.is_grad_enabled() and are_plain(x) and x.is_cpu and x.dtype == torch.float32 and x.numel() > 0


def _fuses_products() -> bool:
    """Whether oneDNN has the products of `GatedBlock._fused` here, in the type that autocast asks for."""
    if not has_fast_onednn():
        return False
    if not torch.is_autocast_enabled("cpu"):
        return True
    return torch.get_autocast_dtype("cpu") == torch.bfloat16 and has_onednn_bfloat16()


class _Forms:
    """Weights and biases of a block's products in the type and order in which oneDNN takes them, scales folded in.

    Args:
        block: whose products they are.
        dtype: float32 or bfloat16.
        rows: of the maps, where they are few enough to keep the weights in the order of the product; else 0.
    """

    def __init__(self, block: GatedBlock, dtype: torch.dtype, rows: int):
        def form(layer: nn.Linear, scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
            weight = layer.weight.detach()
            bias = layer.bias.detach()
            if scale is not None:
                weight, bias = weight * scale.detach()[:, None], bias * scale.detach()
            weight, bias = weight.to(dtype), bias.to(dtype)
            return (torch.ops.mkldnn._reorder_linear_weight(weight, rows) if rows else weight), bias

        self.expand = form(block.expand)
        self.fc1 = form(block.fc1)
        attention = block.attention
        self.attention = form(attention.linear) if isinstance(attention, HeatAttention) else None
        self.project = form(block.project, block.scale1)
        self.fc2 = form(block.fc2, block.scale2)


class Stage(nn.Sequential):
    """Gated blocks of one resolution; with `checkpointing` their activations are recomputed in the backward.

    Args:
        dim: channels C.
        depth: blocks.
        attention, window, reach: see `GatedBlock`.
        checkpointing: recompute activations in the backward.
    """

    def __init__(
        self, dim: int, depth: int, attention: str, window: int, reach: tuple[float, float], checkpointing: bool
    ):
        super().__init__(*(GatedBlock(dim, attention, reach, window) for _ in range(depth)))
        self.checkpointing = checkpointing

    def forward(self, x: Tensor) -> Tensor:
        for block in self:
            if self.checkpointing and self.training and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return x


class VHeatUNet(RestorationNetwork):
    """Image restoration by a U-shaped network with heat attention; predicts the residual to the input.

    Input and output: (B, in_chans, H, W), RGB or gray in [0, 1] (noise may leave that range). Any H, W >= 1: padded to
    a multiple of 2^stages, cropped back. Features are channels-last throughout; their number
    doubles and their resolution halves from stage to stage.

    Args:
        in_chans: 1 for gray, 3 for RGB.
        dim: channels at full resolution.
        encoder: blocks of each stage on the way down, from full resolution.
        middle: blocks at the coarsest stage.
        decoder: blocks of each stage on the way up, in the order of `encoder`.
        attention: for each stage and the middle "heat", "mean" (over the whole map), "none", or a form that was
            compared with them: "quarter" (of the channels), "pooled" (maps), "frequency" (a diffusivity for each),
            "adaptive" (diffusivities computed from the features), "grid" (in the blocks of a JPEG coder; the three
            finest stages), "gate" (heat inside the gate); see `vheatir.archs.heat_attention`.
        reach: shortest and longest blur length, in pixels of each stage's own map, between which the diffusivities
            start.
        level_map: take the noise level or JPEG quality as a further input plane.
        checkpointing: recompute block activations in the backward (less memory, a third more time).
        padding: of images whose sides do not halve often enough: "reflect", mirrored, or "replicate", border pixels
            repeated, which is better for JPEG and worse for noise (0.15 dB on CBSD68 at sigma 50).

    Raises:
        ValueError: an argument out of its range.

    Source: the shape of U-Net (arXiv 1505.04597) and the blocks of NAFNet (arXiv 2204.04676), with the operator of
        vHeat (arXiv 2405.16555) in their attention; compared in docs/architecture.md.
    """

    def __init__(
        self,
        in_chans: int = 3,
        dim: int = 32,
        encoder: Sequence[int] = (1, 1, 3),
        middle: int = 2,
        decoder: Sequence[int] = (1, 2, 2),
        attention: Sequence[str] = ("none", "none", "heat", "heat"),
        reach: tuple[float, float] = (0.7, 12.0),
        level_map: bool = False,
        checkpointing: bool = False,
        padding: str = "reflect",
    ):
        super().__init__()
        self.config = {
            "in_chans": in_chans,
            "dim": dim,
            "encoder": encoder,
            "middle": middle,
            "decoder": decoder,
            "attention": attention,
            "reach": reach,
            "level_map": level_map,
            "checkpointing": checkpointing,
            "padding": padding,
        }
        _check_config(self.config)
        self.config.update({key: list(self.config[key]) for key in ("encoder", "decoder", "attention", "reach")})
        stages = len(encoder)
        self.level_map = level_map
        dims = [dim << stage for stage in range(stages + 1)]
        windows = [GRID >> stage for stage in range(stages + 1)]
        self.step = max(1 << stages, GRID if "grid" in attention else 1)
        rest = {"reach": tuple(reach), "checkpointing": checkpointing}
        self.conv_first = ChannelsLastConv2d(in_chans + level_map, dim, 3, padding=1)
        self.encoder = nn.ModuleList(map(lambda *size: Stage(*size, **rest), dims, encoder, attention, windows))
        self.down = nn.ModuleList(ChannelsLastConv2d(width, 2 * width, 2, stride=2) for width in dims[:-1])
        self.middle = Stage(dims[-1], middle, attention[-1], windows[-1], **rest)
        self.up = nn.ModuleList(Linear(2 * width, 4 * width, bias=False) for width in dims[:-1])
        self.decoder = nn.ModuleList(map(lambda *size: Stage(*size, **rest), dims, decoder, attention, windows))
        self.conv_last = ChannelsLastConv2d(dim, in_chans, 3, padding=1)
        # The untrained network returns its input.
        nn.init.zeros_(self.conv_last.weight)
        nn.init.zeros_(_bias(self.conv_last))

    def forward(self, image: Tensor, level: Tensor | None = None) -> Tensor:
        """Restore images.

        Args:
            image: (B, in_chans, H, W).
            level: noise level / 255 or JPEG quality / 100, as (B,) or (B, 1, H, W); needed where the network was
                built with `level_map`, refused otherwise.

        Raises:
            ValueError: wrong shape, or a level where none (or none where one) is expected.
            TypeError: the image is not of a floating type, or one of both is no tensor.
        """
        check_inputs(image, level, self.config)
        if is_empty(image):
            return image.clone()
        height, width = image.shape[2:]
        planes = self.padded(image)
        if level is not None:
            planes = torch.cat([planes, self.padded(level_plane(level, image))], 1)
        return image + cropped(self.residual(planes), height, width)

    def residual(self, planes: Tensor, added: Sequence[Tensor] = ()) -> Tensor:
        """What is added to images to restore them, (B, in_chans, H, W).

        Args:
            planes: images, and the level where the network takes one, with padded sides.
            added: (B, H, W, C) to add to the maps of the first levels, from full resolution on; the middle is the last.
        """
        x = self.conv_first(to_channels_last(planes).contiguous())
        skips = []
        for number, (stage, down) in enumerate(zip(self.encoder, self.down, strict=True)):
            x = stage(x + added[number] if number < len(added) else x)
            skips.append(x)
            x = down(x)
        x = self.middle(x + added[len(skips)] if len(skips) < len(added) else x)
        for up, stage in zip(reversed(self.up), reversed(self.decoder), strict=True):
            x = stage(_spread(up(x)) + skips.pop())
        return to_channels_first(self.conv_last(x))

    def padded(self, planes: Tensor) -> Tensor:
        """Planes (B, C, H, W) padded below and right, to sides that halve as often as needed."""
        step = self.step
        # Not -(-side // n): formats that exporters write divide towards zero.
        height, width = ((side + step - 1) // step * step for side in planes.shape[2:])
        return padded(planes, height, width, self.config["padding"])


def _spread(x: Tensor) -> Tensor:
    """(B, H, W, 4 C) to (B, 2 H, 2 W, C): each position becomes 2 x 2, row by row."""
    batch, height, width, channels = x.shape
    parts = x.reshape(batch, height, width, 2, 2, channels // 4)
    return parts.transpose(2, 3).reshape(batch, 2 * height, 2 * width, channels // 4)


def _check_config(config: Mapping) -> None:
    """Refuse constructor arguments that no network has, naming the argument."""
    check_counts(config, ["in_chans", "dim"])
    if not isinstance(config["middle"], int) or isinstance(config["middle"], bool) or config["middle"] < 0:
        raise ValueError(f"middle must be a number of blocks, 0 or more, got {config['middle']!r}")
    for key in ("encoder", "decoder"):
        depths = config[key]
        if not isinstance(depths, list | tuple) or not depths or not all(isinstance(d, int) and d >= 0 for d in depths):
            raise ValueError(f"{key} must be the blocks of each stage, such as [1, 1, 2], got {depths!r}")
    stages = len(config["encoder"])
    if len(config["decoder"]) != stages:
        raise ValueError(f"decoder must have as many stages as encoder ({stages}), got {config['decoder']!r}")
    attention = config["attention"]
    if not isinstance(attention, list | tuple) or len(attention) != stages + 1 or not set(attention) <= {*ATTENTION}:
        raise ValueError(
            f"attention must be one of {', '.join(ATTENTION)} for each of the {stages} stages and the middle, "
            f"got {attention!r}"
        )
    if "grid" in attention[GRID.bit_length() - 1 :]:
        raise ValueError(
            f"attention grid has blocks of {GRID} pixels, so only the three finest stages, got {attention!r}"
        )
    if config["padding"] not in ("reflect", "replicate"):
        raise ValueError(f"padding must be reflect or replicate, got {config['padding']!r}")
    check_reach(config["reach"])


def config_from_state_dict(state: Mapping[str, Tensor]) -> dict:
    """Constructor arguments of the VHeatUNet that a state dict belongs to, read from its keys and shapes.

    What leaves no trace in the weights (`reach`, `checkpointing`, `padding`, the attention of a stage without blocks)
    keeps its default.

    Raises:
        ValueError: the keys are not those of a VHeatUNet.
    """
    try:
        in_chans, dim = state["conv_last.weight"].shape[:2]
        planes = state["conv_first.weight"].shape[1]
        stages = len({key.split(".")[1] for key in state if key.startswith("down.")})
        if not stages:
            raise ValueError("these are no VHeatUNet weights: expected keys down.*")
        encoder = [_depth(state, f"encoder.{stage}.") for stage in range(stages)]
        decoder = [_depth(state, f"decoder.{stage}.") for stage in range(stages)]
        prefixes = [(f"encoder.{stage}.0.", f"decoder.{stage}.0.") for stage in range(stages)] + [("middle.0.",)]
    except KeyError as missing:
        raise ValueError(f"these are no VHeatUNet weights: key {missing} is missing") from None
    return {
        "in_chans": in_chans,
        "dim": dim,
        "encoder": encoder,
        "middle": _depth(state, "middle."),
        "decoder": decoder,
        "attention": [attention_of_state(state, places) for places in prefixes],
        "level_map": planes > in_chans,
    }


def _depth(state: Mapping[str, Tensor], prefix: str) -> int:
    return len({key.removeprefix(prefix).split(".")[0] for key in state if key.startswith(prefix)})


def gray_from_color(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a gray network that does what the color network of `state` does to R = G = B, averaged to gray.

    The first convolution is summed over the three channels, the last one averaged; all else stays. A start for
    training a gray network, which converges sooner than one from scratch.

    Raises:
        ValueError: `state` is not that of a color VHeatUNet.
    """
    first, last, bias = (state.get(key) for key in ("conv_first.weight", "conv_last.weight", "conv_last.bias"))
    if first is None or last is None or bias is None or len(last) != 3:
        raise ValueError("expected the weights of a color VHeatUNet (conv_last of 3 planes)")
    return {
        **state,
        "conv_first.weight": torch.cat([first[:, :3].sum(1, keepdim=True), first[:, 3:]], 1),
        "conv_last.weight": last.mean(0, keepdim=True),
        "conv_last.bias": bias.mean(0, keepdim=True),
    }
