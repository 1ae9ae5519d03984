"""The video network: frames mixed along their motion by heat in space and time, then the U-shaped image network."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vheatir.archs import alignment, vheatunet_arch
from vheatir.archs.base import RestorationNetwork, is_empty, middle_planes
from vheatir.archs.heat_attention import HeatAttention
from vheatir.archs.vheatir_arch import check_counts
from vheatir.archs.vheatunet_arch import GatedBlock, VHeatUNet
from vheatir.backbone.layers.common import to_channels_first, to_channels_last
from vheatir.backbone.layers.embedding import check_reach, diffusivities_of_reach
from vheatir.backbone.layers.packed import ChannelsLastConv2d, Linear
from vheatir.kernels.diffusion.ops import diffuse
from vheatir.kernels.plain import full_precision

FRAMES = (3, 5, 7)  # that a network may take
IMAGE = "image."  # prefix of the image network's weights
_MISMATCH = (0.5, 4.0, 32.0)  # squared pixels: windows in which frames are compared
_FAINT = 1e-4  # squared difference that counts as none


class ClipHeatAttention(HeatAttention):
    """Heat attention over clips: x * linear(heat(x)), where heat flows through space and time.

    Maps (B * T, H, W, C), the frames of a clip one after the other, to the same shape. Each channel has a diffusivity
    along time and one along both axes of space; their starting values are log-spaced, in different orders.

    Args:
        dim: channels C.
        frames: T.
        reach: blur lengths in pixels between which the channels start.
        duration: the same along time, in frames.
    """

    def __init__(self, dim: int, frames: int, reach: tuple[float, float], duration: tuple[float, float]):
        super().__init__(dim, None)
        self.frames = frames
        self.space_log_k = nn.Parameter(torch.tensor(np.log(diffusivities_of_reach(reach, dim)).tolist()))
        mixed = np.argsort(np.arange(dim) % 4, kind="stable")
        time = diffusivities_of_reach(duration, dim)[mixed]
        self.time_log_k = nn.Parameter(torch.tensor(np.log(time).tolist()))

    def average(self, x: Tensor) -> Tensor:
        """(B * T, H, W, C)."""
        with full_precision(x):
            wide = torch.promote_types(self.time_log_k.dtype, torch.float32)
            time, space = (log_k.to(wide).exp() for log_k in (self.time_log_k, self.space_log_k))
            return diffuse(x.unflatten(0, (-1, self.frames)), (time, space, space)).flatten(0, 1)


class ClipBlock(GatedBlock):
    """The gated block of `VHeatUNet` on clips, with `ClipHeatAttention`.

    Args:
        dim: channels.
        frames: of a clip.
        reach: see `ClipHeatAttention`.
        duration: likewise.
    """

    def __init__(self, dim: int, frames: int, reach: tuple[float, float], duration: tuple[float, float]):
        super().__init__(dim, "none", reach)
        self.attention = ClipHeatAttention(dim, frames, reach, duration)
        nn.init.constant_(self.scale1, 0.5)
        nn.init.constant_(self.scale2, 0.5)


class ClipMixer(nn.Module):
    """Weights with which the frames around the middle one, already aligned with it, are added to it.

    The middle frame becomes `middle + sum w_t (frame_t - middle)`; |w_t| sum to less than 1. Weights come from gated
    blocks on maps of half the resolution, whose attention lets heat flow through the clip. They start at 0.

    Args:
        in_chans: 1 for gray, 3 for RGB.
        frames: of a clip.
        dim: channels of its maps.
        depth: blocks.
        reach: see `ClipHeatAttention`.
        duration: likewise.
    """

    def __init__(
        self,
        in_chans: int,
        frames: int,
        dim: int,
        depth: int,
        reach: tuple[float, float],
        duration: tuple[float, float],
    ):
        super().__init__()
        self.frames = frames
        self.conv_first = ChannelsLastConv2d(8 * in_chans + len(_MISMATCH), dim, 3, padding=1)
        self.place = nn.Parameter(torch.zeros(frames, dim))  # of a frame in the clip
        self.blocks = nn.ModuleList(ClipBlock(dim, frames, reach, duration) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.head = Linear(dim, 4)
        nn.init.zeros_(self.head.weight)
        if self.head.bias is not None:
            nn.init.zeros_(self.head.bias)

    def forward(self, clip: Tensor, trusted: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Mix a clip.

        Args:
            clip: (B, T, C, H, W), H and W even, aligned with the middle frame.
            trusted: (B, T - 1, 1, H / 2, W / 2), factors for the weights of the frames but the middle one; 1 by
                default.

        Returns:
            The mixed frame (B, C, H, W); the share of white noise that is left in it, as variance, (B, 1, H, W); and
            the maps of the middle frame, (B, H / 2, W / 2, dim).
        """
        middle = self.frames // 2
        change = clip - clip[:, middle : middle + 1]
        planes = F.pixel_unshuffle(torch.cat([change, clip], 2).flatten(0, 1), 2)
        x = torch.cat([to_channels_last(planes), self._mismatch(change)], -1)
        x = self.conv_first(x.contiguous())
        x = (x.unflatten(0, (-1, self.frames)) + self.place[:, None, None].to(x.dtype)).flatten(0, 1)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        shares = self.head(x)
        wide = torch.promote_types(shares.dtype, torch.float32)
        raw = F.pixel_shuffle(to_channels_first(shares.to(wide)), 2).unflatten(0, (-1, self.frames))
        weights = raw / (1 + raw.abs().sum(1, keepdim=True))
        others = [index for index in range(self.frames) if index != middle]
        weights = weights[:, others]
        if trusted is not None:
            weights = weights * trusted.repeat_interleave(2, 3).repeat_interleave(2, 4)
        mixed = clip[:, middle] + (weights * change[:, others]).sum(1)
        left = (1 - weights.sum(1)).square() + weights.square().sum(1)
        return mixed.to(clip.dtype), left.to(clip.dtype), x.unflatten(0, (-1, self.frames))[:, middle]

    @staticmethod
    def _mismatch(change: Tensor) -> Tensor:
        """How much frames differ from the middle one, in windows of several sizes: (B * T, H / 2, W / 2, windows)."""
        with torch.no_grad(), full_precision(change):
            wide = torch.promote_types(change.dtype, torch.float32)
            squares = F.avg_pool2d(change.to(wide).square().mean(2).flatten(0, 1)[:, None], 2)
            windows = change.new_tensor(_MISMATCH, dtype=wide)
            maps = diffuse(to_channels_last(squares).expand(-1, -1, -1, len(_MISMATCH)), windows)
            return ((maps.clamp(min=0) + _FAINT).log() / 4 + 1).to(change.dtype)


class VHeatVideoNet(RestorationNetwork):
    """Restoration of the middle frame of a clip, and of single images.

    The other frames are aligned with the middle one (`vheatir.archs.alignment`) and mixed into it (`ClipMixer`) where
    the motion back agrees with the motion there and the frames agree. The result goes through a `VHeatUNet`, which also
    takes in how much noise is left and what the clip's maps hold, at full and at half resolution. What is new starts
    at zero: a network that begins with the weights of an image network restores as that does.

    Input: (B, frames * in_chans, H, W), the frames one after the other; or (B, in_chans, H, W), images, which go
    through the U-shaped network alone. Output: (B, in_chans, H, W). RGB or gray in [0, 1]; any H, W >= 1.

    Args:
        in_chans: 1 for gray, 3 for RGB.
        frames: of a clip: 3, 5 or 7.
        mix_dim: channels of the maps on which frames are weighed.
        mix_depth: blocks there.
        mix_reach: blur lengths in pixels of these maps at which their diffusivities start.
        duration: the same along time, in frames.
        dim: of the U-shaped network, as are the following: channels at full resolution.
        encoder: blocks of each stage on the way down, from full resolution.
        middle: blocks at the coarsest stage.
        decoder: blocks of each stage on the way up, in the order of `encoder`.
        attention: for each stage and the middle, a form that `VHeatUNet` takes.
        reach: blur lengths, in pixels of each stage's own map, between which the diffusivities start.
        checkpointing: recompute activations in the backward.
        padding: of clips whose sides do not halve often enough, see `VHeatUNet`.

    Raises:
        ValueError: an argument out of its range.

    Source: aligned frames mixed before a spatial network, as in video denoising by V-BM4D (IEEE Trans. Image Process.
        21, 2012) and FastDVDnet (arXiv 1907.01361); heat in three dimensions in docs/operator_forms.md.
    """

    level_map = False

    def __init__(
        self,
        in_chans: int = 3,
        frames: int = 5,
        mix_dim: int = 16,
        mix_depth: int = 2,
        mix_reach: tuple[float, float] = (0.7, 6.0),
        duration: tuple[float, float] = (0.3, 3.0),
        dim: int = 32,
        encoder: Sequence[int] = (1, 1, 3),
        middle: int = 2,
        decoder: Sequence[int] = (1, 2, 2),
        attention: Sequence[str] = ("none", "none", "heat", "heat"),
        reach: tuple[float, float] = (0.7, 12.0),
        checkpointing: bool = False,
        padding: str = "reflect",
    ):
        super().__init__()
        own = {"frames": frames, "mix_dim": mix_dim, "mix_depth": mix_depth}
        lengths = {"mix_reach": mix_reach, "duration": duration}
        _check_config(own, lengths)
        self.image = VHeatUNet(in_chans, dim, encoder, middle, decoder, attention, reach, False, checkpointing, padding)
        self.config = {**own, **{key: list(value) for key, value in lengths.items()}}
        self.config |= {key: value for key, value in self.image.config.items() if key != "level_map"}
        self.frames = frames
        self.mixer = ClipMixer(
            in_chans, frames, mix_dim, mix_depth, (mix_reach[0], mix_reach[1]), (duration[0], duration[1])
        )
        self.from_noise = ChannelsLastConv2d(in_chans + 1, dim, 3, padding=1)
        self.from_clip = Linear(mix_dim, 2 * dim)
        for layer in (self.from_noise, self.from_clip):
            nn.init.zeros_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def forward(self, image: Tensor) -> Tensor:
        """Restore the middle frames of clips, or images.

        Args:
            image: (B, frames * in_chans, H, W) or (B, in_chans, H, W).

        Raises:
            ValueError: wrong shape.
            TypeError: the image is no tensor, or not of a floating type.
        """
        colors = self.image.config["in_chans"]
        planes = self.frames * colors
        if not isinstance(image, Tensor):
            raise TypeError(f"expected clips as a torch.Tensor (B, {planes}, H, W), got {type(image).__name__}")
        if image.ndim != 4 or image.shape[1] not in (colors, planes) or 0 in image.shape[2:]:
            raise ValueError(
                f"expected clips (B, {planes}, H, W) or images (B, {colors}, H, W), got {tuple(image.shape)}"
            )
        if not image.is_floating_point():
            raise TypeError(f"expected floating point in [0, 1], got {image.dtype}; divide 8-bit images by 255")
        if image.shape[1] == colors:
            return self.image(image)
        if is_empty(image):
            return middle_planes(image, colors).clone()
        height, width = image.shape[2:]
        clip = self.image.padded(image).unflatten(1, (self.frames, colors))
        mixed, left, maps = self.mixer(*self.aligned(clip))
        noise = torch.cat([clip[:, self.frames // 2] - mixed, left], 1)
        added = [self.from_noise(to_channels_last(noise).contiguous()), self.from_clip(maps)]
        return (mixed + self.image.residual(mixed, added))[:, :, :height, :width]

    def aligned(self, clip: Tensor) -> tuple[Tensor, Tensor]:
        """The frames of clips (B, T, C, H, W) seen from where the middle one was taken, and where that can be trusted.

        The second is 1 or 0, (B, T - 1, 1, H / 2, W / 2), of the frames but the middle one.
        """
        middle = self.frames // 2
        gray = F.avg_pool2d(clip.mean(2), 2)
        others = [index for index in range(self.frames) if index != middle]
        target = gray[:, middle : middle + 1].expand(-1, len(others), -1, -1).reshape(-1, 1, *gray.shape[2:])
        flow, trusted = alignment.motion_there_and_back(target, gray[:, others].reshape(target.shape))
        size = (clip.shape[3], clip.shape[4])
        moved = alignment.warped(clip[:, others].flatten(0, 1), alignment.enlarged(flow, size), "bicubic")
        frames = list(moved.to(clip.dtype).unflatten(0, (-1, len(others))).unbind(1))
        frames.insert(middle, clip[:, middle])
        return torch.stack(frames, 1), trusted.to(clip.dtype).unflatten(0, (-1, len(others)))


def _check_config(counts: Mapping, lengths: Mapping) -> None:
    """Refuse constructor arguments of the mixing that no network has, naming the argument."""
    if counts["frames"] not in FRAMES:
        raise ValueError(f"frames must be one of {', '.join(map(str, FRAMES))}, got {counts['frames']!r}")
    check_counts({"in_chans": 3, **counts}, ["mix_dim", "mix_depth"])
    for key, pair in lengths.items():
        check_reach(pair, key, "frames" if key == "duration" else "pixels")


def config_from_state_dict(state: Mapping[str, Tensor]) -> dict:
    """Constructor arguments of the VHeatVideoNet that a state dict belongs to, read from its keys and shapes.

    What leaves no trace in the weights (`reach`, `mix_reach`, `duration`, `checkpointing`) keeps its default.

    Raises:
        ValueError: the keys are not those of a VHeatVideoNet.
    """
    image = {key.removeprefix(IMAGE): value for key, value in state.items() if key.startswith(IMAGE)}
    place = state.get("mixer.place")
    if place is None or not image:
        raise ValueError("these are no VHeatVideoNet weights: expected keys image.* and mixer.place")
    config = vheatunet_arch.config_from_state_dict(image)
    del config["level_map"]
    depth = len({key.split(".")[2] for key in state if key.startswith("mixer.blocks.")})
    return {**config, "frames": place.shape[0], "mix_dim": place.shape[1], "mix_depth": depth}


def gray_from_color(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Refuses: a gray video network starts from the weights of a gray image network.

    Raises:
        ValueError: always.
    """
    raise ValueError("a gray video network starts from the weights of a gray VHeatUNet, not from a color video network")
