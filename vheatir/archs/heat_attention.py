"""Heat conduction in the gated blocks of `VHeatUNet`: channel attention, and the forms of it that were compared."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vheatir.backbone.layers.common import to_channels_first, to_channels_last
from vheatir.backbone.layers.embedding import diffusivities_of_reach, init_diffusivity_reach, resize_embedding
from vheatir.backbone.layers.freezing import KeptForms, depends_on_parameters_alone
from vheatir.backbone.layers.packed import Linear
from vheatir.kernels.dct import decay_map
from vheatir.kernels.diffusion.ops import diffuse
from vheatir.kernels.ops import PreparedDecay, heat_conduction, prepare_decay
from vheatir.kernels.plain import are_plain, full_precision

GRID = 8  # pixels: the side of a JPEG coder's blocks
_MOST_KEPT_BYTES = 64 << 20  # a decay above this is made again for each pass: there memory is scarcer than time
_EMBEDDING = 16  # side of the table of a diffusivity for each frequency
_LEAST_PART = 4  # channels of which one is conducted in "quarter"
_MOST_SCALED = 2.0  # a diffusivity computed from features lies within exp(+-this) of the learned one


def _log_k(reach: tuple[float, float], channels: int) -> nn.Parameter:
    return nn.Parameter(torch.tensor(np.log(diffusivities_of_reach(reach, channels)).tolist()))


class _Conduction(KeptForms):
    """Heat conduction of (B, H, W, C) maps by a decay that is made of parameters."""

    _most_kept = 2  # sizes: a whole image, or tiles and those at its rim
    log_k: nn.Parameter | None

    def _sources(self) -> list[Tensor]:
        """What the decay is made of."""
        return [self._given_log_k()]

    def _depends_on_sources_alone(self) -> bool:
        """Whether nothing beside `_sources` changes the decay."""
        return True

    def _given_log_k(self) -> nn.Parameter:
        assert self.log_k is not None, "the average over the whole map conducts nothing"
        return self.log_k

    def decay(self, height: int, width: int) -> Tensor:
        """exp(-k (w_h^2 + w_w^2)) of shape (H, W, C), in float32 or float64."""
        log_k = self._given_log_k()
        with full_precision(log_k):  # errors of k are amplified by the exponential
            dtype = torch.promote_types(log_k.dtype, torch.float32)
            return decay_map(log_k.to(dtype).exp().expand(height, width, -1))

    def diffusivity(self) -> Tensor | None:
        """(C,) in squared pixels, where each channel has one and the decay is exp(-k w^2); else None."""
        return None

    def conduct(self, x: Tensor) -> Tensor:
        """Heat of (B, H, W, C), of the same shape and type."""
        size = x.shape[1:3]
        sources = self._sources()
        if x.is_cpu and are_plain(x, *sources) and (k := self.diffusivity()) is not None:
            return diffuse(x, k)  # no decay map is made or read: a fifth faster; elsewhere the decay has faster kernels
        if self.may_keep(*sources, compared=True) and self._depends_on_sources_alone():
            return heat_conduction(x, self.keep(tuple(size), sources, lambda: prepare_decay(self.decay(*size))))
        return heat_conduction(x, self.decay(*size))

    def _fits(self, form: PreparedDecay) -> bool:
        return form.nbytes() <= _MOST_KEPT_BYTES


class HeatAttention(_Conduction):
    """Channel attention whose average is a heat kernel of learned reach: x * linear(heat(x)).

    Maps (B, H, W, C) to the same shape. Each channel has one diffusivity k > 0 in squared pixels of this feature map,
    so it averages over about sqrt(2 k) pixels; the starting values are log-spaced over the channels. With an infinite
    reach this is the average over the whole map; with a finite one a training crop and a whole image have the same
    statistics.

    Args:
        dim: channels C.
        reach: blur lengths in pixels between which the channels start; None takes the average over the whole map.

    Source: simplified channel attention (NAFNet, arXiv 2204.04676) with the operator of vHeat (arXiv 2405.16555).
    """

    def __init__(self, dim: int, reach: tuple[float, float] | None):
        super().__init__()
        self.linear = Linear(dim, dim)
        self.log_k = None if reach is None else _log_k(reach, dim)

    def diffusivity(self) -> Tensor | None:
        if self.log_k is None:
            return None
        with full_precision(self.log_k):
            return self.log_k.to(torch.promote_types(self.log_k.dtype, torch.float32)).exp()

    def average(self, x: Tensor) -> Tensor:
        """What the linear layer sees: (B, H, W, C), or (B, 1, 1, C) for the average over the whole map."""
        return x.mean((1, 2), keepdim=True) if self.log_k is None else self.conduct(x)

    def times(self, x: Tensor, gain: Tensor) -> Tensor:
        """The maps times what the linear layer made of their average."""
        return x * gain

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to the same shape and dtype."""
        return self.times(x, self.linear(self.average(x)))


class QuarterAttention(HeatAttention):
    """Heat attention that conducts and sees the first quarter of the channels, and multiplies all of them."""

    def __init__(self, dim: int, reach: tuple[float, float]):
        super().__init__(dim, None)
        self.part = max(1, dim // _LEAST_PART)
        self.linear = Linear(self.part, dim)
        self.log_k = _log_k(reach, self.part)

    def average(self, x: Tensor) -> Tensor:
        """(B, H, W, C / 4)."""
        return self.conduct(x[..., : self.part])


class PooledAttention(HeatAttention):
    """Heat attention on maps averaged over 2 x 2 pixels; each of those gets the same factor."""

    def __init__(self, dim: int, reach: tuple[float, float]):
        super().__init__(dim, None)
        self.pooled_log_k = _log_k((reach[0] / 2, reach[1] / 2), dim)

    def _sources(self) -> list[Tensor]:
        return [self.pooled_log_k]

    def diffusivity(self) -> Tensor | None:
        with full_precision(self.pooled_log_k):
            return self.pooled_log_k.to(torch.promote_types(self.pooled_log_k.dtype, torch.float32)).exp()

    def decay(self, height: int, width: int) -> Tensor:
        """As in `HeatAttention`, for the pooled map."""
        with full_precision(self.pooled_log_k):
            dtype = torch.promote_types(self.pooled_log_k.dtype, torch.float32)
            return decay_map(self.pooled_log_k.to(dtype).exp().expand(height, width, -1))

    def average(self, x: Tensor) -> Tensor:
        """(B, H / 2, W / 2, C), rounded up."""
        pooled = F.avg_pool2d(to_channels_first(x), 2, ceil_mode=True, count_include_pad=False)
        return self.conduct(to_channels_last(pooled))

    def times(self, x: Tensor, gain: Tensor) -> Tensor:
        return x * to_channels_last(F.interpolate(to_channels_first(gain), size=x.shape[1:3], mode="nearest"))


class FrequencyAttention(HeatAttention):
    """Heat attention with a diffusivity for each frequency: k = ReLU(linear(embedding)), as vHeat has it.

    The table of 16 x 16 frequencies is resized to the map. Source: arXiv 2405.16555.
    """

    def __init__(self, dim: int, reach: tuple[float, float]):
        super().__init__(dim, None)
        self.embedding = nn.Parameter(nn.init.trunc_normal_(torch.empty(_EMBEDDING, _EMBEDDING, dim), std=0.02))
        self.to_k = nn.Linear(dim, dim)
        nn.init.trunc_normal_(self.to_k.weight, std=0.02)
        init_diffusivity_reach(self.to_k, reach)

    def _sources(self) -> list[Tensor]:
        return [self.embedding, *self.to_k.parameters()]

    def _depends_on_sources_alone(self) -> bool:
        return depends_on_parameters_alone(self.to_k)

    def decay(self, height: int, width: int) -> Tensor:
        """exp(-k (w_h^2 + w_w^2)), k of each frequency and channel."""
        with full_precision(self.embedding):
            k = F.relu(self.to_k(resize_embedding(self.embedding, (height, width), "exact")))
            return decay_map(k.to(torch.promote_types(k.dtype, torch.float32)))

    def average(self, x: Tensor) -> Tensor:
        return self.conduct(x)


class AdaptiveAttention(HeatAttention):
    """Heat attention whose diffusivities depend on the image: k of a channel times exp(2 tanh(linear(mean))).

    The mean is that of the whole map, so a tile may be conducted otherwise than the image it is cut from.
    """

    def __init__(self, dim: int, reach: tuple[float, float]):
        super().__init__(dim, reach)
        self.to_scale = nn.Linear(dim, dim)
        nn.init.zeros_(self.to_scale.weight)
        nn.init.zeros_(self.to_scale.bias)

    def average(self, x: Tensor) -> Tensor:
        """(B, H, W, C)."""
        batch, height, width, channels = x.shape
        with full_precision(x):
            learned = self._given_log_k()
            mean = x.mean((1, 2), dtype=torch.promote_types(x.dtype, torch.float32)).to(learned.dtype)
            log_k = learned + _MOST_SCALED * self.to_scale(mean).tanh()
            decay = decay_map(log_k.exp().reshape(batch * channels).expand(height, width, -1))
        # The operator has one decay for all images: they stand beside each other as channels.
        y = heat_conduction(x.permute(1, 2, 0, 3).reshape(1, height, width, batch * channels), decay)
        return y.reshape(height, width, batch, channels).permute(2, 0, 1, 3).contiguous()


class GridAttention(HeatAttention):
    """Heat attention in the windows of a JPEG coder's blocks, with a diffusivity for each of their frequencies.

    Windows begin at the top left pixel, as the blocks of a file do; sides must be multiples of the window.

    Args:
        dim: channels C.
        reach: blur lengths in pixels between which the channels start.
        window: side of a block in pixels of this map: 8 at full resolution.
    """

    def __init__(self, dim: int, reach: tuple[float, float], window: int):
        super().__init__(dim, None)
        self.window = window
        start = torch.tensor(np.log(diffusivities_of_reach(reach, dim)).tolist())
        self.grid_log_k = nn.Parameter(start.expand(window, window, -1).clone())

    def _sources(self) -> list[Tensor]:
        return [self.grid_log_k]

    def decay(self, height: int, width: int) -> Tensor:
        """exp(-k (w_h^2 + w_w^2)), k of each frequency and channel."""
        with full_precision(self.grid_log_k):
            dtype = torch.promote_types(self.grid_log_k.dtype, torch.float32)
            return decay_map(self.grid_log_k.to(dtype).exp())

    def average(self, x: Tensor) -> Tensor:
        """(B, H, W, C)."""
        batch, height, width, channels = x.shape
        side = self.window
        rows = height // side
        columns = width // side
        windows = x.reshape(batch, rows, side, columns, side, channels).transpose(2, 3)
        y = self.conduct(windows.reshape(batch * rows * columns, side, side, channels))
        y = y.reshape(batch, rows, columns, side, side, channels).transpose(2, 3)
        return y.reshape(batch, height, width, channels)


class GateHeat(_Conduction):
    """Heat inside the gate, not attention: one half is conducted before it is multiplied by the other.

    The decay is 1 + share (exp(-k w^2) - 1) with a learned share for each channel that starts at zero; a negative one
    sharpens.

    Args:
        dim: channels C of the half.
        reach: blur lengths in pixels between which the channels start.
    """

    def __init__(self, dim: int, reach: tuple[float, float]):
        super().__init__()
        self.log_k = _log_k(reach, dim)
        self.share = nn.Parameter(torch.zeros(dim))

    def _sources(self) -> list[Tensor]:
        return [self._given_log_k(), self.share]

    def decay(self, height: int, width: int) -> Tensor:
        """1 + share (exp(-k (w_h^2 + w_w^2)) - 1) of shape (H, W, C)."""
        heat = super().decay(height, width)
        return 1 + self.share.to(heat.dtype) * (heat - 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to the same shape and type."""
        return self.conduct(x)


_FORMS = {
    "heat": HeatAttention,
    "quarter": QuarterAttention,
    "pooled": PooledAttention,
    "frequency": FrequencyAttention,
    "adaptive": AdaptiveAttention,
    "gate": GateHeat,
}
ATTENTION = (*_FORMS, "grid", "mean", "none")


def build_attention(name: str, dim: int, reach: tuple[float, float], window: int) -> HeatAttention | GateHeat | None:
    """The attention of that name (one of `ATTENTION`); None for "none".

    Args:
        name: one of `ATTENTION`.
        dim: channels.
        reach: blur lengths in pixels between which the channels start.
        window: side of a JPEG coder's block in pixels of this map, for "grid".
    """
    if name == "none":
        return None
    if name == "mean":
        return HeatAttention(dim, None)
    return GridAttention(dim, reach, window) if name == "grid" else _FORMS[name](dim, reach)


_TRACES = {
    "pooled_log_k": "pooled",
    "embedding": "frequency",
    "to_scale.weight": "adaptive",
    "grid_log_k": "grid",
    "share": "gate",
}


def attention_of_state(state: Mapping[str, Tensor], prefixes: Sequence[str]) -> str:
    """Name of the attention of blocks whose keys begin with one of `prefixes`; "heat" where there is no such block."""
    for prefix in (f"{prefix}attention." for prefix in prefixes):
        for key, name in _TRACES.items():
            if prefix + key in state:
                return name
        linear = state.get(f"{prefix}linear.weight")
        if linear is not None and f"{prefix}log_k" in state:
            return "heat" if linear.shape[0] == linear.shape[1] else "quarter"
        if linear is not None:
            return "mean"
    return "none" if any(f"{prefix}project.weight" in state for prefix in prefixes) else "heat"
