"""A decay map prepared once for many calls."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vheatir.kernels.cpu.kernel import unprepare
from vheatir.kernels.dispatch import CPU_KERNEL, choose, compute_dtype
from vheatir.kernels.torch_path import Transform, without_subnormals


@dataclass(frozen=True, eq=False)
class PreparedDecay:
    """A decay without gradient, folded for the path that will run. Made by `prepare_decay`; pickles and copies.

    Attributes:
        folded: the decay as the path reads it, float32 or float64.
        path: name of the path that `folded` is for.
        shape: (H, W, C) of the maps; C is 1 where one decay serves all channels.
    """

    folded: Tensor
    path: str
    shape: tuple[int, int, int]

    @property
    def dtype(self) -> torch.dtype:
        """float64 serves float64 maps, float32 all others."""
        return self.folded.dtype

    @property
    def device(self) -> torch.device:
        """Where the maps must lie."""
        return self.folded.device

    def nbytes(self) -> int:
        """Memory that the folded map takes."""
        return self.folded.numel() * self.folded.element_size()

    def to_dtype(self, dtype: torch.dtype) -> "PreparedDecay":
        """The same decay for maps of that type: float64 for float64, float32 for all others."""
        dtype = compute_dtype(dtype)
        if dtype == self.dtype:
            return self
        # Normal tensors even in inference mode: a later training step may save them for its backward.
        with torch.inference_mode(False), torch.no_grad():
            if self.path != CPU_KERNEL:
                return replace(self, folded=without_subnormals(self.folded.to(dtype)))
            height, width, _ = self.shape
            path = choose(height, width, self.device, "torch")
            transform = Transform(height, width, (path.halvings_h, path.halvings_w), dtype, self.device)
            return replace(self, folded=transform.fold(unprepare(self.folded)), path=path.name)
