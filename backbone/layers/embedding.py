"""Frequency embeddings: the learned (H, W, C) tables from which each block derives its diffusivities."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vheatir.kernels.plain import full_precision

RESIZE_MODES = ("exact", "published")


def check_resize_mode(mode: str) -> None:
    """ValueError where a mode is none of `RESIZE_MODES`."""
    if mode not in RESIZE_MODES:
        raise ValueError(f"unknown resize mode {mode!r}; known: {', '.join(RESIZE_MODES)}")


def _exact_weights(source: int, target: int, like: Tensor) -> Tensor:
    """(target, source) matrix of linear interpolation at index n * source / target, held at the last entry."""
    # Devices other than CUDA may have no float64; a CUDA graph that is captured cannot wait for a copy from the CPU.
    device = like.device if like.is_cuda else "cpu"
    position = torch.arange(target, dtype=torch.float64, device=device) * source / target
    position = position.clamp(max=source - 1)
    index = torch.arange(source, dtype=torch.float64, device=device)
    return (1 - (position[:, None] - index[None]).abs()).clamp(min=0).to(like)


def resize_embedding(embedding: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """Bring a frequency embedding to the size of a map.

    Args:
        embedding: (H, W, C), entry [n, m] for the frequencies pi n/H and pi m/W.
        size: height and width of the map.
        mode: "exact" reads each frequency where the embedding holds the same frequency per pixel (index n H_src/H_dst,
            DC to DC), linear in between. "published" is the bicubic, half-pixel-centered resize of the vHeat detection
            code, which shifts frequencies by up to half a bin and mixes DC with its neighbors.

    Returns:
        (*size, C); the embedding itself where it has that size. Differentiable.

    Raises:
        ValueError: unknown mode.
    """
    check_resize_mode(mode)
    # An exporter with unknown sides must not ask; resizing to the same size changes nothing.
    if not torch.compiler.is_exporting() and tuple(embedding.shape[:2]) == tuple(size):
        return embedding
    # Under autocast the products would round the table to 8 bits.
    with full_precision(embedding):
        if mode == "published":
            planes = embedding.permute(2, 0, 1)[None]
            resized = F.interpolate(planes, size=size, mode="bicubic", align_corners=False)
            return resized[0].permute(1, 2, 0)
        rows = _exact_weights(embedding.shape[0], size[0], embedding)
        columns = _exact_weights(embedding.shape[1], size[1], embedding)
        return torch.einsum("nh,hwc,mw->nmc", rows, embedding, columns)


class EmbeddingAt:
    """A frequency embedding seen at one map size; resized on first use, once for all blocks that share it.

    Args:
        source: (H, W, C).
        size: height and width of the map.
        mode: one of `RESIZE_MODES`.
    """

    def __init__(self, source: Tensor, size: tuple[int, int], mode: str):
        self.source = source
        self.size = size
        self.mode = mode
        # With gradients the resize must not happen inside a checkpointed block, whose recomputation would skip it.
        self._resized = resize_embedding(source, size, mode) if torch.is_grad_enabled() else None

    def tensor(self) -> Tensor:
        """(H, W, C) of the map's size."""
        if self._resized is None:
            self._resized = resize_embedding(self.source, self.size, self.mode)
        return self._resized


def check_reach(reach: object, name: str = "reach", unit: str = "pixels") -> None:
    """Refuse what is not a shortest and a longest blur length.

    Args:
        reach: what was given.
        name: of the argument, for the message.
        unit: of the lengths, for the message.

    Raises:
        ValueError: not two lengths, or they do not rise from above 0.
    """
    try:
        shortest, longest = reach  # pyright: ignore[reportGeneralTypeIssues]
        rises = 0 < shortest <= longest < math.inf
    except (TypeError, ValueError):
        rises = False
    if not rises:
        raise ValueError(f"{name} must be two rising positive lengths in {unit}, such as (0.5, 8.0), got {reach!r}")


def diffusivities_of_reach(reach: tuple[float, float], channels: int) -> np.ndarray:
    """Diffusivities in squared pixels, log-spaced between blurs of reach[0] and of reach[1] pixels; (C,), float64.

    Raises:
        ValueError: `reach` is not two rising lengths above 0.
    """
    check_reach(reach)
    # NumPy's: on the meta device torch.logspace and log load PyTorch's compiler, which takes longer than an image.
    pixels = np.logspace(math.log10(reach[0]), math.log10(reach[1]), channels)
    return pixels**2 / 2


def init_diffusivity_reach(to_k: nn.Linear, reach: tuple[float, float]) -> None:
    """Start diffusivities log-spaced over the channels, from a blur of reach[0] to one of reach[1] pixels.

    A channel with diffusivity k blurs over about sqrt(2k) pixels; the published start leaves every k near 0.

    Raises:
        ValueError: `reach` is not two rising lengths above 0.
    """
    with torch.no_grad():
        to_k.bias.copy_(torch.tensor(diffusivities_of_reach(reach, to_k.out_features).tolist()))
