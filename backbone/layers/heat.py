"""The heat layer and block on channels-last maps, shared by the restoration network and the backbones."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _global_forward_hooks
from torch.utils.checkpoint import checkpoint

from vheatir.backbone.layers.common import DropPath
from vheatir.backbone.layers.embedding import EmbeddingAt, init_diffusivity_reach
from vheatir.backbone.layers.freezing import KeptForms, depends_on_parameters_alone
from vheatir.backbone.layers.mlp import Mlp
from vheatir.backbone.layers.packed import ChannelsLastConv2d, Linear
from vheatir.kernels.cpu.fused_norms import add_norm, norm_add, norm_gate
from vheatir.kernels.dct import decay_map
from vheatir.kernels.ops import PreparedDecay, heat_conduction, prepare_decay
from vheatir.kernels.plain import are_plain, full_precision

_NARROW = (torch.bfloat16, torch.float16)
_MOST_KEPT_BYTES = 64 << 20  # a decay above this is made again for each call: there memory is scarcer than time


def _size(decay: Tensor) -> str:
    return f"{decay.shape[0]}x{decay.shape[1]}"


class HeatLayer(KeptForms):
    """Depthwise conv, linear, heat conduction, norm, SiLU gate, linear.

    Maps (B, H, W, C) to the same shape. Passes in eval mode without gradients keep the prepared decay of each
    resolution: in a frozen network (`vheatir.backbone.freeze`), and on the CPU as long as the weights have the same
    values.

    Args:
        dim: channels C.
        gate: multiply by SiLU of a second branch of the first linear.
        dwconv: start with the depthwise 3x3 convolution.
        learned_k: diffusivity k = ReLU(linear(embedding)) per frequency and channel; otherwise the constant `fixed_k`.
        fixed_k: diffusivity in squared pixels where it is not learned.
        reach: shortest and longest blur length in pixels, between which the starting diffusivities are log-spaced
            over the channels; None keeps the published start, which hardly conducts.

    Raises:
        ValueError: `reach` is not two lengths that rise from above 0.

    Source: HCO of vHeat, arXiv 2405.16555.
    """

    _most_kept = 2  # resolutions: a whole image and the tiles at its rim
    _came_folded = False  # the decay was loaded, and so is not that of the diffusivity from before

    def __init__(
        self,
        dim: int,
        *,
        gate: bool = True,
        dwconv: bool = True,
        learned_k: bool = True,
        fixed_k: float = 1.0,
        reach: tuple[float, float] | None = None,
    ):
        super().__init__()
        self.dim = dim
        self.gate = gate
        self.learned_k = learned_k
        self.fixed_k = fixed_k
        self.reach = reach
        self.dwconv = ChannelsLastConv2d(dim, dim, 3, padding=1, groups=dim) if dwconv else None
        self.linear = Linear(dim, 2 * dim if gate else dim)
        self.to_k = nn.Sequential(nn.Linear(dim, dim), nn.ReLU()) if learned_k else None
        self.out_norm = nn.LayerNorm(dim)
        self.out_linear = Linear(dim, dim)
        self.k_exp: nn.Parameter | None = None
        self._unfolded: nn.Module | None = None
        self.init_reach()

    def init_reach(self) -> None:
        """Apply `reach` to the starting diffusivities; networks that initialize their layers call it again after."""
        if self.reach is not None and self.to_k is not None:
            linear = next(self.to_k.children())
            assert isinstance(linear, nn.Linear)
            init_diffusivity_reach(linear, self.reach)

    def diffusivity(self, embedding: Tensor) -> Tensor:
        """k >= 0 of shape (H, W, C), in squared pixels, from a frequency embedding of that shape."""
        if self.to_k is None:
            return torch.full_like(embedding[..., :1], self.fixed_k)
        # Under autocast k would keep 8 bits only, and errors of k are amplified by the exponential. An embedding that
        # another layer made there has 16 bits, which no product here takes beside wider weights. Quantized weights are
        # integers or no parameters; their products take float32.
        dtypes = [one.dtype for one in self.to_k.parameters() if one.is_floating_point()]
        dtype = dtypes[0] if dtypes else torch.float32
        with full_precision(embedding):
            return self.to_k(embedding if embedding.dtype == dtype else embedding.to(dtype))

    def _decay(self, height: int, width: int, embedding: Tensor | EmbeddingAt | None) -> Tensor | PreparedDecay:
        if self.k_exp is not None:
            if self.k_exp.shape[:2] != (height, width):
                raise ValueError(
                    f"this layer is folded for maps of {_size(self.k_exp)}, got {height}x{width}; unfold it first"
                )
            sources: list[Tensor] = [self.k_exp]
        elif embedding is None:
            raise self._without_embedding()
        else:
            self._check_embedding(embedding, height, width)
            sources = [embedding.source if isinstance(embedding, EmbeddingAt) else embedding]
        sources += list(self.to_k.parameters()) if self.to_k is not None else []  # torch 2.9 compiles no generator here
        # A folded decay is as large as what is made of it: comparing would take as long.
        may_keep = self.may_keep(*sources, compared=self.k_exp is None)
        may_keep = may_keep and sources[0].ndim == 3  # decays of each image are not prepared
        if not may_keep or not (self.to_k is None or depends_on_parameters_alone(self.to_k)):
            return self._fresh_decay(embedding)
        key = height, width, getattr(embedding, "mode", None), None if self.learned_k else float(self.fixed_k)
        return self.keep(key, sources, lambda: prepare_decay(self._fresh_decay(embedding)))

    def _check_maps(self, x: Tensor) -> None:
        if x.ndim == 4 and x.shape[3] == self.dim:
            return
        text = f"a heat layer of {self.dim} channels expects channels-last maps (B, H, W, {self.dim}), "
        text += f"got {tuple(x.shape)}"
        if x.ndim == 4 and x.shape[1] == self.dim:
            text += "; bring (B, C, H, W) to that order by x.permute(0, 2, 3, 1)"
        raise ValueError(text)

    def _check_embedding(self, embedding: Tensor | EmbeddingAt, height: int, width: int) -> None:
        table = embedding.source if isinstance(embedding, EmbeddingAt) else embedding
        if table.ndim < 3 or (self.learned_k and table.shape[-1] != self.dim):
            raise ValueError(f"a frequency embedding here is (H, W, {self.dim}), got {tuple(table.shape)}")
        if torch.compiler.is_exporting():  # an exporter with unknown sides must not ask
            return
        size = embedding.size if isinstance(embedding, EmbeddingAt) else table.shape[-3:-1]
        if tuple(size) != (height, width):
            raise ValueError(
                f"the frequency embedding is for maps of {size[0]}x{size[1]}, got maps of {height}x{width}; "
                'EmbeddingAt(embedding, (height, width), "exact") brings it to their size'
            )

    def _without_embedding(self) -> ValueError:
        return ValueError(
            f"a heat layer that is not folded needs a frequency embedding: give it a parameter (H, W, {self.dim}) "
            f"beside the maps (B, H, W, {self.dim})"
        )

    def _fresh_decay(self, embedding: Tensor | EmbeddingAt | None) -> Tensor:
        if self.k_exp is not None:
            return self.k_exp
        table = embedding.tensor() if isinstance(embedding, EmbeddingAt) else embedding
        if table is None:
            raise self._without_embedding()
        k = self.diffusivity(table)
        return decay_map(k.float() if k.dtype in _NARROW else k)

    def forward(self, x: Tensor, embedding: Tensor | EmbeddingAt | None = None) -> Tensor:
        """Conduct (B, H, W, C) maps.

        Args:
            x: the maps.
            embedding: (H, W, C), or one for each image, (B, H, W, C); or an `EmbeddingAt`; None where folded.

        Raises:
            ValueError: the maps or the embedding have another shape, the layer is folded for another size, or has
                no embedding.
        """
        self._check_maps(x)
        decay = self._decay(x.shape[1], x.shape[2], embedding)
        if self.dwconv is not None:
            x = self.dwconv(x)
        x = self.linear(x)
        x, gate = x.chunk(2, dim=-1) if self.gate else (x, None)
        if isinstance(decay, Tensor) and decay.dtype != x.dtype and x.dtype not in _NARROW:
            decay = decay.to(x.dtype)
        x = heat_conduction(x, decay)
        x = self.out_norm(x) if gate is None else norm_gate(x, gate, self.out_norm)
        return self.out_linear(x)

    def fold(self, embedding: Tensor | EmbeddingAt) -> None:
        """Replace the learned diffusivity by its decay `k_exp` for one map size: the published form for inference.

        Raises:
            ValueError: folded already, or the embedding is one for each image.
        """
        if self.k_exp is not None:
            raise ValueError(f"this layer is already folded, for maps of {_size(self.k_exp)}")
        with torch.no_grad():
            decay = self._fresh_decay(embedding)
        if decay.ndim != 3:
            raise ValueError(
                f"a layer is folded for one frequency embedding (H, W, {self.dim}), which serves all images, got one "
                f"for each of {len(decay)}"
            )
        self.k_exp = nn.Parameter(decay.detach().clone(), requires_grad=False)
        object.__setattr__(self, "_unfolded", self.to_k)  # not a submodule: its weights leave the state dict
        self.to_k = None
        self.drop_kept()

    def check_unfold(self) -> None:
        """Refuse to unfold where the diffusivity is not known that belongs to the decay.

        Raises:
            ValueError: not folded, or the decay was loaded.
        """
        if self.k_exp is None:
            raise ValueError("this layer is not folded")
        if self.learned_k and (self._unfolded is None or self._came_folded):
            raise ValueError(
                "the weights of this layer were loaded in folded form: load unfolded weights to get its diffusivity "
                "back"
            )

    def unfold(self) -> None:
        """Undo `fold`.

        Raises:
            ValueError: as `check_unfold`.
        """
        self.check_unfold()
        self.unfold_to_load()

    def unfold_to_load(self) -> None:
        """Undo `fold` where unfolded weights are loaded next: the diffusivity is that of before, whatever it was."""
        restored = self._unfolded
        # Where the layer is now, in its type: a decay is float32 also in a layer of 16 bits.
        self.to_k = restored.to(self.out_norm.weight) if restored is not None else None
        object.__setattr__(self, "_unfolded", None)
        self.k_exp = None
        self._came_folded = False
        self.drop_kept()

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs) -> None:
        loaded = state_dict.get(f"{prefix}k_exp")
        if self.k_exp is not None and loaded is not None and not _same_numbers(self.k_exp, loaded):
            self._came_folded = True
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _fits(self, form: PreparedDecay) -> bool:
        return form.nbytes() <= _MOST_KEPT_BYTES


def _same_numbers(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.is_meta or other.is_meta:
        return False
    return torch.equal(one.detach().cpu(), other.detach().to("cpu", one.dtype))


def _own(y: Tensor, given: Tensor, *branch: nn.Module) -> Tensor:
    """The result of a branch, to be overwritten; a copy of it where a forward hook in there may have kept it.

    And where it is what the branch was given, as from an `nn.Identity` in a layer's place.
    """
    if torch.is_grad_enabled():  # then nothing is overwritten
        return y
    hooked = _global_forward_hooks or any(part._forward_hooks for module in branch for part in module.modules())
    return y.clone() if hooked or _share_memory(y, given) else y


def _share_memory(one: Tensor, other: Tensor) -> bool:
    if one is other or not are_plain(one, other):
        return one is other
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def _sum(x: Tensor, fresh: Tensor) -> Tensor:
    """x + fresh; without gradients it overwrites `fresh`, a branch's result that nobody else holds."""
    if torch.is_grad_enabled() or fresh.dtype != x.dtype:
        return x + fresh
    return fresh.add_(x)


def _factor(dim: int, start: float | None) -> nn.Parameter | None:
    return None if start is None else nn.Parameter(torch.full((dim,), float(start)))


class HeatBlock(nn.Module):
    """Residual block: heat layer, then MLP, each with norm, optional layer scale and stochastic depth.

    Maps (B, H, W, C) to the same shape.

    Args:
        dim: channels C.
        mlp_ratio: hidden over outer channels; 0 leaves the MLP out.
        post_norm: normalize each branch's output instead of its input.
        layer_scale: starting value of the learned per-channel factor of each branch; None for no factor.
        drop_path: probability of dropping a branch in training.
        mlp_dwconv: depthwise 3x3 inside the MLP.
        checkpointing: recompute activations in the backward instead of storing them.
        **layer: further arguments of `HeatLayer` (gate, dwconv, learned_k, fixed_k, reach).

    Source: vHeat, arXiv 2405.16555.
    """

    def __init__(
        self,
        dim: int,
        *,
        mlp_ratio: float = 4.0,
        post_norm: bool = True,
        layer_scale: float | None = None,
        drop_path: float = 0.0,
        mlp_dwconv: bool = False,
        checkpointing: bool = False,
        **layer: Any,
    ):
        super().__init__()
        self.post_norm = post_norm
        self.checkpointing = checkpointing
        self.norm1 = nn.LayerNorm(dim)
        self.op = HeatLayer(dim, **layer)
        self.drop_path = DropPath(drop_path)
        # rounded: a ratio read back from weights is a quotient, whose product with dim may fall just short
        self.mlp = Mlp(dim, max(1, round(dim * mlp_ratio)), mlp_dwconv) if mlp_ratio > 0 else None
        self.norm2 = nn.LayerNorm(dim) if mlp_ratio > 0 else None
        self.gamma1 = _factor(dim, layer_scale)
        self.gamma2 = _factor(dim, layer_scale) if mlp_ratio > 0 else None

    def _scaled(self, y: Tensor, gamma: Tensor | None) -> Tensor:
        return self.drop_path(y if gamma is None else y * gamma)

    def _post_norm(self, x: Tensor, y: Tensor, norm: nn.LayerNorm, gamma: Tensor | None) -> Tensor:
        if self.training and self.drop_path.rate:
            return x + self._scaled(norm(y), gamma)
        return norm_add(y, x, norm, gamma)

    def _forward(self, x: Tensor, embedding: Tensor | EmbeddingAt | None) -> Tensor:
        if self.post_norm:
            x = self._post_norm(x, _own(self.op(x, embedding), x, self.op), self.norm1, self.gamma1)
            if self.mlp is None or self.norm2 is None:
                return x
            return self._post_norm(x, _own(self.mlp(x), x, self.mlp), self.norm2, self.gamma2)
        y = _own(self._scaled(self.op(self.norm1(x), embedding), self.gamma1), x, self.op, self.drop_path)
        if self.mlp is None or self.norm2 is None:
            return _sum(x, y)
        x, y = add_norm(x, y, self.norm2)
        return _sum(x, _own(self._scaled(self.mlp(y), self.gamma2), y, self.mlp, self.drop_path))

    def forward(self, x: Tensor, embedding: Tensor | EmbeddingAt | None = None) -> Tensor:
        """Transform (B, H, W, C) maps; `embedding` as in `HeatLayer.forward`."""
        if self.checkpointing and torch.is_grad_enabled() and self.training:
            return checkpoint(self._forward, x, embedding, use_reentrant=False)
        return self._forward(x, embedding)
