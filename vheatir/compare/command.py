"""`vheatir compare`: a figure of images before and after, by several methods, beside the truth."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from vheatir.compare.defaults import CROP_SIZE
from vheatir.evaluate.protocol import LEVEL_NAMES, check_json_file
from vheatir.utils.run_metadata import run_metadata, write_json

if TYPE_CHECKING:
    from vheatir.compare.figure import Row


_TASKS = "Gaussian noise, JPEG artifacts, or photographs, which --degraded names"


def _crop(text: str) -> tuple[int, int, int, int]:
    try:
        x, y, width, height = (int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected X,Y,WIDTH,HEIGHT in pixels, got {text!r}") from None
    if min(x, y) < 0 or min(width, height) < 1:
        raise argparse.ArgumentTypeError(f"expected X, Y >= 0 and WIDTH, HEIGHT >= 1, got {text!r}")
    return x, y, width, height


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "vheatir compare",
        description="Degrade clean images, restore them by several methods, and draw crops beside the truth with "
        "PSNR and SSIM of the whole images; on demand error maps and spectra.",
    )
    parser.add_argument("images", nargs="+", type=Path, metavar="CLEAN", help="clean images, a row each")
    parser.add_argument("--task", required=True, choices=tuple(LEVEL_NAMES), help=_TASKS)
    parser.add_argument(
        "--sigma", type=float, metavar="S", help="noise level, 0-255 scale, to add; for photo what nlm assumes"
    )
    parser.add_argument("--quality", type=int, metavar="Q", help="JPEG quality to compress with")
    parser.add_argument("--degraded", nargs="+", type=Path, metavar="FILE", help="one for each clean image, instead")
    parser.add_argument(
        "--methods",
        nargs="+",
        metavar="[LABEL=]METHOD",
        help="columns: input, nlm, shipped names or .safetensors files (default: input, nlm, the shipped weights)",
    )
    parser.add_argument("--gray", action="store_true", help="the gray protocol")
    parser.add_argument(
        "--crop", nargs="+", type=_crop, metavar="X,Y,W,H", help="one for all images or one for each; default: chosen"
    )
    parser.add_argument(
        "--crop-size", type=int, default=CROP_SIZE, metavar="N", help="side of chosen crops (%(default)s)"
    )
    parser.add_argument("--zoom", type=int, metavar="N", help="figure pixels for each pixel of a crop")
    parser.add_argument("--errors", action="store_true", help="add error maps")
    parser.add_argument("--spectra", action="store_true", help="add power spectra")
    parser.add_argument("--device", help="torch device (default: CUDA where there is one, else the CPU)")
    parser.add_argument("--tile", type=int, metavar="N", help="restore in tiles of N pixels; 0: whole images")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write scores, crops and metadata to this file")
    parser.add_argument("-o", "--out", nargs="+", type=Path, required=True, help="figure files: .png, .pdf, .svg")
    return parser


def _show(path: Path, row: "Row") -> None:
    from vheatir.compare.figure import caption

    sys.stdout.write(f"{path}, crop {','.join(map(str, row.crop))}\n")
    sys.stdout.writelines(f"  {one.name:24} {caption(one.scores, True)}\n" for one in row.shown)


def main(argv: list[str]) -> int:
    """Entry of `vheatir compare`."""
    arguments = _parser().parse_args(argv)

    from vheatir.compare.api import compare

    if arguments.json is not None:
        check_json_file(arguments.json, [*arguments.images, *(arguments.degraded or [])])
    result = compare(
        arguments.images,
        arguments.out,
        task=arguments.task,
        sigma=arguments.sigma,
        quality=arguments.quality,
        degraded=arguments.degraded,
        methods=arguments.methods,
        gray=arguments.gray,
        crops=arguments.crop,
        crop_size=arguments.crop_size,
        zoom=arguments.zoom,
        errors=arguments.errors,
        spectra=arguments.spectra,
        device=arguments.device,
        tile=arguments.tile,
        on_row=_show,
    )
    if arguments.json is not None:
        write_json(arguments.json, {"metadata": run_metadata(["vheatir", "compare", *argv]), **result})
    sys.stdout.write(f"written: {', '.join(map(str, arguments.out))}\n")
    return 0
