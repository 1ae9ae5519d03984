"""How speed and memory are measured: interleaved rounds in one process, medians, peak of the allocations."""

import math
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
_LEAST_ROUNDS = 5
_MOST_ROUNDS = 201
_PROFILER_LEVEL = "KINETO_LOG_LEVEL"  # read when the first profiler begins


@dataclass(frozen=True)
class Timing:
    """Times of one candidate's call, one for each round.

    Attributes:
        calls: in each round, one after another; a time is their mean.
    """

    microseconds: tuple[float, ...]
    calls: int = 1

    @property
    def median_us(self) -> float:
        return statistics.median(self.microseconds)

    @property
    def iqr_us(self) -> float:
        """Distance of the quartiles; NaN for a single time."""
        if len(self.microseconds) < 2:
            return math.nan
        first, _, third = statistics.quantiles(self.microseconds, n=4)
        return third - first

    def speedup_over(self, other: "Timing") -> float:
        """How many times faster than `other`: the median of the rounds' ratios, so that a slow phase hits both."""
        pairs = zip(other.microseconds, self.microseconds, strict=True)
        return statistics.median(theirs / ours for theirs, ours in pairs)


def _synchronizer(device: torch.device) -> Callable[[], None]:
    """What drains the queue of `device`, which need not be the current one of torch."""
    return (lambda: torch.cuda.synchronize(device)) if device.type == "cuda" else lambda: None


def interleave(
    candidates: Mapping[str, Callable[[], object]],
    device: torch.device,
    *,
    rounds: int | None = None,
    seconds: float = 2.0,
    warmup: int = 2,
    clock: str = "wall",
    turn: float = 0.0,
) -> dict[str, Timing]:
    """Time all candidates in turn, round after round; every second round in reverse order.

    A short call would otherwise be measured with caches that hold nothing but what the candidate before it needed.

    Args:
        rounds: how many; None: as many as fit into `seconds`, within 5 and 201.
        warmup: untimed rounds before, at least one; only one where that takes longer than `seconds`.
        clock: "wall", or "cpu" for the processor time of all threads, in which waiting for a core does not count.
        turn: least seconds of a sample; shorter calls are repeated within it.
        candidates: functions without arguments, by name.
        device: its queue is drained around each call.
        seconds: see `rounds`.
    """
    synchronize = _synchronizer(device)
    now = CLOCKS[clock]

    def mean(function: Callable[[], object], calls: int) -> float:
        synchronize()
        start = now()
        for _ in range(calls):
            result = function()
        synchronize()
        elapsed = now() - start
        del result  # the last one is freed outside the measured time, for every candidate alike
        return elapsed / calls

    for _ in range(max(1, warmup)):
        took = {name: mean(function, 1) for name, function in candidates.items()}
        if sum(took.values()) > seconds:  # long calls are warm after the first
            break
    calls = {name: max(1, int(turn / max(one, 1e-6))) for name, one in took.items()}
    if rounds is None:
        round_takes = sum(one * calls[name] for name, one in took.items())
        rounds = max(_LEAST_ROUNDS, min(_MOST_ROUNDS, int(seconds / max(round_takes, 1e-6))))
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(rounds):
        for name in list(candidates) if number % 2 == 0 else reversed(list(candidates)):
            times[name].append(mean(candidates[name], calls[name]) * 1e6)
    return {name: Timing(tuple(values), calls[name]) for name, values in times.items()}


def peak_mib(function: Callable[[], object], device: torch.device) -> float:
    """Most memory in use at once during a call, above what was in use before it, in MiB; the result counts.

    On CUDA the allocator's own maximum; on a CPU the allocations that torch reports to its profiler (scratch memory
    inside vendor libraries is not among them).
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    options = {"activities": [torch.profiler.ProfilerActivity.CPU], "profile_memory": True, "acc_events": True}
    with _quiet_profiler(), torch.profiler.profile(**options) as profiler:
        function()
    kineto: Any = profiler.profiler  # of a torch without stubs for it
    events = [event for event in kineto.kineto_results.events() if event.name() == "[memory]"]
    used = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        used += event.nbytes()
        peak = max(peak, used)
    return peak / 2**20


@contextmanager
def _quiet_profiler() -> Iterator[None]:
    """No lines of the profiler's own on stderr, such as an error where there is no GPU; a level that is set holds."""
    if _PROFILER_LEVEL in os.environ:
        yield
        return
    os.environ[_PROFILER_LEVEL] = "99"
    try:
        yield
    finally:
        del os.environ[_PROFILER_LEVEL]


def roofline(device: torch.device, dtype: torch.dtype, clock: str = "wall") -> dict[str, float]:
    """What this machine reaches with the threads that are set: the best of some copies and matrix products.

    Args:
        device: what is measured.
        dtype: of the matrices.
        clock: see `interleave`.

    Returns:
        copy_gb_s: bytes read and written in a second by copying 64 MiB; gemm_gflop_s: products of 2048 x 2048 matrices.
    """
    source, target = (torch.ones(1 << 24, device=device) for _ in range(2))
    matrix = torch.ones(2048, 2048, device=device, dtype=dtype)
    tasks = {"copy": lambda: target.copy_(source), "gemm": lambda: matrix @ matrix}
    timings = interleave(tasks, device, rounds=5, warmup=1, clock=clock)
    fastest = {name: min(timing.microseconds) for name, timing in timings.items()}
    return {
        "copy_gb_s": round(2 * source.nbytes / fastest["copy"] / 1e3, 1),
        "gemm_gflop_s": round(2 * 2048**3 / fastest["gemm"] / 1e3, 1),
    }
