"""`vheatir bench`: speed and memory against the published formulation, as a file that can be measured again.

A benchmark is a function that yields cases; a case is a name, candidates to run in turn, and the values they must give.
`BENCHMARKS` names them; `measure_case` is the same for all: first every candidate is checked against float64, then all
are timed in turn within one process.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vheatir.errors import UserError
from vheatir.results import prepare_output, run_metadata, write_json

if TYPE_CHECKING:
    import torch

SHAPES = (
    *("8x56x56x96", "8x28x28x192", "8x14x14x384", "8x7x7x768"),
    *("1x128x128x64", "1x256x256x48", "1x512x512x48", "1x481x321x48"),
)
DTYPES = ("float64", "float32", "bfloat16", "float16")
BASELINE = "published"
# Largest error against float64 as a share of the largest value. The published formulation builds its tables in
# float32 and computes 16-bit maps in 16 bits, so that more is allowed to it: it is there to be timed.
TOLERANCE = {"float64": 1e-12, "float32": 1e-5, "bfloat16": 2**-7, "float16": 2**-10}
BASELINE_TOLERANCE = {"float64": 1e-3, "float32": 1e-3, "bfloat16": 0.2, "float16": 0.05}
# glibc gives large blocks back to the system at once; fetching them anew costs more than the arithmetic. Read by the
# C library when a process starts.
KEPT_HEAP = {"MALLOC_MMAP_THRESHOLD_": "8000000000", "MALLOC_TRIM_THRESHOLD_": "16000000000"}


@dataclass
class Case:
    """One thing measured: `candidates` by name, each returning tensors by name, which `expected` holds in float64."""

    name: str
    dtype: str
    device: "torch.device"
    candidates: Mapping[str, Callable[[], dict[str, "torch.Tensor"]]]
    expected: dict[str, "torch.Tensor"]
    about: dict[str, Any] = field(default_factory=dict)


def errors(case: Case) -> dict[str, float]:
    """Largest error of each candidate over all its values, as a share of the largest value expected.

    Raises:
        UserError: a candidate misses its tolerance; nothing wrong is timed.
    """
    found = {}
    for name, candidate in case.candidates.items():
        limit = (BASELINE_TOLERANCE if name == BASELINE else TOLERANCE)[case.dtype]
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


def measure_case(case: Case, threads: int, rounds: int | None, clock: str = "wall") -> list[dict[str, Any]]:
    """One result for each candidate of the case."""
    import torch

    from vheatir import measure

    torch.set_num_threads(threads)
    found = errors(case)
    timings = measure.interleave(case.candidates, case.device, rounds=rounds, clock=clock)
    baseline = timings.get(BASELINE)
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
            "speedup": round(timing.speedup_over(baseline), 3) if baseline else None,
            "peak_mib": round(measure.peak_mib(case.candidates[name], case.device), 2),
            "error": float(f"{found[name]:.2e}"),
        }
        for name, timing in timings.items()
    ]


def _gradients(function: Callable, x: "torch.Tensor", decay: Any, cotangent: "torch.Tensor") -> dict:
    """y and the gradients of <y, cotangent>; the decay's where it asks for one."""
    import torch

    wanted = {"dx": x} | ({"ddecay": decay} if getattr(decay, "requires_grad", False) else {})
    y = function(x, decay)
    return {"y": y.detach()} | dict(zip(wanted, torch.autograd.grad(y, list(wanted.values()), cotangent), strict=True))


def _inference(function: Callable, *inputs: Any) -> dict:
    import torch

    with torch.inference_mode():
        return {"y": function(*inputs)}


def hco_case(
    shape: tuple[int, int, int, int], dtype: str, device: "torch.device", backward: bool, forms: tuple[str, ...]
) -> Case:
    """The operator on contiguous channels-last maps, the decay at hand: forward, or forward and backward.

    With the form "prepared" alone a backward makes the gradient of the maps only, in every candidate.
    """
    import torch

    from vheatir.kernels import paths
    from vheatir.kernels.ops import heat_conduction, prepare_decay
    from vheatir.kernels.published import PublishedConduction
    from vheatir.kernels.reference import hco_reference

    generator = torch.Generator().manual_seed(0)
    wide_x = torch.randn(shape, generator=generator, dtype=torch.float64)
    wide_decay = torch.rand(shape[1:], generator=generator, dtype=torch.float64)
    x, decay = (t.to(device, getattr(torch, dtype)) for t in (wide_x, wide_decay))
    cotangent = torch.randn(shape, generator=generator, dtype=torch.float64).to(x)
    run = (lambda f, *inputs: _gradients(f, *inputs, cotangent)) if backward else _inference
    trained = backward and "raw" in forms
    prepared = prepare_decay(decay)
    x.requires_grad_(backward), decay.requires_grad_(trained)
    reference_inputs = [t.detach().double().requires_grad_(t.requires_grad) for t in (x, decay)]
    expected = (
        _gradients(hco_reference, *reference_inputs, cotangent.double())
        if backward
        else _inference(hco_reference, *reference_inputs)
    )
    published = PublishedConduction(shape[1], shape[2], getattr(torch, dtype), device)
    candidates = {BASELINE: lambda: run(published, x, decay)}
    ours = paths.CPU_KERNEL if prepared.path == paths.CPU_KERNEL else "torch"
    if "raw" in forms:
        candidates[ours] = lambda: run(heat_conduction, x, decay)
    if "prepared" in forms:
        candidates[f"{ours} prepared"] = lambda: run(heat_conduction, x, prepared)
    what = ("fwd+bwd" if trained else "fwd+bwd of x") if backward else "fwd"
    about = {"shape": list(shape), "dtype": dtype, "path": prepared.path}
    return Case(f"hco {what} {'x'.join(map(str, shape))} {dtype}", dtype, device, candidates, expected, about)


def hco(options: argparse.Namespace) -> Iterator[Case]:
    """Cases of `vheatir bench hco`."""
    import torch

    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"--device {options.device}: torch {torch.__version__} sees no CUDA device; try --device cpu")
    forms = options.forms or ("raw", "prepared")
    # A backward to a prepared decay does less: it is a case of its own.
    rounds = [(False, tuple(forms))] + ([(True, (form,)) for form in forms] if options.backward else [])
    for dtype in options.dtype:
        for shape in options.shape:
            for backward, chosen in rounds:
                case = hco_case(shape, dtype, device, backward, chosen)
                if options.against == "none":
                    case.candidates = {k: v for k, v in case.candidates.items() if k != BASELINE}
                yield case


BENCHMARKS: dict[str, Callable[[argparse.Namespace], Iterator[Case]]] = {"hco": hco}


def _shape(text: str) -> tuple[int, ...]:
    sizes = text.lower().split("x")
    if len(sizes) != 4 or not all(size.isdigit() and int(size) for size in sizes):
        raise argparse.ArgumentTypeError(f"expected BxHxWxC with four whole numbers from 1 on, got {text!r}")
    return tuple(map(int, sizes))


def _positive(text: str) -> int:
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 on, got {text!r}")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("vheatir bench", description=__doc__.split("\n", 1)[0])
    commands = parser.add_subparsers(dest="benchmark", required=True, metavar="BENCHMARK")
    command = commands.add_parser("hco", help="the heat conduction operator", description=hco_case.__doc__)
    add = command.add_argument
    default = [_shape(text) for text in SHAPES]
    add("--shape", type=_shape, nargs="+", default=default, metavar="BxHxWxC", help=f"default: {' '.join(SHAPES)}")
    add("--threads", type=_positive, nargs="+", metavar="N", help="CPU threads, each in turn; default: torch's number")
    add("--dtype", nargs="+", choices=DTYPES, default=["float32"], help="default: float32")
    add("--device", default="cpu", help="cpu (default), cuda, cuda:1, ...")
    form = command.add_mutually_exclusive_group()
    for name, text in (("raw", "only with the decay itself"), ("prepared", "only with a prepared decay")):
        form.add_argument(f"--{name}", action="store_const", const=(name,), dest="forms", help=text)
    add("--backward", action="store_true", help="forward with backward too")
    add("--against", choices=(BASELINE, "none"), default=BASELINE, help="baseline (default: published)")
    add(
        "--rounds", type=_positive, metavar="N", help="rounds of each case; default: what fits into 2 seconds, 5 to 201"
    )
    add(
        "--clock", choices=("wall", "cpu"), default="wall", help="cpu: processor time, for one thread on a busy machine"
    )
    add("--json", type=Path, metavar="FILE", help="write figures and conditions to this file")
    return parser


def run(options: argparse.Namespace, report: Callable[[dict[str, Any]], None]) -> list[dict[str, Any]]:
    """Measure all cases, hand each result to `report`, and return them."""
    import torch

    before = torch.get_num_threads()
    results = []
    try:
        for case in BENCHMARKS[options.benchmark](options):
            for threads in options.threads or [before]:
                for result in measure_case(case, threads, options.rounds, options.clock):
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
    root = str(Path(__file__).resolve().parent.parent)
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
    results = run(options, _show)
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
