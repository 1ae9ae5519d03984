"""The restoration network."""

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vheatir.archs.base import RestorationNetwork, is_empty
from vheatir.backbone.layers.common import drop_path_rates, init_linear, to_channels_first, to_channels_last
from vheatir.backbone.layers.embedding import RESIZE_MODES, EmbeddingAt
from vheatir.backbone.layers.heat import HeatBlock, HeatLayer
from vheatir.backbone.layers.packed import ChannelsLastConv2d


class ResidualHeatGroup(nn.Module):
    """Heat blocks, a 3x3 convolution and a skip around them; maps (B, H, W, C) to the same shape.

    Args:
        dim: channels C.
        drop_paths: stochastic depth of each block.
        **block: further arguments of `HeatBlock`.
    """

    def __init__(self, dim: int, drop_paths: list[float], **block):
        super().__init__()
        self.blocks = nn.ModuleList(HeatBlock(dim, drop_path=rate, **block) for rate in drop_paths)
        self.conv = ChannelsLastConv2d(dim, dim, 3, padding=1)

    def forward(self, x: Tensor, embedding: EmbeddingAt) -> Tensor:
        y = x
        for block in self.blocks:
            y = block(y, embedding)
        return x + self.conv(y)


class VHeatIR(RestorationNetwork):
    """Image restoration by heat conduction; predicts the residual to the input.

    Input and output: (B, in_chans, H, W), RGB or gray in [0, 1] (noise may leave that range). Any H, W >= 1: padded
    to a multiple of `downscale`, cropped back.

    Args:
        in_chans: 1 for gray, 3 for RGB.
        dim: channels C of the features.
        depths: heat blocks of each residual group.
        mlp_ratio: hidden over outer channels of each block's MLP.
        embed_size: side of the frequency embedding; the training crop over `downscale`, or less.
        downscale: features live on a grid this many times coarser (pixel unshuffle in, pixel shuffle out).
        level_map: take the noise level or JPEG quality as a further input plane.
        gate: multiply by SiLU of a second branch of the first linear.
        dwconv: start heat layers with the depthwise 3x3 convolution.
        learned_k: diffusivities from the frequency embedding; otherwise the constant `fixed_k`.
        fixed_k: diffusivity in squared pixels where it is not learned.
        reach: blur lengths in pixels at which the diffusivities start; None for the published start.
        post_norm: normalize each branch's output instead of its input.
        layer_scale: starting value of the branches' factors; None for no factors.
        mlp_dwconv: depthwise 3x3 inside the MLP.
        drop_path_rate: stochastic depth of the last block; linear from 0 at the first.
        resize: how the frequency embedding is brought to other map sizes, "exact" or "published".
        checkpointing: recompute block activations in the backward (less memory, a third more time).

    Raises:
        ValueError: an argument out of its range.

    Source: blocks of vHeat (arXiv 2405.16555) in the layout of SwinIR (arXiv 2108.10257): shallow convolution, residual
        groups, long skip, residual output. Departs from it by the optional coarser grid (measured in
        docs/architecture.md), a last convolution that starts at zero, and one frequency embedding for all blocks.
    """

    def __init__(
        self,
        in_chans: int = 3,
        dim: int = 180,
        depths: tuple[int, ...] = (6, 6, 6, 6, 6, 6),
        mlp_ratio: float = 2.0,
        embed_size: int = 32,
        downscale: int = 1,
        level_map: bool = False,
        gate: bool = True,
        dwconv: bool = True,
        learned_k: bool = True,
        fixed_k: float = 1.0,
        reach: tuple[float, float] | None = None,
        post_norm: bool = False,
        layer_scale: float | None = None,
        mlp_dwconv: bool = False,
        drop_path_rate: float = 0.0,
        resize: str = "exact",
        checkpointing: bool = False,
    ):
        super().__init__()
        self.config = {key: value for key, value in locals().items() if key not in ("self", "__class__")}
        _check_config(self.config)
        self.config.update(depths=list(depths), reach=None if reach is None else list(reach))
        self.downscale = downscale
        self.resize = resize
        self.level_map = level_map
        planes = in_chans * downscale**2
        block = {"mlp_ratio": mlp_ratio, "post_norm": post_norm, "layer_scale": layer_scale, "mlp_dwconv": mlp_dwconv}
        block |= {"gate": gate, "dwconv": dwconv, "learned_k": learned_k, "fixed_k": fixed_k, "reach": reach}
        self.conv_first = ChannelsLastConv2d(planes + level_map, dim, 3, padding=1)
        # Where nothing depends on it, it asks for no gradient: DistributedDataParallel would wait for it.
        self.freq_embed = nn.Parameter(torch.empty(embed_size, embed_size, dim), requires_grad=learned_k)
        rates = iter(drop_path_rates(drop_path_rate, sum(depths)))
        self.groups = nn.ModuleList(
            ResidualHeatGroup(dim, [next(rates) for _ in range(depth)], checkpointing=checkpointing, **block)
            for depth in depths
        )
        self.norm = None if post_norm else nn.LayerNorm(dim)
        self.conv_after_body = ChannelsLastConv2d(dim, dim, 3, padding=1)
        self.conv_last = ChannelsLastConv2d(dim, planes, 3, padding=1)
        self._init_weights()

    def _init_weights(self) -> None:
        self.apply(init_linear)
        nn.init.trunc_normal_(self.freq_embed, std=0.02)
        for layer in self.heat_layers():
            layer.init_reach()
        # The untrained network returns its input.
        nn.init.zeros_(self.conv_last.weight)
        if self.conv_last.bias is not None:
            nn.init.zeros_(self.conv_last.bias)

    def heat_layers(self) -> list[HeatLayer]:
        """Every heat layer, in the order of the forward pass."""
        return [module for module in self.modules() if isinstance(module, HeatLayer)]

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
        planes = F.pixel_unshuffle(self._pad(image), self.downscale)
        if level is not None:
            planes = torch.cat([planes, F.avg_pool2d(self._pad(level_plane(level, image)), self.downscale)], 1)
        shallow = self.conv_first(to_channels_last(planes).contiguous())
        embedding = EmbeddingAt(self.freq_embed, tuple(shallow.shape[1:3]), self.resize)
        deep = shallow
        for group in self.groups:
            deep = group(deep, embedding)
        if self.norm is not None:
            deep = self.norm(deep)
        residual = to_channels_first(self.conv_last(shallow + self.conv_after_body(deep)))
        residual = F.pixel_shuffle(residual, self.downscale)
        return image + cropped(residual, height, width)

    def _pad(self, planes: Tensor) -> Tensor:
        if self.downscale == 1:
            return planes
        most = self.downscale - 1  # not -(-side // n): formats that exporters write divide towards zero
        height, width = ((side + most) // self.downscale * self.downscale for side in planes.shape[2:])
        return padded(planes, height, width)

    def fold(self, height: int, width: int) -> None:
        """Freeze the decays for images of one size (the published form for inference); `unfold` goes back."""
        size = (math.ceil(height / self.downscale), math.ceil(width / self.downscale))
        with torch.no_grad():
            embedding = EmbeddingAt(self.freq_embed, size, self.resize)
            for layer in self.heat_layers():
                layer.fold(embedding)

    def unfold(self) -> None:
        """Undo `fold`.

        Raises:
            ValueError: not folded, or the folded weights were loaded.
        """
        for layer in self.heat_layers():
            layer.check_unfold()
        for layer in self.heat_layers():
            layer.unfold()


def check_inputs(image: Tensor, level: Tensor | None, config: Mapping) -> None:
    """Refuse what a network of this configuration cannot restore; see `VHeatIR.forward`.

    Args:
        image: (B, C, H, W).
        level: noise level or quality as `VHeatIR.forward` takes it; None without.
        config: constructor arguments of the network.
    """
    if not isinstance(image, Tensor):
        raise TypeError(
            f"expected images as a torch.Tensor (B, {config['in_chans']}, H, W), got {type(image).__name__}"
        )
    if level is not None and not isinstance(level, Tensor):
        raise TypeError(
            f"level must be a torch.Tensor (B,) or (B, 1, H, W), got {type(level).__name__}; for one number give "
            "torch.full((B,), number)"
        )
    if image.ndim != 4 or image.shape[1] != config["in_chans"] or 0 in image.shape[2:]:
        raise ValueError(f"expected images (B, {config['in_chans']}, H, W), got {tuple(image.shape)}")
    if (level is not None) != config["level_map"]:
        raise ValueError("this network needs a level" if config["level_map"] else "this network takes no level")
    if not image.is_floating_point():
        raise TypeError(f"expected floating point in [0, 1], got {image.dtype}; divide 8-bit images by 255")


def level_plane(level: Tensor, image: Tensor) -> Tensor:
    """A level of shape (B,) or (B, 1, H, W) as a plane (B, 1, H, W) of the image's size and dtype."""
    batch, _, height, width = image.shape
    if level.shape != (batch,) and level.shape != (batch, 1, height, width):
        raise ValueError(f"level must be ({batch},) or {(batch, 1, height, width)}, got {tuple(level.shape)}")
    level = level.to(image)
    return level.view(-1, 1, 1, 1).expand(-1, 1, height, width) if level.ndim == 1 else level


def cropped(planes: Tensor, height: int, width: int) -> Tensor:
    """Planes without what lies below and right.

    Args:
        planes: (B, C, H, W).
        height: of the result, at most H.
        width: of the result, at most W.
    """
    if not torch.compiler.is_exporting():
        return planes[:, :, :height, :width]
    # A slice makes an exporter ask whether it changes anything, and so fix whether sides are even.
    rows, columns = (torch.arange(side, device=planes.device) for side in (height, width))
    return planes.index_select(2, rows).index_select(3, columns)


def padded(planes: Tensor, height: int, width: int, mode: str = "reflect") -> Tensor:
    """Planes (B, C, H, W) made larger below and right.

    Args:
        planes: at most as large as the result.
        height: of the result.
        width: of the result.
        mode: "reflect", mirrored at the border pixels: mirrored noise is as white as the noise was, while repeated
            noise makes streaks that a network takes for edges; or "replicate", border pixels repeated, as JPEG coders
            fill their last blocks.
    """
    below = height - planes.shape[2]
    right = width - planes.shape[3]
    if not torch.compiler.is_exporting():
        if not (below or right):
            return planes
        if mode == "replicate" or (below < planes.shape[2] and right < planes.shape[3]):
            return F.pad(planes, (0, right, 0, below), mode=mode)
    rows, columns = (
        _sources(length, side, mode, planes.device)
        for length, side in zip((height, width), planes.shape[2:], strict=True)
    )
    return planes.index_select(2, rows).index_select(3, columns)


def _sources(length: int, side: int, mode: str, device: torch.device) -> Tensor:
    """Where each pixel of a padded side comes from, in a form that says nothing about unknown sides."""
    position = torch.arange(length, device=device)
    if mode == "replicate":
        return position.clamp(max=side - 1)
    # As a tensor: ONNX has no remainder of an unknown number.
    period = (2 * torch.arange(side, device=device).amax(0)).clamp(min=1)
    position = position % period
    return torch.minimum(position, period - position)


def check_counts(config: Mapping, keys: Sequence[str]) -> None:
    """Refuse constructor arguments that are no counts, and images of neither one nor three channels.

    Args:
        config: constructor arguments by name.
        keys: those that must be whole numbers of at least 1.

    Raises:
        ValueError: one of them is not, or `in_chans` is neither 1 nor 3.
    """
    for key in keys:
        if not isinstance(config[key], int) or isinstance(config[key], bool) or config[key] < 1:
            raise ValueError(f"{key} must be a whole number of at least 1, got {config[key]!r}")
    if config["in_chans"] not in (1, 3):
        raise ValueError(f"in_chans must be 1 (gray) or 3 (RGB), got {config['in_chans']}")


def _check_config(config: Mapping) -> None:
    """Refuse constructor arguments that no network has, naming the argument."""
    check_counts(config, ["in_chans", "dim", "embed_size", "downscale"])
    depths = config["depths"]
    reach = config["reach"]
    if not isinstance(depths, list | tuple) or not depths or not all(isinstance(d, int) and d >= 1 for d in depths):
        raise ValueError(f"depths must be the heat blocks of each group, such as [6, 6], got {depths!r}")
    if reach is not None and (not isinstance(reach, list | tuple) or len(reach) != 2):
        raise ValueError(f"reach must be two lengths in pixels, such as [0.5, 24.0], or null, got {reach!r}")
    for key in ("mlp_ratio", "fixed_k", "drop_path_rate", "layer_scale"):
        value = 0 if key == "layer_scale" and config[key] is None else config[key]
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < math.inf:
            raise ValueError(f"{key} must be a number of at least 0, got {value!r}")
    if config["resize"] not in RESIZE_MODES:
        raise ValueError(f"resize must be one of {', '.join(RESIZE_MODES)}, got {config['resize']!r}")


def gray_from_color(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a gray network that does what the color network of `state` does to R = G = B, averaged to gray.

    The first convolution is summed over the three channels, the last one averaged; all else stays. A start for
    training a gray network, which converges sooner than one from scratch.

    Raises:
        ValueError: `state` is not that of a color VHeatIR.
    """
    first, last, bias = (state.get(key) for key in ("conv_first.weight", "conv_last.weight", "conv_last.bias"))
    if (
        first is None
        or last is None
        or bias is None
        or len(last) % 3
        or math.isqrt(len(last) // 3) ** 2 * 3 != len(last)
    ):
        raise ValueError("expected the weights of a color VHeatIR (conv_last of 3 downscale^2 planes)")
    planes = len(last)
    image = first[:, :planes].unflatten(1, (3, -1)).sum(1)
    return {
        **state,
        "conv_first.weight": torch.cat([image, first[:, planes:]], 1),
        "conv_last.weight": last.unflatten(0, (3, -1)).mean(0),
        "conv_last.bias": bias.unflatten(0, (3, -1)).mean(0),
    }


def config_from_state_dict(state: Mapping[str, Tensor]) -> dict:
    """Constructor arguments of the VHeatIR that a state dict belongs to, read from its keys and shapes.

    What leaves no trace in the weights (`fixed_k`, `reach`, `resize`, `drop_path_rate`, `checkpointing`, the starting
    value of a layer scale) keeps its default.

    Raises:
        ValueError: the keys are not those of an unfolded VHeatIR.
    """
    try:
        planes, dim = state["conv_last.weight"].shape[:2]
        in_chans = 1 if math.isqrt(planes) ** 2 == planes else 3
        depths: list[int] = []
        while f"groups.{len(depths)}.conv.weight" in state:
            prefix = f"groups.{len(depths)}.blocks."
            depth = 0
            while f"{prefix}{depth}.norm1.weight" in state:
                depth += 1
            depths.append(depth)
        first = "groups.0.blocks.0."
        hidden = state[first + "mlp.fc1.weight"].shape[0] if first + "mlp.fc1.weight" in state else 0
        config = {
            "in_chans": in_chans,
            "dim": dim,
            "depths": depths,
            "mlp_ratio": hidden / dim,
            "embed_size": state["freq_embed"].shape[0],
            "downscale": math.isqrt(planes // in_chans),
            "level_map": state["conv_first.weight"].shape[1] > planes,
            "gate": state[first + "op.linear.weight"].shape[0] == 2 * dim,
            "dwconv": first + "op.dwconv.weight" in state,
            "learned_k": first + "op.to_k.0.weight" in state,
            "post_norm": "norm.weight" not in state,
            "layer_scale": 1.0 if first + "gamma1" in state else None,
            "mlp_dwconv": first + "mlp.dwconv.weight" in state,
        }
    except KeyError as missing:
        raise ValueError(f"these are no VHeatIR weights: key {missing} is missing") from None
    if not depths or first + "op.k_exp" in state:
        raise ValueError("expected the weights of an unfolded VHeatIR (groups.*.blocks.* without k_exp)")
    return config
