"""Networks as operations of PyTorch alone, for programs and files that run without vheatir.

The heat operator stands in them as products with cosine matrices, which are made from the map's size while they run,
so height, width and batch stay free.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vheatir.kernels.diffusion.boundaries import INSULATED, PERIODIC, ZERO
from vheatir.kernels.dispatch import compute_dtype

_TRACED = (2, 72, 88)  # any batch and sides that are unlike each other


def _basis(n: int, boundary: str, like: Tensor) -> tuple[Tensor, Tensor]:
    """The orthonormal basis (n, n) of a boundary condition, a function to a row, and w^2 of each, (n, 1).

    In operations that every format has, whatever n turns out to be.
    """
    index = torch.arange(n, device=like.device)
    place = index.double()
    step = math.pi / (place[-1] + 1)
    if boundary == PERIODIC:
        order = 2.0 * torch.div(index + 1, 2, rounding_mode="floor").double()
        cosine = (index % 2 == 1) | (index == 0)
    else:
        order = place + 1 if boundary == ZERO else place
        cosine = torch.full_like(index, boundary == INSULATED, dtype=torch.bool)
        place = place + 0.5
    # onnxruntime long had no cosine of float64, but the sine
    table = torch.sin(order[:, None] * place[None] * step + (math.pi / 2) * cosine[:, None].double())
    table = table / table.norm(dim=1, keepdim=True)
    return table.to(like.dtype), (order * step).square()[:, None].to(like.dtype)


def _conduct(x: Tensor, decay: Tensor, backend: str) -> Tensor:
    """What `vheatir::conduct` becomes."""
    return _conduct_with_spectrum(x, decay, backend)[0]


def _conduct_with_spectrum(x: Tensor, decay: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    """What `vheatir::conduct_with_spectrum` becomes, of a network whose decay needs a gradient."""
    wide = x.to(compute_dtype(x.dtype))
    rows = _basis(x.shape[1], INSULATED, wide)[0]
    columns = _basis(x.shape[2], INSULATED, wide)[0]
    spectrum = torch.einsum("nh,bhwc,mw->bnmc", rows, wide, columns)
    y = torch.einsum("nh,bnmc,mw->bhwc", rows, spectrum * decay.to(wide.dtype), columns)
    return y.to(x.dtype), spectrum


def _diffuse(x: Tensor, k: Tensor, boundary: str, backend: str) -> Tensor:
    """What `vheatir::diffuse` becomes; k is (D, 1, C) or (D, B, C)."""
    y = x.to(k.dtype)
    for axis in range(x.ndim - 2):
        basis, squares = _basis(x.shape[axis + 1], boundary, y)
        lines = y.movedim(axis + 1, -2)  # (B, ..., N, C)
        decay = torch.exp(-squares * k[axis][:, None])
        for _ in range(x.ndim - 3):
            decay = decay[:, None]
        y = (basis.T @ (decay * (basis @ lines))).movedim(-2, axis + 1)
    return y.to(x.dtype)


def _pixel_unshuffle(image: Tensor, factor: int) -> Tensor:
    """What `pixel_unshuffle` becomes: translators for ONNX took its channels in another order."""
    batch, channels, height, width = image.shape
    rows = height // factor
    columns = width // factor
    parts = image.reshape(batch, channels, rows, factor, columns, factor).permute(0, 1, 3, 5, 2, 4)
    return parts.reshape(batch, channels * factor * factor, rows, columns)


def decompositions() -> dict[Any, Callable]:
    """What our operators become in operations of PyTorch alone, for `ExportedProgram.run_decompositions`.

    For a network of your own that calls `heat_conduction` with a decay that is not prepared, `diffuse` or a heat layer:
    the program then needs no vheatir where it runs, and `torch.onnx.export` takes it. The products are with matrices
    that are made from the size of the maps while it runs.
    """
    own = torch.ops.vheatir
    return {
        own.conduct.default: _conduct,
        own.conduct_with_spectrum.default: _conduct_with_spectrum,
        own.diffuse.default: _diffuse,
        torch.ops.aten.pixel_unshuffle.default: _pixel_unshuffle,
    }


def is_backbone(network: nn.Module) -> bool:
    """Whether a network gives scores of classes, for images of one size, in place of restored images."""
    return hasattr(network, "forward_features")


def example_inputs(network: Any, batch: int, height: int, width: int) -> list[Tensor]:
    """Random arguments of a network's forward: images (batch, in_chans, height, width), and levels where it takes them.

    Args:
        network: a restoration network or a backbone, whose images have its own `img_size`.
        batch: how many images.
        height: of the images in pixels.
        width: of the images in pixels.
    """
    if is_backbone(network):
        generator = torch.Generator().manual_seed(batch)
        return [torch.randn(batch, network.in_chans, *network.img_size, generator=generator)]
    generator = torch.Generator().manual_seed(height)
    image = torch.rand(batch, network.config["in_chans"], height, width, generator=generator)
    return [image, torch.rand(batch, generator=generator)] if network.level_map else [image]


def trace(network: nn.Module) -> torch.export.ExportedProgram:
    """The network as operations of PyTorch alone, for any batch and sides whose coarsest maps exceed one pixel.

    Inputs: `image` (B, in_chans, H, W) in float32, and `level` (B,) where the network takes one; of a backbone `x`
    (B, in_chans, H, W), normalized, of the network's `img_size`. The network is moved to the CPU and to eval mode.
    """
    network = network.cpu().float().eval().requires_grad_(False)
    batch = torch.export.Dim("batch", min=1)
    side = torch.export.Dim.DYNAMIC
    if is_backbone(network):
        shapes = {"x": {0: batch}}
    else:
        shapes = {"image": {0: batch, 2: side, 3: side}} | ({"level": {0: batch}} if network.level_map else {})
    with torch.no_grad():
        program = torch.export.export(network, tuple(example_inputs(network, *_TRACED)), dynamic_shapes=shapes)
        return program.run_decompositions(decompositions())
