"""Cases of `vheatir bench restore`: the restoration network, against SwinIR."""

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from vheatir.archs.vheatir_arch import VHeatIR
from vheatir.bench.case import Case
from vheatir.bench.defaults import DEPTHS, IMAGES
from vheatir.bench.networks import OURS, network_case
from vheatir.errors import UserError

_HEADS = 4  # of SwinIR: 16 channels each at a width of 64; with 8 heads it is slower


def restore(
    *,
    image: Sequence[tuple[int, int]] = IMAGES,
    dim: int = 64,
    depths: Sequence[int] = DEPTHS,
    batch: int = 1,
    against: str = "swinir",
    dtype: Sequence[str] = ("float32",),
    device: str = "cpu",
) -> Iterator[Case]:
    """The restoration network on color images, against SwinIR of the same width, depth and feature resolution.

    Args:
        image: (H, W) of each case in pixels.
        dim: channels of both networks.
        depths: blocks of each group.
        batch: images at once.
        against: "swinir" (BasicSR's) or "none".
        dtype: names of torch's types; others than float32 by autocast.
        device: cpu, cuda, cuda:1, ...
    """
    for kind in dtype:
        for height, width in image:
            torch.manual_seed(0)
            ours = VHeatIR(dim=dim, depths=tuple(depths))
            networks = {}
            nn.init.trunc_normal_(ours.conv_last.weight, std=0.02)  # it starts at zero: nothing would be compared
            if against == "swinir":
                networks["swinir"] = _swinir(dim, list(depths))
            networks[OURS] = ours
            pixels = torch.rand(batch, 3, height, width)
            name = f"restore fwd {batch}x3x{height}x{width}"
            about = {"dim": dim, "depths": list(depths)}
            yield network_case(
                name, networks, pixels, dtype=kind, device=device, training=False, alike=(OURS,), about=about
            )


def _swinir(dim: int, depths: list[int]) -> nn.Module:
    """BasicSR's SwinIR as it denoises: windows of 8, one convolution at a group's end, features at full resolution."""
    from vheatir.archs.swinir_arch import AnySizeSwinIR  # BasicSR is an extra

    if dim % _HEADS:
        raise UserError(f"--dim {dim}: SwinIR has {_HEADS} heads; take a multiple of {_HEADS}, or --against none")
    heads = [_HEADS] * len(depths)
    return AnySizeSwinIR(img_size=128, embed_dim=dim, depths=depths, num_heads=heads, mlp_ratio=2.0)
