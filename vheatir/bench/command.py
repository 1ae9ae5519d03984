"""`vheatir bench`: speed and memory against others, as a file that can be measured again.

A benchmark is a function that yields cases; a case is a name, candidates to run in turn, and the values they must give.
`BENCHMARKS` names them; `measure_case` is the same for all: first every candidate is checked against float64, then all
are timed in turn within one process.
"""

import argparse
import importlib
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vheatir.errors import UserError
from vheatir.utils.run_metadata import prepare_output, run_metadata, write_json

if TYPE_CHECKING:
    from vheatir.bench.operator import Case

# Name -> module with the function of that name, what it measures, and what it can be compared with.
BENCHMARKS = {
    "hco": ("vheatir.bench.operator", "the heat conduction operator", ("published", "none")),
    "block": ("vheatir.bench.operator", "one heat block", ("published", "none")),
    "model": ("vheatir.bench.networks", "the classifier vHeat", ("published", "swin", "none")),
    "restore": ("vheatir.bench.networks", "the restoration network", ("swinir", "none")),
}
SHAPES = (
    *("8x56x56x96", "8x28x28x192", "8x14x14x384", "8x7x7x768"),
    *("1x128x128x64", "1x256x256x48", "1x512x512x48", "1x481x321x48"),
)
BLOCKS = ("1x56x56x96", "1x28x28x192", "1x14x14x384", "1x7x7x768", "1x128x128x96", "1x256x256x96")
DTYPES = ("float64", "float32", "bfloat16", "float16")
# Largest error against float64 as a share of the largest value. The published formulation builds its tables in
# float32 and computes 16-bit maps in 16 bits, so that more is allowed to it: it is there to be timed.
TOLERANCE = {"float64": 1e-12, "float32": 1e-5, "bfloat16": 2**-7, "float16": 2**-10}
BASELINE_TOLERANCE = {"float64": 1e-3, "float32": 1e-3, "bfloat16": 0.2, "float16": 0.05}
# glibc gives large blocks back to the system at once; fetching them anew costs more than the arithmetic. Read by the
# C library when a process starts.
KEPT_HEAP = {"MALLOC_MMAP_THRESHOLD_": "8000000000", "MALLOC_TRIM_THRESHOLD_": "16000000000"}


def errors(case: "Case") -> dict[str, float]:
    """Largest error of each candidate over all its values, as a share of the largest value expected.

    Raises:
        UserError: a candidate misses its tolerance; nothing wrong is timed.
    """
    found = {}
    for name, candidate in case.candidates.items():
        limit = case.slack * (BASELINE_TOLERANCE if name == case.baseline else TOLERANCE)[case.dtype]
        shares = {}
        for key, value in candidate().items():
            want = case.expected[key]
            shares[key] = ((value.double() - want).abs().max() / want.abs().max().clamp_min(1e-30)).item()
        worst = max(shares, key=shares.get)
        if not shares[worst] <= limit:
            raise UserError(
                f"{case.name}: {worst} of {name} is off by {shares[worst]:.3g} of the largest value, allowed "
                f"{limit:.3g}; nothing was timed. Please report this with the output of `vheatir info`"
            )
        found[name] = shares[worst]
    return found


def measure_case(
    case: "Case",
    threads: int,
    rounds: int | None,
    clock: str = "wall",
    turn: float = 0.0,
    roof: dict[str, float] | None = None,
) -> list[dict[str, Any]]:
    """One result for each candidate of the case.

    `turn` is in seconds; `roof` is what `measure.roofline` found for these threads.
    """
    import torch

    from vheatir.utils import timing as measure

    torch.set_num_threads(threads)
    found = errors(case)
    timings = measure.interleave(case.candidates, case.device, rounds=rounds, clock=clock, turn=turn)
    baseline = timings.get(case.baseline)
    return [
        {
            "case": case.name,
            "backend": name,
            **case.about,
            "threads": threads,
            "clock": clock,
            "median_us": round(timing.median_us, 1),
            "iqr_us": round(timing.iqr_us, 1),
            "rounds": len(timing.microseconds),
            "calls": timing.calls,
            "speedup": round(timing.speedup_over(baseline), 3) if baseline else None,
            "peak_mib": round(measure.peak_mib(case.candidates[name], case.device), 2),
            "error": float(f"{found[name]:.2e}"),
            **_shares(case, name, timing.median_us, roof or {}),
        }
        for name, timing in timings.items()
    ]


def _shares(case: "Case", candidate: str, microseconds: float, roof: dict[str, float]) -> dict[str, float]:
    """Of this machine's matrix products and copies: how near a candidate comes to them, where its work is known."""
    shares = {}
    if flops := case.flops.get(candidate):
        shares["gflop_s"] = round(flops / microseconds / 1e3, 1)
        if "gemm_gflop_s" in roof:
            shares["share_of_gemm"] = float(f"{flops / microseconds / 1e3 / roof['gemm_gflop_s']:.3g}")
    if case.traffic and "copy_gb_s" in roof:
        shares["share_of_copy"] = float(f"{case.traffic / microseconds / 1e3 / roof['copy_gb_s']:.3g}")
    return shares


def _shape(text: str) -> tuple[int, ...]:
    sizes = text.lower().split("x")
    if len(sizes) != 4 or not all(size.isdigit() and int(size) for size in sizes):
        raise argparse.ArgumentTypeError(f"expected BxHxWxC with four whole numbers from 1 on, got {text!r}")
    return tuple(map(int, sizes))


def _positive(text: str) -> int:
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 on, got {text!r}")
    return int(text)


def _milliseconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1e4:
        raise argparse.ArgumentTypeError(f"expected milliseconds from 0 to 10000, got {text!r}")
    return value


def _size(text: str) -> tuple[int, int]:
    sizes = text.lower().split("x")
    if len(sizes) != 2 or not all(size.isdigit() and int(size) for size in sizes):
        raise argparse.ArgumentTypeError(f"expected HxW with two whole numbers from 1 on, got {text!r}")
    return int(sizes[0]), int(sizes[1])


def _stage_side(text: str) -> int:
    if not text.isdigit() or not int(text) or int(text) % 32:
        raise argparse.ArgumentTypeError(f"expected a multiple of 32 pixels, got {text!r}")
    return int(text)


def _add_own_options(name: str, command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    if name in ("hco", "block"):
        shapes = SHAPES if name == "hco" else BLOCKS
        default = [_shape(text) for text in shapes]
        add("--shape", type=_shape, nargs="+", default=default, metavar="BxHxWxC", help=f"default: {' '.join(shapes)}")
    if name == "hco":
        form = command.add_mutually_exclusive_group()
        for kind, text in (("raw", "only with the decay itself"), ("prepared", "only with a prepared decay")):
            form.add_argument(f"--{kind}", action="store_const", const=(kind,), dest="forms", help=text)
        text = "those of a restoration network (default), or random numbers from 0 to 1; docs/performance.md has more"
        add("--decay", choices=("network", "uniform"), default="network", help=text)
    if name == "model":
        add("--size", choices=("tiny", "small", "base"), default="tiny", help="default: tiny")
        add("--side", type=_stage_side, nargs="+", default=[224, 512, 1024], help="pixels; default: 224 512 1024")
    if name == "restore":
        add("--image", type=_size, nargs="+", default=[(256, 256), (480, 320)], metavar="HxW", help="pixels")
        add("--dim", type=_positive, default=64, help="channels of both networks (default: 64)")
        add("--depths", type=_positive, nargs="+", default=[6, 6, 6, 6], help="blocks of each group (default: 6 6 6 6)")
    else:
        add("--backward", action="store_true", help="with the backward too")
    if name in ("model", "restore"):
        add("--batch", type=_positive, default=1, help="images at once (default: 1)")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("vheatir bench", description=__doc__.split("\n", 1)[0])
    commands = parser.add_subparsers(dest="benchmark", required=True, metavar="BENCHMARK")
    for name, (_, what, rivals) in BENCHMARKS.items():
        command = commands.add_parser(name, help=what, description=f"Speed, memory and error of {what}.")
        _add_own_options(name, command)
        add = command.add_argument
        add("--against", choices=rivals, default=rivals[0], help=f"what it is compared with (default: {rivals[0]})")
        add("--threads", type=_positive, nargs="+", metavar="N", help="CPU threads, each in turn; default: torch's")
        types = DTYPES if name == "hco" else DTYPES[1:]
        add("--dtype", nargs="+", choices=types, default=["float32"], help="default: float32; networks by autocast")
        add("--device", default="cpu", help="cpu (default), cuda, cuda:1, ...")
        add("--rounds", type=_positive, metavar="N", help="of each case; default: what 2 seconds hold, 5 to 201")
        text = "how long a candidate's turn is at least: shorter calls are repeated; 0: one call (default: 5)"
        add("--turn", type=_milliseconds, default=5.0, metavar="MS", help=text)
        add("--clock", choices=("wall", "cpu"), default="wall", help="cpu: processor time, for one thread")
        add("--json", type=Path, metavar="FILE", help="write figures and conditions to this file")
    return parser


def _cases(options: argparse.Namespace):
    """The cases of the chosen benchmark, without their baseline where it is not wanted."""
    module = importlib.import_module(BENCHMARKS[options.benchmark][0])
    for case in getattr(module, options.benchmark)(options):
        if options.against == "none":
            case.candidates.pop(case.baseline, None)
        yield case


def _check_device(device: str) -> None:
    import torch

    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"--device {device}: torch {torch.__version__} sees no CUDA device; try --device cpu")


def rooflines(options: argparse.Namespace) -> dict[int, dict[str, float]]:
    """What the machine reaches with each number of threads."""
    import torch

    from vheatir.utils import timing as measure

    before, found = torch.get_num_threads(), {}
    for threads in options.threads or [before]:
        torch.set_num_threads(threads)
        narrow = torch.float32 if options.device == "cpu" else getattr(torch, options.dtype[0])
        found[threads] = measure.roofline(torch.device(options.device), narrow, options.clock)
    torch.set_num_threads(before)
    return found


def run(
    options: argparse.Namespace,
    report: Callable[[dict[str, Any]], None],
    roofs: dict[int, dict[str, float]] | None = None,
) -> list[dict[str, Any]]:
    """Measure all cases, hand each result to `report`, and return them."""
    import torch

    before = torch.get_num_threads()
    results = []
    try:
        for case in _cases(options):
            for threads in options.threads or [before]:
                how = options.rounds, options.clock, options.turn / 1e3
                for result in measure_case(case, threads, *how, (roofs or {}).get(threads)):
                    results.append(result)
                    report(result)
    finally:
        torch.set_num_threads(before)
    return results


def _line(result: dict[str, Any]) -> str:
    speedup = f"{result['speedup']:6.2f}x" if result["speedup"] else "       "
    return (
        f"{result['case']:<38} {result['threads']:>2} threads  {result['backend']:<15}"
        f"{result['median_us'] / 1e3:>10.3f} ms ± {result['iqr_us'] / 1e3:<8.3f} {speedup}"
        f" {result['peak_mib']:>9.1f} MiB  error {result['error']:.0e}"
    )


def _show(result: dict[str, Any]) -> None:
    sys.stdout.write(_line(result) + "\n")
    sys.stdout.flush()


def _with_kept_heap(argv: list[str]) -> int:
    """Run this command in a process whose C library keeps its heap."""
    root = str(Path(__file__).resolve().parents[2])
    paths = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    environment = (
        KEPT_HEAP | {"KINETO_LOG_LEVEL": "99"} | os.environ | {"PYTHONPATH": paths, "VHEATIR_BENCH_HEAP": "set"}
    )
    return subprocess.run([sys.executable, "-m", "vheatir", "bench", *argv], env=environment, check=False).returncode


def main(argv: list[str]) -> int:
    """Entry of `vheatir bench`."""
    options = _parser().parse_args(argv)
    if options.clock == "cpu" and options.device != "cpu":
        raise UserError(f"--clock cpu measures a processor, not --device {options.device}; leave it out")
    if options.json:
        prepare_output(options.json)
    if options.device == "cpu" and "VHEATIR_BENCH_HEAP" not in os.environ:
        return _with_kept_heap(argv)
    metadata = run_metadata(["vheatir", "bench", *argv])
    metadata["environment"] = {name: os.environ[name] for name in (*KEPT_HEAP, "OMP_NUM_THREADS") if name in os.environ}
    metadata["load_before"] = _load()
    _check_device(options.device)
    roofs = rooflines(options)
    metadata["roofline"] = [{"threads": threads, **roof} for threads, roof in roofs.items()]
    results = run(options, _show, roofs)
    metadata["load_after"] = _load()
    if options.json:
        write_json(options.json, {"metadata": metadata, "results": results})
    return 0


def _load() -> list[float] | None:
    """The system's load averages: what else ran."""
    return [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else None


if __name__ == "__main__":
    from vheatir.cli import run as run_command

    raise SystemExit(run_command(main))
