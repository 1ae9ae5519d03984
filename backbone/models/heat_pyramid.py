"""Frequency embeddings shared by the blocks of a stage, and the folded form for inference."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vheatir.backbone.layers.embedding import EmbeddingAt, resize_embedding
from vheatir.backbone.layers.heat import HeatLayer
from vheatir.backbone.models.pyramid import Pyramid, image_size, map_sizes


def heat_layer_of(block: nn.Module) -> HeatLayer:
    """The heat layer of a heat block."""
    layer = block.op
    if not isinstance(layer, HeatLayer):
        raise TypeError(f"{type(block).__name__} has no heat layer")
    return layer


class HeatPyramid(Pyramid):
    """A pyramid whose stages may hold heat blocks: one embedding for each stage, in `freq_embed`.

    Subclasses set `resize`, call `make_embeddings` and give `blocks_of`.
    """

    resize: str
    freq_embed: nn.ParameterList | None
    _unfolded: nn.ParameterList | None

    def blocks_of(self, index: int) -> list[nn.Module]:
        """The blocks of a stage, in order."""
        raise NotImplementedError

    def make_embeddings(self, img_size: int | Sequence[int]) -> None:
        """One embedding (H, W, C) for each stage, of the size of its maps."""
        sizes = map_sizes(img_size, len(self.dims))
        self.freq_embed = nn.ParameterList(torch.empty(*size, dim) for size, dim in zip(sizes, self.dims, strict=True))
        for embedding in self.freq_embed:
            nn.init.trunc_normal_(embedding, std=0.02)

    def keep_embeddings(self, count: int) -> None:
        """Remove the embeddings of the stages after the first `count`; a folded network has them aside."""
        if self.freq_embed is not None:
            self.freq_embed = self.freq_embed[:count]
        aside = getattr(self, "_unfolded", None)
        if aside is not None:
            object.__setattr__(self, "_unfolded", aside[:count])

    def embedding_at(self, index: int, maps: Tensor) -> EmbeddingAt | None:
        """What the heat blocks of a stage take beside the maps; None where they are folded."""
        if self.freq_embed is None:
            return None
        return EmbeddingAt(self.freq_embed[index], (maps.shape[1], maps.shape[2]), self.resize)

    def heat_layers(self) -> list[HeatLayer]:
        """Every heat layer, in the order of the forward pass."""
        return [module for module in self.modules() if isinstance(module, HeatLayer)]

    def resize_embeddings(self, img_size: int | Sequence[int]) -> None:
        """Bring the embeddings to the maps of another image size.

        Raises:
            ValueError: the network is folded.
        """
        if self.freq_embed is None:
            raise ValueError("a folded network is frozen to its image size; unfold it first")
        self.img_size = image_size(img_size)
        with torch.no_grad():
            for index, size in enumerate(map_sizes(img_size, len(self.dims))):
                embedding = self.freq_embed[index]
                resized = resize_embedding(embedding, size, self.resize)
                self.freq_embed[index] = nn.Parameter(resized.clone(), requires_grad=embedding.requires_grad)

    @property
    def folded(self) -> bool:
        """Whether the network has the folded form."""
        return self.freq_embed is None

    def fold(self) -> "HeatPyramid":
        """Merge in place, for inference at `img_size`: each block keeps its decay, embeddings and `to_k` go.

        Raises:
            ValueError: folded already.
        """
        embeddings = self.freq_embed
        if embeddings is None:
            raise ValueError("this network is already folded")
        for index, embedding in enumerate(embeddings):
            for block in self.blocks_of(index):
                heat_layer_of(block).fold(embedding)
        object.__setattr__(self, "_unfolded", embeddings)  # not a submodule: it leaves the state dict
        self.freq_embed = None
        return self

    def unfold(self) -> "HeatPyramid":
        """Undo `fold`, with the weights from before it.

        Raises:
            ValueError: not folded, or the folded weights were loaded.
        """
        if not self.folded:
            raise ValueError("this network is not folded")
        for layer in self.heat_layers():
            layer.check_unfold()
        return self.unfold_to_load()

    def unfold_to_load(self) -> "HeatPyramid":
        """Undo `fold` where unfolded weights are loaded next: embeddings are those of before, whatever they were.

        Raises:
            ValueError: there are none.
        """
        if self._unfolded is None:
            raise ValueError("this network was built in folded form: load unfolded weights to get its embeddings back")
        for layer in self.heat_layers():
            layer.unfold_to_load()
        # Where the network is now, in its type: a decay is float32 also in a network of 16 bits.
        self.freq_embed = self._unfolded.to(self.get_parameter(f"{self.first_conv}.weight"))
        object.__setattr__(self, "_unfolded", None)
        return self
