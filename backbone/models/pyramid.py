"""What timm expects of a four-stage backbone, written once for both families."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from numbers import Integral, Real
from typing import Any, TypeVar

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models._features import FeatureInfo, feature_take_indices
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vheatir.backbone.layers.common import init_linear, to_channels_first, to_channels_last
from vheatir.backbone.models.checkpoint import load_checkpoint

_Network = TypeVar("_Network", bound="Pyramid")


def image_size(size: int | Sequence[int]) -> tuple[int, int]:
    """Height and width of a size given as one number, NumPy's too, or as two.

    Raises:
        ValueError: neither, or a side below 1.
    """
    sides: tuple[Any, ...] = ()
    if isinstance(size, Integral):
        sides = (size, size)
    elif isinstance(size, Iterable):
        sides = tuple(size)
    numbers = len(sides) == 2 and all(isinstance(side, Real) for side in sides)
    if not numbers or min(sides) < 1 or any(side % 1 for side in sides):
        raise ValueError(f"an image size must be a whole number of pixels of at least 1, or two of them, got {size!r}")
    return int(sides[0]), int(sides[1])


def map_sizes(size: int | Sequence[int], stages: int = 4) -> list[tuple[int, int]]:
    """Height and width of each stage's map: five convolutions of stride 2, each rounding up."""
    height, width = image_size(size)
    return [(-(-height // 2**exponent), -(-width // 2**exponent)) for exponent in range(2, 2 + stages)]


def widths(dims: int | Sequence[int]) -> tuple[int, ...]:
    """Channels of the four stages; one number doubles from stage to stage."""
    return tuple(dims * 2**stage for stage in range(4)) if isinstance(dims, int) else tuple(dims)


def default_cfg(network: type["Pyramid"], **kwargs) -> dict:
    """A default configuration of timm for ImageNet-1k at 224, with what the two families have in common."""
    return {
        "url": "",
        "custom_load": True,
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": network.first_conv,
        "classifier": network.head_name,
        **kwargs,
    }


def built_on(
    build: Callable[..., _Network], arguments: dict, device: torch.device | str | None, dtype: torch.dtype | None
) -> _Network:
    """What `build` makes of the arguments, made on a device and brought to a type; None leaves them to PyTorch.

    Args:
        build: makes the network of keyword arguments.
        arguments: for it.
        device: where the network is made.
        dtype: of its parameters.

    Raises:
        TypeError: the type is none of floating numbers.
    """
    if dtype is not None and not dtype.is_floating_point:
        raise TypeError(f"dtype must be a floating type, got {dtype}")
    with nullcontext() if device is None else torch.device(device):
        model = build(**arguments)
    return model if dtype is None else model.to(dtype=dtype)


class GlobalMean(nn.Module):
    """Mean of (B, H, W, C) maps over H and W; with `keep` the map as it is."""

    def __init__(self, keep: bool = False):
        super().__init__()
        self.keep = keep

    def forward(self, maps: Tensor) -> Tensor:
        return maps if self.keep else maps.mean((1, 2))


class Pyramid(nn.Module):
    """A stem and stages of blocks, each at half the resolution of the one before.

    Subclasses give `stem`, `stage` and `transition` on channels-last maps, `forward_head`, the attributes `dims`,
    `depths`, `num_classes`, `num_features` and `head_hidden_size`, the last linear under the name `head_name`, and the
    pooling before it in `pooling`. Outputs are (B, C, H, W). In the form that `as_features` makes, the
    forward pass returns the list of the chosen stages' maps; the keys of the weights stay those of the classifier.
    """

    output_fmt = "NCHW"
    first_conv: str
    head_name: str
    fresh: tuple[str, ...] = ()  # how keys begin that a classifier's file lacks
    resizers: dict = {}  # noqa: RUF012 (last component of a key -> function(tensor, target shape), for loading)
    dims: tuple[int, ...]
    depths: tuple[int, ...]
    in_chans: int
    pretrained_cfg: dict[str, Any]  # of timm
    img_size: tuple[int, int]
    num_classes: int
    num_features: int
    head_hidden_size: int
    norm_name: str  # how the keys of the output norms begin, in backbones for dense prediction
    out_indices: tuple[int, ...]  # their stages
    _stage_name: str

    def __init__(self):
        super().__init__()
        self.grad_checkpointing = False
        self._chosen: list[int] | None = None

    def stem(self, maps: Tensor) -> Tensor:
        """(B, H, W, 3) images to the first stage's input."""
        raise NotImplementedError

    def stage(self, index: int, maps: Tensor) -> Tensor:
        """The maps of stage `index` that are its features, from its input."""
        raise NotImplementedError

    def transition(self, index: int, maps: Tensor) -> Tensor:
        """Input of stage `index` + 1, from the features of stage `index`."""
        raise NotImplementedError

    def final_norm(self, maps: Tensor) -> Tensor:
        """The norm between the last stage and the pooling, where the head begins with one."""
        return maps

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Class scores (B, num_classes) from `forward_features`; the head's input with `pre_logits`."""
        raise NotImplementedError

    @property
    def pooling(self) -> GlobalMean:
        """The mean over the map before the last linear."""
        raise NotImplementedError

    def get_classifier(self) -> nn.Module:
        """The last linear, an identity where there are no classes."""
        return self.get_submodule(self.head_name)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Start a new head; 0 classes leave the pooled features, `global_pool` "" the map of features.

        Raises:
            ValueError: unknown pooling.
        """
        if global_pool not in (None, "", "avg"):
            raise ValueError(f"global_pool must be 'avg' or '', got {global_pool!r}")
        if global_pool is not None:
            self.pooling.keep = global_pool == ""
        self.num_classes = num_classes
        head = nn.Linear(self.head_hidden_size, num_classes) if num_classes > 0 else nn.Identity()
        init_linear(head)
        like = self.get_parameter(f"{self.first_conv}.weight")
        self.set_submodule(self.head_name, head.to(like.device, like.dtype))

    def _describe(self) -> None:
        names = [f"{self._stage_name}.{index}" for index in range(len(self.dims))]
        self.feature_info: list[dict] | FeatureInfo = [
            {"num_chs": dim, "reduction": 4 * 2**index, "module": name}
            for index, (dim, name) in enumerate(zip(self.dims, names, strict=True))
        ]

    def run_blocks(self, blocks: Sequence[nn.Module], maps: Tensor, *shared) -> Tensor:
        """One block after the other, recomputed in the backward where checkpointing is on.

        Args:
            blocks: of one stage.
            maps: (B, H, W, C).
            *shared: further arguments of every block.
        """
        for block in blocks:
            if self.grad_checkpointing and self.training and torch.is_grad_enabled():
                maps = checkpoint(block, maps, *shared, use_reentrant=False)
            else:
                maps = block(maps, *shared)
        return maps

    def features(self, image: Tensor, wanted: Sequence[int], stop_early: bool = True) -> tuple[Tensor, list[Tensor]]:
        """Last computed maps and the wanted stages' maps, all channels-last.

        Args:
            image: (B, C, H, W).
            wanted: numbers of stages, from 0 on.
            stop_early: compute nothing behind the last wanted stage.
        """
        if image.ndim != 4 or image.shape[1] != self.in_chans or 0 in image.shape[2:]:
            raise ValueError(f"expected images (B, {self.in_chans}, H, W), got {tuple(image.shape)}")
        maps = self.stem(to_channels_last(image))
        found = []
        last = max(wanted) if stop_early else len(self.depths) - 1
        for index in range(last + 1):
            maps = self.stage(index, maps if index == 0 else self.transition(index - 1, maps))
            if index in wanted:
                found.append(maps)
        return maps, found

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, C, H/32, W/32) maps of the last stage, before the head."""
        maps, _ = self.features(x, [len(self.depths) - 1])
        return to_channels_first(maps)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The chosen stages' maps, and what `forward_features` returns.

        Args:
            x: images.
            indices: stages, counted from the end where negative; a number for the last so many; None for all.
            norm: apply the head's own norm to the last stage's map, where the head has one.
            stop_early: leave out the stages after the last one chosen.
            output_fmt: "NCHW" or "NHWC".
            intermediates_only: return the list alone.
        """
        if output_fmt not in ("NCHW", "NHWC"):
            raise ValueError(f"output_fmt must be NCHW or NHWC, got {output_fmt!r}")
        wanted, _ = feature_take_indices(len(self.depths), indices)
        maps, found = self.features(x, wanted, stop_early)
        if norm and len(self.depths) - 1 in wanted:
            found[-1] = self.final_norm(found[-1])
        if output_fmt == "NCHW":
            found = [to_channels_first(one) for one in found]
        return found if intermediates_only else (to_channels_first(maps), found)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        if self._chosen is not None:
            found = self.forward_intermediates(x, self._chosen, stop_early=True, intermediates_only=True)
            assert isinstance(found, list)
            return found
        return self.forward_head(self.forward_features(x))

    def _keep_stages(self, count: int) -> None:
        raise NotImplementedError

    def _drop_head(self) -> None:
        raise NotImplementedError

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove the stages after the last one chosen, and the head; returns the chosen stages.

        `prune_norm` has nothing to remove: a norm before the pooling belongs to the head.

        Args:
            indices: stages, or how many of the last ones.
            prune_norm: without effect.
            prune_head: remove the head.
        """
        wanted, last = feature_take_indices(len(self.depths), indices)
        if last + 1 < len(self.depths):
            self._keep_stages(last + 1)
            self.dims, self.depths = self.dims[: last + 1], self.depths[: last + 1]
        if prune_head:
            self._drop_head()
        return wanted

    def as_features(self, out_indices: int | Sequence[int] = (0, 1, 2, 3), output_fmt: str = "NCHW") -> "Pyramid":
        """Turn the classifier into an extractor of those stages' maps, in place; what `features_only` does."""
        info = self.feature_info
        if isinstance(info, FeatureInfo):
            raise ValueError("this network is an extractor of features already")
        indices = out_indices if isinstance(out_indices, int) else list(out_indices)
        self._chosen = self.prune_intermediate_layers(indices)
        self.feature_info = FeatureInfo(info, tuple(self._chosen))
        self.num_classes = 0
        return self

    @property
    def global_pool(self) -> str:
        """ "avg", or "" where the map of features is left as it is; timm writes it into a saved configuration."""
        return "" if any(one.keep for one in self.modules() if isinstance(one, GlobalMean)) else "avg"

    def _record_input_size(self) -> None:
        """Bring what timm keeps of the image size, and writes into a saved configuration, up to date."""
        self._model_args = {**getattr(self, "_model_args", {}), "img_size": self.img_size}
        self._traits = {**getattr(self, "_traits", {}), "img_size": self.img_size}
        for name in ("pretrained_cfg", "default_cfg"):
            if (config := getattr(self, name, None)) is not None:
                setattr(self, name, {**config, "input_size": (self.in_chans, *self.img_size)})

    def load_pretrained(self, path: str) -> None:
        """Load a checkpoint file; what timm calls for `pretrained=True`."""
        load_checkpoint(self, path)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute block activations in the backward: less memory, about a third more time."""
        self.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Parameters without weight decay beside the one-dimensional ones."""
        return set()
