#!/usr/bin/env python3
"""Sampling of DCNv3 in plain PyTorch against torchvision's compiled deform_conv2d: processor time and memory.

    OMP_NUM_THREADS=1 python benchmarks/deformable.py --json results/deformable.json

Both get the same values, offsets and weights, and give the same, which is checked first; float32, on the CPU.
"""

import argparse
import sys
from pathlib import Path

import torch
from torchvision.ops import deform_conv2d

sys.path.append(str(Path(__file__).resolve().parent.parent))

from vheatir.backbone.mixers.deformable import DeformableSampling, sample_weighted
from vheatir.cli import run
from vheatir.utils.run_metadata import prepare_output, run_metadata, write_json
from vheatir.utils.timing import interleave, peak_mib

SHAPES = ((2, 56, 56, 64, 4), (2, 14, 14, 256, 16))  # batch, height, width, channels, heads


def candidates(batch: int, height: int, width: int, channels: int, heads: int) -> dict:
    """Forward, and forward with backward, of both."""
    layer = DeformableSampling(channels, heads)
    leaves = [
        torch.randn(batch, height, width, heads, channels // heads),
        torch.randn(batch, height * width, heads, 9, 2),
    ]
    leaves += [torch.rand(batch, height * width, heads, 9)]
    value, offsets, weights = (leaf.requires_grad_() for leaf in leaves)
    # torchvision's order: points by row, then column; offsets down, then right; everything channels-first.
    places = offsets.unflatten(3, (3, 3)).transpose(3, 4).flip(-1).detach().flatten(2).mT.unflatten(2, (height, width))
    masks = weights.unflatten(3, (3, 3)).transpose(3, 4).detach().flatten(2).mT.unflatten(2, (height, width))
    first = value.detach().flatten(3).permute(0, 3, 1, 2)
    leaves += [leaf.contiguous().requires_grad_() for leaf in (first, places, masks)]
    ones = torch.ones(channels, 1, 3, 3)

    def ours():
        return sample_weighted(value, layer.locations(offsets, height, width), weights)

    def theirs():
        return deform_conv2d(*leaves[3:5], ones, padding=1, mask=leaves[5])

    torch.testing.assert_close(ours().unflatten(1, (height, width)).permute(0, 3, 1, 2), theirs(), atol=1e-3, rtol=1e-3)

    def forward(act):
        with torch.no_grad():
            return act()

    def both(act):
        for leaf in leaves:
            leaf.grad = None
        act().sum().backward()

    acts = {"ours": ours, "torchvision": theirs}
    return {
        f"{name}, {kind.__name__}": (lambda k=kind, a=act: k(a))
        for name, act in acts.items()
        for kind in (forward, both)
    }


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--rounds", type=int, help="turns of each kind; default: what 4 seconds hold, 5 to 201")
    arguments = parser.parse_args(argv)
    prepare_output(arguments.json)
    device, results = torch.device("cpu"), []
    for shape in SHAPES:
        torch.manual_seed(0)
        acts = candidates(*shape)
        for name, timing in interleave(acts, device, rounds=arguments.rounds, seconds=4, clock="cpu").items():
            row = {"case": "x".join(map(str, shape)), "candidate": name, "median_us": timing.median_us}
            results.append({**row, "iqr_us": timing.iqr_us, "peak_mib": peak_mib(acts[name], device)})
            print("{case:18} {candidate:22} {median_us:10.0f} us {peak_mib:8.1f} MiB".format(**results[-1]))
    write_json(arguments.json, {"metadata": run_metadata(["python", *sys.argv]), "results": results})
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
