"""`vheatir evaluate`: PSNR, SSIM and PSNR-B on folders of clean images, by the protocol of the published tables."""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vheatir.errors import UnwrittenError, UserError
from vheatir.evaluate.protocol import COMMON_PROTOCOL, LEVEL_NAMES, LEVELS, METRICS, PROTOCOL
from vheatir.metrics import PERCEPTUAL
from vheatir.restore.defaults import PRECISIONS
from vheatir.utils.run_metadata import prepare_output, run_metadata, write_json

WEIGHTS_NONE = "none"  # --weights none: measure the degraded input only


def score_table(results: Sequence[dict[str, Any]]) -> str:
    """The results as aligned text: one line for each folder and level."""
    sides = ["input", "restored"] if any(result["restored"] for result in results) else ["input"]
    extra = [name for name in results[0]["input"] if name not in METRICS]
    names = "   PSNR  SSIM   PSNR-B" + "".join(f" {name.upper():>7}" for name in extra)
    lines = [
        f"{'data':<16} {'level':>12} {'images':>6}" + "".join(f"   {side:<{len(names) - 3}}" for side in sides),
        " " * 36 + names * len(sides),
    ]
    for result in results:
        cells = ""
        for item in (result[side] for side in sides if result[side]):
            cells += f"   {item['psnr']:5.2f} {item['ssim']:.4f}  {item['psnrb']:5.2f}"
            cells += "".join(f" {item[name]:7.4f}" for name in extra)
        level = f"{LEVEL_NAMES[result['task']]} {result['level']:g}"
        if result["task"] == "photo" and not result["level"]:
            level = "as taken"
        lines.append(f"{result['data']:<16} {level:>12} {result['images']:>6}{cells}")
    return "\n".join(line.rstrip() for line in lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "vheatir evaluate",
        description="Degrade clean images by the published protocol, restore them, and measure PSNR, SSIM and PSNR-B.",
    )
    parser.add_argument(
        "--task", required=True, choices=LEVELS, help="Gaussian noise, JPEG artifacts, or pairs of photographs"
    )
    parser.add_argument(
        "--data",
        required=True,
        nargs="+",
        metavar="DIR",
        help="folders of clean images; for photo, of pairs NAME_real.* and NAME_mean.*",
    )
    color = parser.add_mutually_exclusive_group()
    color.add_argument("--gray", action="store_true", help="the gray protocol")
    color.add_argument("--color", action="store_true", help="the color protocol")
    parser.add_argument(
        "--sigma",
        nargs="+",
        type=float,
        metavar="S",
        help="noise levels, 0-255 scale (15 25 50); for photo, what nlm and bm3d assume (5)",
    )
    parser.add_argument("--quality", nargs="+", type=int, metavar="Q", help="JPEG qualities (10 20 30 40)")
    parser.add_argument(
        "--weights",
        metavar="NAME_OR_PATH",
        help=f"shipped name or .safetensors file (default: the shipped ones); {WEIGHTS_NONE}: measure the input only",
    )
    parser.add_argument(
        "--method",
        choices=("vheatir", "nlm", "bm3d"),
        default="vheatir",
        help="nlm: non-local means, bm3d: the package of that name; both to compare",
    )
    parser.add_argument("--device", help="torch device (default: CUDA where there is one, else the CPU)")
    parser.add_argument(
        "--tile", type=int, metavar="N", help="restore in overlapping tiles of N pixels; 0: whole images"
    )
    parser.add_argument("--precision", choices=PRECISIONS, default="float32", help="of the products (default: float32)")
    parser.add_argument(
        "--ensemble", action="store_true", help="mean over eight flips and rotations: better, eight times slower"
    )
    metrics_help = "metrics beside PSNR, SSIM and PSNR-B (docs/evaluation.md says what they need)"
    parser.add_argument("--metrics", nargs="+", choices=PERCEPTUAL, default=[], help=metrics_help)
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N images of each folder")
    parser.add_argument(
        "--json", type=Path, metavar="OUT", help="write metrics of every image and metadata to this file"
    )
    parser.add_argument(
        "--save-images", type=Path, metavar="DIR", help="write the restored images as PNG below this folder"
    )
    return parser


def _write(path: Path, found: dict[str, Any], unwritten: UnwrittenError | None) -> None:
    """Write the results; where that fails too, the error says both."""
    try:
        write_json(path, found)
    except UserError as error:
        if unwritten is None:
            raise
        raise UnwrittenError(f"{unwritten}; {error}", unwritten.results) from error


def main(argv: list[str]) -> int:
    """Entry of `vheatir evaluate`."""
    options = _parser().parse_args(argv)

    from vheatir.evaluate.api import checked_levels, evaluate
    from vheatir.evaluate.methods import CLASSIC, open_method

    if options.task != "photo" and not (options.gray or options.color):
        raise UserError(f"--task {options.task} needs --color or --gray, the protocol to follow")
    if options.task == "jpeg":
        levels = options.quality
        others = options.sigma
    else:
        levels = options.sigma
        others = options.quality
    if others is not None:
        raise UserError(f"--task {options.task} takes --{LEVEL_NAMES[options.task]}, not the levels of the other task")
    levels = checked_levels(options.task, levels, options.method)
    if options.json is not None:
        prepare_output(options.json)
    method = None
    about = {"method": None, "weights": None}
    if options.weights != WEIGHTS_NONE or options.method in CLASSIC:
        method, about = open_method(
            options.method,
            options.task,
            options.gray,
            options.weights,
            options.device,
            options.tile,
            options.precision,
            options.ensemble,
        )
    start = time.perf_counter()
    unwritten = None
    try:
        results = evaluate(
            options.data,
            options.task,
            levels,
            gray=options.gray,
            method=method,
            device=options.device,
            metrics=options.metrics,
            save_images=options.save_images,
            limit=options.limit,
            progress=True,
        )
    except UnwrittenError as error:
        results = error.results
        unwritten = error
    sys.stdout.write(score_table(results) + "\n")
    if options.json is not None:
        protocol = f"{PROTOCOL[options.task]}; {COMMON_PROTOCOL}"
        about |= {"protocol": protocol, "limit": options.limit, "seconds": round(time.perf_counter() - start, 3)}
        found = {"results": results, "metadata": run_metadata(["vheatir", "evaluate", *argv]) | about}
        _write(options.json, found, unwritten)
    if unwritten is not None:
        raise unwritten
    return 0
