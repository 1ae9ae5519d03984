"""vHeat classifiers: four stages of heat blocks, registered with timm."""

from collections.abc import Sequence
from functools import partial

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from vheatir.backbone.layers.common import drop_path_rates, init_linear, to_channels_first, to_channels_last
from vheatir.backbone.layers.embedding import check_resize_mode
from vheatir.backbone.layers.heat import HeatBlock
from vheatir.backbone.layers.packed import ChannelsLastConv2d
from vheatir.backbone.models.checkpoint import checkpoint_filter_fn
from vheatir.backbone.models.heat_pyramid import HeatPyramid
from vheatir.backbone.models.pyramid import GlobalMean, built_on, default_cfg, image_size, widths

SOURCE = "https://github.com/MzeroMiko/vHeat"

SIZES = {
    "tiny": {"dims": 96, "depths": (2, 2, 6, 2), "post_norm": False, "layer_scale": None, "drop_path_rate": 0.1},
    "small": {"dims": 96, "depths": (2, 2, 18, 2), "post_norm": True, "layer_scale": 1e-5, "drop_path_rate": 0.3},
    "base": {"dims": 128, "depths": (2, 2, 18, 2), "post_norm": True, "layer_scale": 1e-5, "drop_path_rate": 0.5},
}


class Stem(nn.Module):
    """Two convolutions of stride 2, each with a norm, GELU between; (B, H, W, 3) to (B, H/4, W/4, C)."""

    def __init__(self, in_chans: int, dim: int):
        super().__init__()
        self.conv1 = ChannelsLastConv2d(in_chans, dim // 2, 3, stride=2, padding=1)
        # The norm is the second child in the published files, which change the layout around it.
        self.norm1 = nn.Sequential(nn.Identity(), nn.LayerNorm(dim // 2, eps=1e-6))
        self.conv2 = ChannelsLastConv2d(dim // 2, dim, 3, stride=2, padding=1)
        self.norm2 = nn.Sequential(nn.Identity(), nn.LayerNorm(dim, eps=1e-6))
        self.act = nn.GELU()

    def forward(self, maps: Tensor) -> Tensor:
        return self.norm2(self.conv2(self.act(self.norm1(self.conv1(maps)))))


class VHeat(HeatPyramid):
    """vHeat. Images (B, in_chans, H, W) of any size, normalized, to class scores (B, num_classes).

    Where a map differs from its frequency embedding, the embedding is resized. `fold` freezes the decay for the
    embeddings' sizes: the published form for inference, with fewer parameters.

    Args:
        img_size: image side, or height and width, that the frequency embeddings are made for.
        dims: channels of the four stages, or of the first, doubling.
        depths: heat blocks of each stage.
        mlp_ratio: hidden over outer channels of each block's MLP.
        post_norm: normalize each branch's output instead of its input.
        layer_scale: starting value of the branches' factors; None for no factors.
        drop_path_rate: stochastic depth of the last block; linear from 0 at the first.
        drop_rate: dropout before the last linear.
        global_pool: "avg", or "" for no pooling.
        resize: how frequency embeddings are brought to other map sizes, "exact" or "published".
        reach: see `HeatLayer`; None for the published start.
        in_chans: channels of the images.
        num_classes: classes of the scores.
        patch_size: stride of the stem in pixels.

    Source: arXiv 2405.16555; keys and values are those of the published checkpoints. Departs from the published code
        where it fails: any image size, batch and floating type, gradients after inference mode.
    """

    _stage_name = "layers"
    first_conv = "patch_embed.conv1"
    head_name = "classifier.3"

    def __init__(
        self,
        img_size: int | Sequence[int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        dims: int | Sequence[int] = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        patch_size: int = 4,
        mlp_ratio: float = 4.0,
        post_norm: bool = True,
        layer_scale: float | None = None,
        drop_path_rate: float = 0.2,
        drop_rate: float = 0.0,
        global_pool: str = "avg",
        resize: str = "exact",
        reach: tuple[float, float] | None = None,
    ):
        super().__init__()
        check_resize_mode(resize)
        if patch_size != 4:
            raise ValueError(f"the stem of vHeat has patches of 4 pixels, got patch_size {patch_size}")
        self.dims = widths(dims)
        self.depths = tuple(depths)
        self.resize = resize
        self.in_chans = in_chans
        if len(self.dims) != len(self.depths):
            raise ValueError(f"dims and depths need one entry for each stage, got {self.dims} and {self.depths}")
        self.img_size = image_size(img_size)
        self.drop_rate = drop_rate
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = self.dims[-1]
        self.patch_embed = Stem(in_chans, self.dims[0])
        self.make_embeddings(img_size)
        block = {"mlp_ratio": mlp_ratio, "post_norm": post_norm, "layer_scale": layer_scale, "reach": reach}
        rates = iter(drop_path_rates(drop_path_rate, sum(self.depths)))
        self.layers = nn.ModuleList()
        for index, (dim, depth) in enumerate(zip(self.dims, self.depths, strict=True)):
            blocks = [HeatBlock(dim, drop_path=next(rates), **block) for _ in range(depth)]
            self.layers.append(nn.ModuleList([*blocks, self._make_transition(index)]))
        norm = nn.LayerNorm(self.num_features)
        score = nn.Identity()
        self.classifier = nn.Sequential(norm, GlobalMean(), nn.Dropout(drop_rate), score)
        self.reset_classifier(num_classes, global_pool)
        self._describe()
        self._init_weights()

    def _make_transition(self, index: int) -> nn.Module:
        if index + 1 == len(self.dims):
            return nn.Identity()
        conv = ChannelsLastConv2d(self.dims[index], self.dims[index + 1], 3, stride=2, padding=1, bias=False)
        return nn.Sequential(conv, nn.LayerNorm(self.dims[index + 1]))

    def _init_weights(self) -> None:
        self.apply(init_linear)
        for layer in self.heat_layers():
            layer.init_reach()

    def blocks_of(self, index: int) -> list[nn.Module]:
        return list(self.layers[index].children())[:-1]

    def stem(self, maps: Tensor) -> Tensor:
        return self.patch_embed(maps)

    def stage(self, index: int, maps: Tensor) -> Tensor:
        return self.run_blocks(self.blocks_of(index), maps, self.embedding_at(index, maps))

    def transition(self, index: int, maps: Tensor) -> Tensor:
        return list(self.layers[index].children())[-1](maps)

    def final_norm(self, maps: Tensor) -> Tensor:
        return self.classifier[0](maps)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        norm, pool, drop, score = self.classifier
        x = drop(pool(norm(to_channels_last(x))))
        if not pre_logits:
            x = score(x)
        return x if x.ndim == 2 else to_channels_first(x)

    @property
    def pooling(self) -> GlobalMean:
        pooling = self.classifier[1]
        assert isinstance(pooling, GlobalMean)
        return pooling

    def _keep_stages(self, count: int) -> None:
        self.layers = self.layers[:count]
        last = self.layers[-1]
        assert isinstance(last, nn.ModuleList)
        last[-1] = nn.Identity()
        self.keep_embeddings(count)

    def _drop_head(self) -> None:
        self.classifier = nn.Sequential(*(nn.Identity() for _ in range(4)))

    def group_matcher(self, coarse: bool = False) -> dict:
        """Parameter groups for layer-wise learning rates: by stage, or by block; embeddings go with their stage."""
        if coarse:
            return {"stem": r"^patch_embed", "blocks": r"^(?:layers|freq_embed)\.(\d+)"}
        blocks = [(r"^layers\.(\d+)\.(\d+)", None), (r"^freq_embed\.(\d+)", (0,))]
        return {"stem": r"^patch_embed", "blocks": blocks}

    def set_input_size(self, img_size: int | Sequence[int]) -> None:
        """Resize the frequency embeddings to the maps of another image size."""
        self.resize_embeddings(img_size)
        self._record_input_size()


def _cfg() -> dict:
    # The repository that publishes the weights states no license.
    return default_cfg(VHeat, origin_url=SOURCE, paper_ids="arXiv:2405.16555", license=None)


default_cfgs = generate_default_cfgs({f"vheat_{size}.in1k": _cfg() for size in SIZES})


def _build(size: str, pretrained: bool, *, device=None, dtype=None, **kwargs) -> VHeat:
    build = partial(
        build_model_with_cfg,
        VHeat,
        f"vheat_{size}",
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": (0, 1, 2, 3), "feature_cls": VHeat.as_features},
    )
    return built_on(build, {**SIZES[size], **kwargs}, device, dtype)


@register_model
def vheat_tiny(pretrained: bool = False, **kwargs) -> VHeat:
    """vHeat-T: 28.1 million trainable parameters folded, 4.6 GMACs; published top-1 82.2 %."""
    return _build("tiny", pretrained, **kwargs)


@register_model
def vheat_small(pretrained: bool = False, **kwargs) -> VHeat:
    """vHeat-S: 47.7 million trainable parameters folded, 8.5 GMACs; published top-1 83.6 %."""
    return _build("small", pretrained, **kwargs)


@register_model
def vheat_base(pretrained: bool = False, **kwargs) -> VHeat:
    """vHeat-B: 84.4 million trainable parameters folded, 14.9 GMACs; published top-1 83.9 %."""
    return _build("base", pretrained, **kwargs)
