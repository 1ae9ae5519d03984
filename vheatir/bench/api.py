"""`vheatir.bench`: speed and memory against others, checked against float64 before anything is timed.

A benchmark is a function that yields cases; a case is a name, candidates to run in turn, and the values they must give.
`BENCHMARKS` names them; `measure_case` is the same for all: first every candidate is checked, then all are timed in
turn within one process.
"""

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from vheatir.bench.case import Case
from vheatir.bench.defaults import BENCHMARKS, DECAYS, DTYPES, STAGE_SIDE
from vheatir.errors import UserError
from vheatir.utils import timing
from vheatir.utils.devices import device_named

# Largest error against float64 as a share of the largest value. The published formulation builds its tables in
# float32 and computes 16-bit maps in 16 bits, so that more is allowed to it: it is there to be timed.
TOLERANCE = {"float64": 1e-12, "float32": 1e-5, "bfloat16": 2**-7, "float16": 2**-10}
BASELINE_TOLERANCE = {"float64": 1e-3, "float32": 1e-3, "bfloat16": 0.2, "float16": 0.05}


def errors(case: Case) -> dict[str, float]:
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
        worst = max(shares, key=lambda key: math.inf if math.isnan(shares[key]) else shares[key])
        if not shares[worst] <= limit:
            raise UserError(
                f"{case.name}: {worst} of {name} is off by {shares[worst]:.3g} of the largest value, allowed "
                f"{limit:.3g}; nothing was timed. Please report this with the output of `vheatir info`"
            )
        found[name] = shares[worst]
    return found


def measure_case(
    case: Case,
    threads: int,
    rounds: int | None,
    clock: str = "wall",
    turn: float = 0.0,
    roof: dict[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Check every candidate of a case, then time all of them in turn.

    Args:
        case: what is measured.
        threads: CPU threads, set for torch.
        rounds: of the case; None: as many as two seconds hold, 5 to 201.
        clock: "wall", or "cpu" for processor time.
        turn: least seconds of a sample; shorter calls are repeated within it.
        roof: what `vheatir.utils.timing.roofline` found for these threads.

    Returns:
        One result for each candidate.

    Raises:
        UserError: a candidate misses its tolerance.
    """
    torch.set_num_threads(threads)
    found = errors(case)
    timings = timing.interleave(case.candidates, case.device, rounds=rounds, clock=clock, turn=turn)
    baseline = timings.get(case.baseline)
    return [
        {
            "case": case.name,
            "backend": name,
            **case.about,
            "threads": threads,
            "clock": clock,
            "median_us": round(one.median_us, 1),
            "iqr_us": round(one.iqr_us, 1),
            "rounds": len(one.microseconds),
            "calls": one.calls,
            "speedup": round(one.speedup_over(baseline), 3) if baseline else None,
            "peak_mib": round(timing.peak_mib(case.candidates[name], case.device), 2),
            "error": float(f"{found[name]:.2e}"),
            **_shares(case, name, one.median_us, roof or {}),
        }
        for name, one in timings.items()
    ]


def _shares(case: Case, candidate: str, microseconds: float, roof: dict[str, Any]) -> dict[str, float]:
    """Of this machine's matrix products and copies: how near a candidate comes to them, where its work is known.

    On a GPU, whose products of other types are many times as fast or slow, only where the roof is of the case's type.
    """
    shares = {}
    if flops := case.flops.get(candidate):
        shares["gflop_s"] = round(flops / microseconds / 1e3, 1)
        of_this_type = case.device.type == "cpu" or roof.get("dtype") == case.dtype
        if "gemm_gflop_s" in roof and of_this_type:
            shares["share_of_gemm"] = float(f"{flops / microseconds / 1e3 / roof['gemm_gflop_s']:.3g}")
    if case.traffic and "copy_gb_s" in roof:
        shares["share_of_copy"] = float(f"{case.traffic / microseconds / 1e3 / roof['copy_gb_s']:.3g}")
    return shares


def rooflines(
    threads: Sequence[int] | None = None, device: str = "cpu", dtype: str = "float32", clock: str = "wall"
) -> dict[int, dict[str, Any]]:
    """What the machine reaches with each number of threads, see `vheatir.utils.timing.roofline`.

    Args:
        threads: CPU threads, each in turn; those of torch by default.
        device: where it is measured.
        dtype: of the matrix products on a GPU; those on a CPU are float32.
        clock: "wall" or "cpu".

    Returns:
        By number of threads: that, and "dtype", the type of the matrix products.
    """
    before = torch.get_num_threads()
    found = {}
    narrow = torch.float32 if device == "cpu" else getattr(torch, dtype)
    try:
        for count in threads or [before]:
            torch.set_num_threads(count)
            roof = timing.roofline(torch.device(device), narrow, clock)
            found[count] = {**roof, "dtype": str(narrow).removeprefix("torch.")}
    finally:
        torch.set_num_threads(before)
    return found


def bench(  # long function: most of it says what its arguments mean
    benchmark: str,
    *,
    against: str | None = None,
    threads: Sequence[int] | None = None,
    dtype: Sequence[str] = ("float32",),
    device: str = "cpu",
    rounds: int | None = None,
    turn_ms: float = 5.0,
    clock: str = "wall",
    roofs: dict[int, dict[str, Any]] | None = None,
    on_result: Callable[[dict[str, Any]], None] | None = None,
    **options: Any,
) -> list[dict[str, Any]]:
    """Measure the speed, memory and error of a part of the project beside what it is compared with.

    `vheatir bench` runs in a process whose C library keeps its heap (`KEPT_HEAP` of `vheatir.bench.command`); called
    from Python, set these variables before the process starts for times that compare with its.

    Args:
        benchmark: "hco", "block", "model" or "restore".
        against: what it is compared with, see `BENCHMARKS`; "none" for nothing.
        threads: CPU threads, each in turn; those of torch by default.
        dtype: names of torch's types; for networks by autocast.
        device: cpu, cuda, cuda:1, ...
        rounds: of each case; by default what two seconds hold, 5 to 201.
        turn_ms: least milliseconds of a sample; shorter calls are repeated within it; 0: one call.
        clock: "wall", or "cpu" for processor time, for one thread.
        roofs: what `rooflines` found, for the shares of it in the results.
        on_result: called with each result when it is there.
        **options: of the benchmark: see `vheatir.bench.operator.hco`, `vheatir.bench.operator.block`,
            `vheatir.bench.classifier.model`, `vheatir.bench.restoration.restore`.

    Returns:
        One result for each case, number of threads and candidate.

    Raises:
        UserError: an unknown benchmark or value, a missing device, or a candidate that misses its tolerance.
    """
    if benchmark not in BENCHMARKS:
        raise UserError(f"unknown benchmark {benchmark!r}; known: {', '.join(BENCHMARKS)}")
    _check_values({"dtype": dtype, "threads": threads, "rounds": rounds, "clock": clock, **options})
    _check_networks(benchmark, dtype, options)
    if clock == "cpu" and device != "cpu":
        raise UserError(f"--clock cpu measures a processor, not --device {device}; leave it out")
    check_device(device)
    module, _, rivals = BENCHMARKS[benchmark]
    against = rivals[0] if against is None else against
    if against not in rivals:
        raise UserError(f"{benchmark} is compared with {' or '.join(rivals)}, not with {against!r}")
    if benchmark in ("model", "restore"):
        options["against"] = against
    before = torch.get_num_threads()
    results = []
    try:
        for case in getattr(importlib.import_module(module), benchmark)(dtype=dtype, device=device, **options):
            if against == "none":
                case.candidates.pop(case.baseline, None)
            for count in threads or [before]:
                for result in measure_case(case, count, rounds, clock, turn_ms / 1e3, (roofs or {}).get(count)):
                    results.append(result)
                    if on_result is not None:
                        on_result(result)
    finally:
        torch.set_num_threads(before)
    return results


# What each argument may hold: names, or None for whole numbers from 1 on.
_SEVERAL = {"dtype": DTYPES, "forms": ("raw", "prepared"), "threads": None, "side": None, "depths": None}
_ONE = {"clock": tuple(timing.CLOCKS), "decay": DECAYS, "size": ("tiny", "small", "base")}
_ONE |= {"rounds": None, "batch": None, "dim": None}
_SIZES = {"shape": 4, "image": 2}  # numbers in each of several sizes


def _check_values(arguments: Mapping[str, Any]) -> None:
    """UserError for values that the command line refuses: a wrong decay would be measured as another one."""
    for name, value in arguments.items():
        if value is None:
            continue
        if name in _SEVERAL:
            known = _SEVERAL[name]
            wanted = f"a list of {'whole numbers from 1 on' if known is None else ', '.join(known)}"
            right = _is_list(value) and all(_is_value(one, known) for one in value)
        elif name in _ONE:
            known = _ONE[name]
            wanted = "a whole number from 1 on" if known is None else " or ".join(known)
            right = _is_value(value, known)
        elif name in _SIZES:
            wanted = f"a list of tuples of {_SIZES[name]} whole numbers from 1 on"
            right = _is_list(value) and all(
                _is_list(size) and len(size) == _SIZES[name] and all(_is_value(side, None) for side in size)
                for size in value
            )
        else:
            continue
        if not right:
            raise UserError(f"{name}: expected {wanted}, got {value!r}")


def _check_networks(benchmark: str, dtype: Sequence[str], options: Mapping[str, Any]) -> None:
    """UserError for what networks do not take, though the operator does; values are of the right kind."""
    if benchmark != "hco" and "float64" in dtype:
        raise UserError(f"dtype: {benchmark} runs in float32, or by autocast in bfloat16 or float16, got 'float64'")
    odd = [side for side in options.get("side") or () if side % STAGE_SIDE]
    if odd:
        raise UserError(f"side: expected multiples of {STAGE_SIDE} pixels, got {odd[0]}")


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 0


def _is_value(value: Any, known: tuple[str, ...] | None) -> bool:
    return value in known if known is not None else isinstance(value, int) and value >= 1


def check_device(device: str) -> None:
    """UserError where torch sees no such device."""
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"--device {device}: torch {torch.__version__} sees no CUDA device; try --device cpu")
    device_named(device)
