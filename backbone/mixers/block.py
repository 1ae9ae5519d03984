"""The protocol of token mixers, and the residual block that most of them share."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, wraps
from typing import ClassVar, ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._C._functorch import TransformType, get_interpreter_stack
from torch.autograd import forward_ad

from vheatir.backbone.layers.common import DropPath
from vheatir.backbone.layers.mlp import LinearMlp
from vheatir.kernels.dct import may_cache


@dataclass(frozen=True)
class BlockPosition:
    """Where a block stands.

    Attributes:
        stage: index of its stage.
        index: its index in the stage.
        map_size: height and width of the stage's maps at the image size of the network.
        drop_path: probability of dropping a branch in training.
        layer_scale: starting value of the branches' factors; None or 0 for no factors.
        dense: part of a dense-prediction backbone, whose published form differs in places from the classifier's.
        mask_padding: keep the padding of maps out of attention; the published dense backbones do not.
    """

    stage: int = 0
    index: int = 0
    map_size: tuple[int, int] = (56, 56)
    drop_path: float = 0.0
    layer_scale: float | None = 1e-6
    dense: bool = False
    mask_padding: bool = True


Place = BlockPosition  # its former name, which mixers of users may import


class MixerBlock(nn.Module):
    """Base of all mixers' blocks: `Block(dim, place, **arguments)`, channels-last maps to maps of the same shape.

    Attributes:
        per_stage: arguments that a network gives as one value for each stage.
        resizers: last component of a weight's key -> function(tensor, target shape), for files of another size.
        not_decayed: last components of keys without weight decay.
        structural: buffers of published files that hold no weights.
        shares_embedding: whether the stage's frequency embedding comes as a second argument.
    """

    per_stage: ClassVar[tuple[str, ...]] = ()
    resizers: ClassVar[dict[str, Callable[[Tensor, tuple[int, ...]], Tensor]]] = {}
    not_decayed: ClassVar[tuple[str, ...]] = ()
    structural: ClassVar[tuple[str, ...]] = ()
    shares_embedding: ClassVar[bool] = False

    def init_tables(self) -> None:
        """Start values of weights that are neither of a linear layer nor of a convolution."""

    def set_map_size(self, size: tuple[int, int]) -> None:
        """Adapt weights that depend on the size of the maps."""

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs) -> None:
        for key in [key for key in state_dict if key.rpartition(".")[2] in self.structural]:
            del state_dict[key]
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def make_factor(place: BlockPosition, shape: tuple[int, ...]) -> nn.Parameter | None:
    """The learned factor of a branch; None where the network has none."""
    return nn.Parameter(torch.full(shape, float(place.layer_scale))) if place.layer_scale else None


def scaled(branch: Tensor, factor: Tensor | None) -> Tensor:
    """A branch (..., C) times its factor, whose published shapes differ."""
    return branch if factor is None else branch * factor.flatten()


def attend(query: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None = None) -> Tensor:
    """softmax(query keys' / sqrt(d) + bias) values.

    PyTorch's fused form has no tangents, and takes no bias under `vmap` that a gradient goes to; there it is the
    formula.

    Args:
        query: (..., Q, d).
        keys: (..., K, d).
        values: (..., K, d).
        bias: (..., Q, K), of the type of the others.

    Returns:
        (..., Q, d).
    """
    if not _needs_formula(bias):
        return F.scaled_dot_product_attention(query, keys, values, attn_mask=bias)
    logits = query * query.shape[-1] ** -0.5 @ keys.transpose(-1, -2)
    if bias is not None:
        logits = logits + bias
    weights = logits.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
    return weights.to(values.dtype) @ values


def _needs_formula(bias: Tensor | None) -> bool:
    if torch.compiler.is_compiling():
        return False
    if forward_ad._current_level >= 0:
        return True
    stack = get_interpreter_stack() if torch._C._are_functorch_transforms_active() else ()
    kinds = [one.key() for one in stack or ()]
    return TransformType.Jvp in kinds or (bias is not None and TransformType.Vmap in kinds)


class AttentionBlock(MixerBlock):
    """x + factor1 * attn(norm1(x)), then x + factor2 * mlp(norm2(x)).

    Args:
        dim: channels C.
        place: where the block stands.
        attn: the mixer, on channels-last maps.
        eps: of the norms.
        mlp_ratio: hidden over outer channels.
        factors: names of the two factors.
        factor_shape: shape of the factors, C in place of -1.
    """

    def __init__(
        self,
        dim: int,
        place: BlockPosition,
        attn: nn.Module,
        *,
        eps: float = 1e-5,
        mlp_ratio: float = 4.0,
        factors: tuple[str, str] = ("gamma_1", "gamma_2"),
        factor_shape: tuple[int, ...] = (-1,),
    ):
        super().__init__()
        self.place = place
        self._factors = factors
        for name in factors:
            self.register_parameter(name, make_factor(place, tuple(dim if n == -1 else n for n in factor_shape)))
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = attn
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = LinearMlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(place.drop_path)

    def add_branch(self, x: Tensor, branch: Tensor, which: int) -> Tensor:
        """x plus the branch, times its factor, in training with stochastic depth.

        Args:
            x: (B, H, W, C).
            branch: of the same shape.
            which: 0 for the mixer's, 1 for the MLP's.
        """
        return x + self.drop_path(scaled(branch, getattr(self, self._factors[which])))

    def forward(self, x: Tensor) -> Tensor:
        x = self.add_branch(x, self.attn(self.norm1(x)), 0)
        return self.add_branch(x, self.mlp(self.norm2(x)), 1)


_Sizes = ParamSpec("_Sizes")
_Table = TypeVar("_Table", Tensor, Tensor | None)


def cached_table(build: Callable[_Sizes, _Table]) -> Callable[_Sizes, _Table]:
    """Keep the last results of a function of sizes and device that makes an index or a mask.

    Built outside inference mode, so that autograd may save it later; kept where `may_cache`.
    """

    def outside_inference(*args: _Sizes.args, **kwargs: _Sizes.kwargs) -> _Table:
        with torch.inference_mode(False), torch.no_grad():
            return build(*args, **kwargs)

    kept = lru_cache(maxsize=64)(outside_inference)

    @wraps(build)
    def table(*args: _Sizes.args, **kwargs: _Sizes.kwargs) -> _Table:
        if not may_cache():
            return outside_inference(*args, **kwargs)
        return kept(*args, **kwargs)  # pyright: ignore[reportArgumentType] (sizes and devices can be keys)

    return table


def padding_to_multiple(size: int, multiple: int) -> int:
    """How much a side lacks to a multiple."""
    return -size % multiple
