"""Processor time of forms of VHeatUNet on one image: where heat attention stands, and what it costs.

    python benchmarks/network_forms.py --json results/network_forms.json

Random weights and a random image, one thread, frozen networks in inference mode, float32 and bf16 (autocast), all in
turn.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from vheatir.archs.vheatunet_arch import VHeatUNet
from vheatir.backbone.layers.freezing import freeze
from vheatir.cli import run
from vheatir.utils.heap import keep_heap
from vheatir.utils.run_metadata import prepare_output, run_metadata, write_json
from vheatir.utils.timing import interleave

TODAY: dict[str, Any] = {"encoder": [1, 1, 3], "middle": 2, "decoder": [1, 2, 2]}
BEFORE: dict[str, Any] = {"encoder": [1, 1, 2], "middle": 2, "decoder": [1, 1, 1]}
_NONE, _HEAT, _MEAN = "none", "heat", "mean"
FORMS: dict[str, dict[str, Any]] = {
    "heat at the coarse stages": TODAY | {"attention": [_NONE, _NONE, _HEAT, _HEAT]},
    "no attention": TODAY | {"attention": [_NONE] * 4},
    "mean at the coarse stages": TODAY | {"attention": [_NONE, _NONE, _MEAN, _MEAN]},
    "heat at every stage": TODAY | {"attention": [_HEAT] * 4},
    "before: heat at every stage": BEFORE | {"attention": [_HEAT] * 4},
    "before: heat at the coarse stages": BEFORE | {"attention": [_NONE, _NONE, _HEAT, _HEAT]},
}
TYPES = {"float32": None, "bf16": torch.bfloat16}


def restoring(network: VHeatUNet, image: torch.Tensor, dtype: torch.dtype | None) -> Callable[[], torch.Tensor]:
    """A pass as `vheatir restore` makes it."""

    def pass_once() -> torch.Tensor:
        with torch.inference_mode(), torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
            return network(image)

    return pass_once


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, nargs=2, default=[480, 320], metavar=("HEIGHT", "WIDTH"), help="pixels")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args(arguments)
    prepare_output(args.json)
    keep_heap()  # as the commands do
    torch.set_num_threads(1)
    torch.manual_seed(0)
    image = torch.rand(1, 3, *args.size)
    networks = {form: freeze(VHeatUNet(**options)) for form, options in FORMS.items()}
    calls = {
        f"{form}, {kind}": restoring(network, image, dtype)
        for form, network in networks.items()
        for kind, dtype in TYPES.items()
    }
    timings = interleave(calls, torch.device("cpu"), rounds=args.rounds, clock="cpu")
    results = []
    for form, network in networks.items():
        result: dict[str, Any] = {"form": form, **FORMS[form]}
        result["parameters"] = sum(one.numel() for one in network.parameters())
        for kind in TYPES:
            timing = timings[f"{form}, {kind}"]
            result[f"{kind}_ms"] = round(timing.median_us / 1e3, 1)
            result[f"{kind}_iqr_ms"] = round(timing.iqr_us / 1e3, 1)
        results.append(result)
        print(form, *(result[f"{kind}_ms"] for kind in TYPES), flush=True)
    metadata = run_metadata(["python", "benchmarks/network_forms.py", *arguments])
    metadata |= {"size": args.size, "rounds": args.rounds, "threads": 1, "clock": "cpu"}
    write_json(args.json, {"metadata": metadata, "results": results})


if __name__ == "__main__":
    raise SystemExit(run(main))
