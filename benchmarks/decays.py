"""Time of the operator with a network's decays beside uniform ones; the former make subnormal numbers.

The decays of the network belong to the diffusivities of `vheatir bench hco`, but are made by the plain exponential, so
that they hold subnormal numbers. `--before` adds a library of the CPU kernel that another version of the project has
compiled (`vheatir info` prints its file). All are called in turn, by processor time of one thread; `ratio` is the
median over the rounds of the time with a network's decay divided by that with a uniform one.
"""

import argparse
import ctypes
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from vheatir.bench.case import gradients, inference
from vheatir.bench.command import _positive, _shape
from vheatir.bench.defaults import SHAPES
from vheatir.bench.operator import network_diffusivities
from vheatir.cli import run
from vheatir.kernels.cpu import library as native
from vheatir.kernels.dct import squared_frequencies
from vheatir.kernels.ops import heat_conduction, prepare_decay
from vheatir.utils import timing
from vheatir.utils.run_metadata import prepare_output, run_metadata, write_json

TINY = torch.finfo(torch.float32).tiny


def libraries(before: Path | None) -> dict[str, native.Library]:
    """The kernel of this version, and the other one."""
    if reason := native.refusal():
        raise SystemExit(f"this measures the CPU kernel: {reason}")
    found = {"now": native.library()}
    if before is not None:
        functions = ctypes.CDLL(str(before.resolve()))
        if functions.vheatir_abi() != found["now"].functions.vheatir_abi():
            raise SystemExit(f"{before} has another interface; give the library of a version with the same one")
        found["before"] = found["now"]._replace(functions=functions, path=before)
    return found


def calls_of(shape: tuple[int, ...], form: str, decays: dict[str, torch.Tensor]) -> dict[str, Callable]:
    """One call of the operator for each decay: "fwd", "fwd prepared" or "fwd+bwd"."""
    x, cotangent = torch.randn(shape), torch.randn(shape)
    if form == "fwd+bwd":
        inputs = {name: (x.clone().requires_grad_(), decay.clone().requires_grad_()) for name, decay in decays.items()}
        return {name: lambda pair=pair: gradients(heat_conduction, *pair, cotangent) for name, pair in inputs.items()}
    if form == "fwd prepared":
        decays = {name: prepare_decay(decay) for name, decay in decays.items()}
    return {name: lambda decay=decay: inference(heat_conduction, x, decay) for name, decay in decays.items()}


def with_library(library: native.Library, call: Callable) -> Callable:
    """The call with that kernel."""

    def run() -> object:
        native._loaded = library
        return call()

    return run


def measure_shape(shape: tuple[int, ...], kernels: dict[str, native.Library], rounds: int | None) -> list[dict]:
    """A result for each form and kernel."""
    torch.manual_seed(0)
    k, what = network_diffusivities(*shape[1:])
    network = torch.exp(-k * squared_frequencies(*shape[1:3])[..., None].to(k))
    decays = {"network": network.float(), "uniform": torch.rand(shape[1:])}
    subnormal = ((decays["network"] > 0) & (decays["network"] < TINY)).float().mean().item()
    results = []
    for form in ("fwd", "fwd prepared", "fwd+bwd"):
        calls = calls_of(shape, form, decays)
        acts = {(k, d): with_library(library, call) for k, library in kernels.items() for d, call in calls.items()}
        timings = timing.interleave(acts, torch.device("cpu"), rounds=rounds, clock="cpu", seconds=6, turn=5e-3)
        for kernel in kernels:
            pair = timings[kernel, "network"], timings[kernel, "uniform"]
            ratios = [ours / other for ours, other in zip(*(one.microseconds for one in pair), strict=True)]
            results.append(
                {
                    "case": f"{form} {'x'.join(map(str, shape))} float32",
                    "kernel": kernel,
                    "decay": what,
                    "subnormal_share": float(f"{subnormal:.3g}"),
                    "network_us": round(pair[0].median_us, 1),
                    "uniform_us": round(pair[1].median_us, 1),
                    "iqr_us": [round(one.iqr_us, 1) for one in pair],
                    "rounds": len(ratios),
                    "ratio": round(statistics.median(ratios), 3),
                }
            )
    native._loaded = kernels["now"]
    return results


def main(argv: list[str]) -> None:
    """Entry."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    default = [(1, 200, 300, 80), (1, 128, 128, 64), *SHAPES[:2]]
    parser.add_argument("--shape", type=_shape, nargs="+", default=default, metavar="BxHxWxC")
    parser.add_argument("--before", type=Path, metavar="LIBRARY", help="a kernel that another version has compiled")
    parser.add_argument("--rounds", type=_positive, metavar="N", help="default: what 6 seconds hold, 5 to 201")
    parser.add_argument("--json", type=Path, required=True, metavar="FILE")
    options = parser.parse_args(argv)
    prepare_output(options.json)
    kernels = libraries(options.before)
    torch.set_num_threads(1)
    results = []
    for shape in options.shape:
        for result in measure_shape(shape, kernels, options.rounds):
            results.append(result)
            line = "{case:<30} {kernel:<7} network {network_us:>9} us, uniform {uniform_us:>9} us, ratio {ratio}"
            sys.stdout.write(line.format(**result) + "\n")
    metadata = run_metadata(["python", "benchmarks/decays.py", *argv])
    metadata |= {"threads": 1, "clock": "cpu", "instructions": native.instructions()}
    write_json(options.json, {"metadata": metadata, "results": results})


if __name__ == "__main__":
    raise SystemExit(run(main))
