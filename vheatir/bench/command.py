"""`vheatir bench`: speed and memory against others, as a file that can be measured again."""

import argparse
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from vheatir.bench.defaults import BENCHMARKS, BLOCKS, DECAYS, DEPTHS, DTYPES, IMAGES, SHAPES, SIDES, STAGE_SIDE
from vheatir.errors import UserError
from vheatir.utils.run_metadata import prepare_output, run_metadata, write_json

# glibc gives large blocks back to the system at once; fetching them anew costs more than the arithmetic. Read by the
# C library when a process starts.
KEPT_HEAP = {"MALLOC_MMAP_THRESHOLD_": "8000000000", "MALLOC_TRIM_THRESHOLD_": "16000000000"}


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
    if not text.isdigit() or not int(text) or int(text) % STAGE_SIDE:
        raise argparse.ArgumentTypeError(f"expected a multiple of {STAGE_SIDE} pixels, got {text!r}")
    return int(text)


def _add_own_options(name: str, command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    if name in ("hco", "block"):
        default = list(SHAPES if name == "hco" else BLOCKS)
        shown = " ".join("x".join(map(str, shape)) for shape in default)
        add("--shape", type=_shape, nargs="+", default=default, metavar="BxHxWxC", help=f"default: {shown}")
    if name == "hco":
        form = command.add_mutually_exclusive_group()
        for kind, text in (("raw", "only with the decay itself"), ("prepared", "only with a prepared decay")):
            form.add_argument(f"--{kind}", action="store_const", const=(kind,), dest="forms", help=text)
        command.set_defaults(forms=("raw", "prepared"))
        text = "those of a restoration network (default), or random numbers from 0 to 1; docs/performance.md has more"
        add("--decay", choices=DECAYS, default="network", help=text)
    if name == "model":
        add("--size", choices=("tiny", "small", "base"), default="tiny", help="default: tiny")
        add("--side", type=_stage_side, nargs="+", default=list(SIDES), help="pixels; default: 224 512 1024")
    if name == "restore":
        add("--image", type=_size, nargs="+", default=list(IMAGES), metavar="HxW", help="pixels")
        add("--dim", type=_positive, default=64, help="channels of both networks (default: 64)")
        add("--depths", type=_positive, nargs="+", default=list(DEPTHS), help="blocks of each group (default: 6 6 6 6)")
    else:
        add("--backward", action="store_true", help="with the backward too")
    if name in ("model", "restore"):
        add("--batch", type=_positive, default=1, help="images at once (default: 1)")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("vheatir bench", description=(__doc__ or "").partition("\n")[0])
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
        text = "least length of a sample: shorter calls are repeated within it; 0: one call (default: 5)"
        add("--turn", type=_milliseconds, default=5.0, metavar="MS", dest="turn_ms", help=text)
        add("--clock", choices=("wall", "cpu"), default="wall", help="cpu: processor time, for one thread")
        add("--json", type=Path, metavar="FILE", help="write results and conditions to this file")
    return parser


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
    options = vars(_parser().parse_args(argv))
    path = options.pop("json")
    device = options["device"]
    clock = options["clock"]
    if clock == "cpu" and device != "cpu":
        raise UserError(f"--clock cpu measures a processor, not --device {device}; leave it out")
    if path:
        prepare_output(path)
    if device == "cpu" and "VHEATIR_BENCH_HEAP" not in os.environ:
        return _with_kept_heap(argv)

    from vheatir.bench.api import bench, check_device, rooflines

    metadata = run_metadata(["vheatir", "bench", *argv])
    metadata["environment"] = {name: os.environ[name] for name in (*KEPT_HEAP, "OMP_NUM_THREADS") if name in os.environ}
    metadata["load_before"] = _load()
    check_device(device)
    roofs = rooflines(options["threads"], device, options["dtype"][0], clock)
    metadata["roofline"] = [{"threads": threads, **roof} for threads, roof in roofs.items()]
    results = bench(**options, roofs=roofs, on_result=_show)
    metadata["load_after"] = _load()
    if path:
        write_json(path, {"metadata": metadata, "results": results})
    return 0


def _load() -> list[float] | None:
    """The system's load averages: what else ran."""
    return [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else None
