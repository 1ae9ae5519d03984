"""The unified architecture: one stem, transitions, norms and head for every token mixer."""

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn

from vheatir.backbone.layers.common import drop_path_rates, init_linear, to_channels_first, to_channels_last
from vheatir.backbone.layers.embedding import check_resize_mode
from vheatir.backbone.layers.packed import ChannelsLastConv2d
from vheatir.backbone.mixers import BlockPosition, MixerBlock, mixer_named
from vheatir.backbone.models.heat_pyramid import HeatPyramid
from vheatir.backbone.models.pyramid import GlobalMean, image_size, map_sizes, widths


def _init_weights(module: nn.Module) -> None:
    """Linear layers and convolutions alike from a normal of std 0.02 cut at two units, biases zero."""
    init_linear(module)
    if isinstance(module, nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class ConvHead(nn.Sequential):
    """Pointwise convolution, batch norm, GELU on (B, H, W, C) maps."""

    def __init__(self, dim: int, width: int):
        super().__init__(nn.Conv2d(dim, width, 1, bias=False), nn.BatchNorm2d(width), nn.GELU())

    def forward(self, maps: Tensor) -> Tensor:
        return to_channels_last(super().forward(to_channels_first(maps)))


class MetaArch(HeatPyramid):
    """Unified network for a token mixer. Images (B, in_chans, H, W) of any size to class scores (B, num_classes).

    Args:
        mixer: name in `backbone.mixers.MIXERS`.
        mixer_args: arguments of its block; those that the block lists as `per_stage` have one value for each stage.
        img_size: image side, or height and width, for weights that depend on it (positions, windows, embeddings).
        dims: channels of the four stages, or of the first, doubling.
        depths: blocks of each stage.
        drop_path_rate: stochastic depth of the last block; linear from 0 at the first.
        layer_scale: starting value of the branches' factors; None or 0 for no factors.
        norm_every_stage: a norm after each stage, whose result goes on; otherwise one norm at the end.
        norm_after_avg: put that last norm behind the pooling.
        extra_transform: pointwise convolution to `extra_transform_ratio` times the channels before the pooling.
        drop_rate: dropout before the last linear.
        global_pool: "avg", or "" for no pooling.
        resize: how frequency embeddings are brought to other map sizes, "exact" or "published".
        dense: see `BlockPosition`; set by the dense-prediction backbones.
        mask_padding: likewise.
        in_chans: channels of the images.
        num_classes: classes of the scores.
        extra_transform_ratio: see `extra_transform`.

    Source: arXiv 2211.05781; keys and values are those of the published checkpoints. Departs from the published code
        where it fails: any image size and floating type, masks that follow the map.
    """

    _stage_name = "stages"
    first_conv = "downsample_layers.0.stem.0"
    head_name = "head"

    def __init__(
        self,
        mixer: str = "halo",
        mixer_args: dict | None = None,
        img_size: int | Sequence[int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        dims: int | Sequence[int] = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        drop_path_rate: float = 0.0,
        layer_scale: float | None = 1e-6,
        norm_every_stage: bool = True,
        norm_after_avg: bool = False,
        extra_transform: bool = True,
        extra_transform_ratio: float = 1.5,
        drop_rate: float = 0.0,
        global_pool: str = "avg",
        resize: str = "exact",
        dense: bool = False,
        mask_padding: bool = True,
    ):
        super().__init__()
        check_resize_mode(resize)
        self.dims = widths(dims)
        self.depths = tuple(depths)
        self.in_chans = in_chans
        self.resize = resize
        if len(self.dims) != len(self.depths):
            raise ValueError(f"dims and depths need one entry for each stage, got {self.dims} and {self.depths}")
        self.mixer = mixer
        self.img_size = image_size(img_size)
        self.num_classes = num_classes
        self.block_class = mixer_named(mixer)
        self.resizers = self.block_class.resizers
        self.downsample_layers = nn.ModuleList(self._make_downsampling())
        self.stages = nn.ModuleList(
            self._make_stages(mixer_args or {}, drop_path_rate, layer_scale, dense, mask_padding)
        )
        self.stage_norms = nn.ModuleList(
            nn.LayerNorm(dim, eps=1e-6) if norm_every_stage else nn.Identity() for dim in self.dims
        )
        self.freq_embed: nn.ParameterList | None = None
        self.num_features = self.head_hidden_size = self.dims[-1]
        end_norm = not norm_every_stage and not norm_after_avg
        self.stage_end_norm = nn.LayerNorm(self.num_features, eps=1e-6) if end_norm else nn.Identity()
        self.conv_head: nn.Module = nn.Identity()
        if extra_transform:
            self.head_hidden_size = int(extra_transform_ratio * self.num_features)
            self.conv_head = ConvHead(self.num_features, self.head_hidden_size)
        after = nn.LayerNorm(self.head_hidden_size, eps=1e-6) if norm_after_avg else nn.Identity()
        self.avg_head = nn.Sequential(GlobalMean(), after)
        self.head_drop = nn.Dropout(drop_rate)
        self.head: nn.Module = nn.Identity()
        self.reset_classifier(num_classes, global_pool)
        self._describe()
        self._init_weights()

    def _make_downsampling(self) -> list[nn.Module]:
        half = self.dims[0] // 2
        stem = nn.Sequential(
            ChannelsLastConv2d(self.in_chans, half, 3, stride=2, padding=1),
            nn.LayerNorm(half, eps=1e-6),
            nn.GELU(),
            ChannelsLastConv2d(half, self.dims[0], 3, stride=2, padding=1),
            nn.LayerNorm(self.dims[0], eps=1e-6),
        )
        layers: list[nn.Module] = [nn.Sequential(OrderedDict(stem=stem))]
        for before, after in zip(self.dims[:-1], self.dims[1:], strict=True):
            conv = ChannelsLastConv2d(before, after, 3, stride=2, padding=1, bias=False)
            reduction = nn.Sequential(conv, nn.LayerNorm(after, eps=1e-6))
            layers.append(nn.Sequential(OrderedDict(reduction=reduction)))
        return layers

    def _make_stages(
        self, mixer_args: dict, drop_path_rate: float, layer_scale: float | None, dense: bool, mask_padding: bool
    ) -> list[nn.Module]:
        rates = iter(drop_path_rates(drop_path_rate, sum(self.depths)))
        stages = []
        named = ((name, mixer_args[name]) for name in self.block_class.per_stage if name in mixer_args)
        per_stage = {name: values for name, values in named if isinstance(values, Sequence)}
        for name, values in per_stage.items():
            if len(values) < len(self.depths):
                raise ValueError(f"mixer_args.{name} needs a value for each of {len(self.depths)} stages, got {values}")
        for stage, size in enumerate(map_sizes(self.img_size, len(self.dims))):
            args = {**mixer_args, **{name: values[stage] for name, values in per_stage.items()}}
            blocks = [
                self.block_class(
                    self.dims[stage],
                    BlockPosition(stage, index, size, next(rates), layer_scale, dense, mask_padding),
                    **args,
                )
                for index in range(self.depths[stage])
            ]
            stages.append(nn.ModuleList(blocks))
        return stages

    def _init_weights(self) -> None:
        self.apply(_init_weights)
        if self.block_class.shares_embedding:
            self.make_embeddings(self.img_size)
        for index in range(len(self.depths)):
            for block in self._mixer_blocks(index):
                block.init_tables()

    def blocks_of(self, index: int) -> list[nn.Module]:
        return list(self.stages[index].children())

    def _mixer_blocks(self, index: int) -> list[MixerBlock]:
        return [block for block in self.blocks_of(index) if isinstance(block, MixerBlock)]

    def stem(self, maps: Tensor) -> Tensor:
        return self.downsample_layers[0](maps)

    def run_stage(self, index: int, maps: Tensor) -> Tensor:
        """The maps after the blocks of stage `index`, before its norm."""
        shared = (self.embedding_at(index, maps),) if self.block_class.shares_embedding else ()
        return self.run_blocks(self.blocks_of(index), maps, *shared)

    def stage(self, index: int, maps: Tensor) -> Tensor:
        return self.stage_norms[index](self.run_stage(index, maps))

    def transition(self, index: int, maps: Tensor) -> Tensor:
        return self.downsample_layers[index + 1](maps)

    def final_norm(self, maps: Tensor) -> Tensor:
        return self.stage_end_norm(maps)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.conv_head(self.stage_end_norm(to_channels_last(x)))
        x = self.head_drop(self.avg_head(x))
        if not pre_logits:
            x = self.head(x)
        return x if x.ndim == 2 else to_channels_first(x)

    @property
    def pooling(self) -> GlobalMean:
        pooling = self.avg_head[0]
        assert isinstance(pooling, GlobalMean)
        return pooling

    def _keep_stages(self, count: int) -> None:
        self.downsample_layers = self.downsample_layers[:count]
        self.stages, self.stage_norms = self.stages[:count], self.stage_norms[:count]
        self.keep_embeddings(count)

    def _drop_head(self) -> None:
        for name in ("stage_end_norm", "conv_head", "avg_head", "head_drop", "head"):
            setattr(self, name, nn.Identity())

    def group_matcher(self, coarse: bool = False) -> dict:
        """Parameter groups for layer-wise learning rates: by stage, or by block; transitions go with their stage."""
        stem = r"^downsample_layers\.0"
        if coarse:
            return {"stem": stem, "blocks": r"^(?:stages|stage_norms|downsample_layers|freq_embed)\.(\d+)"}
        blocks = [
            (r"^stages\.(\d+)\.(\d+)", None),
            (r"^(?:downsample_layers|freq_embed)\.(\d+)", (0,)),
            (r"^stage_norms\.(\d+)", (99999,)),
        ]
        return {"stem": stem, "blocks": blocks}

    def no_weight_decay(self) -> set[str]:
        tables = self.block_class.not_decayed
        return {name for name, _ in self.named_parameters() if name.rpartition(".")[2] in tables}

    def set_input_size(self, img_size: int | Sequence[int]) -> None:
        """Adapt the weights that depend on the image size: positions, windows, frequency embeddings."""
        if self.block_class.shares_embedding:
            self.resize_embeddings(img_size)
        self.img_size = image_size(img_size)
        for index, size in enumerate(map_sizes(img_size, len(self.dims))):
            for block in self._mixer_blocks(index):
                block.set_map_size(size)
        self._record_input_size()

    @property
    def folded(self) -> bool:
        return self.block_class.shares_embedding and self.freq_embed is None
