"""`vheatir restore`: clean up photographs, remove Gaussian noise or JPEG artifacts with trained weights."""

import argparse

from vheatir.errors import UnwrittenError
from vheatir.image_io import MAX_PIXELS
from vheatir.restore.defaults import DEFAULT_CRF, DEFAULT_TASK, MOST_WORKERS, PRECISIONS, TASKS
from vheatir.utils.files import printable
from vheatir.utils.signals import stopped_by_signals

_EPILOG = """\
OUT is a folder. A file goes to OUT/name, a folder's content to OUT/path-below-that-folder, names and suffixes stay.
For one file, OUT may be the name of a file, such as result.png: then the result is that file.
Clips (MP4, MOV, MKV, WebM) need 'vheatir[video]', and are taken by name, not out of folders. Their times, sound and
color tags are kept; after a kill the same command goes on where it was.
HEIC needs `pip install 'vheatir[phone]'`, camera RAW 'vheatir[raw]'; X.NEF becomes a 16-bit X.tif, X.avif X.png.
Gray, color, 8 and 16 bits, floats, alpha, color profile and EXIF are kept. Existing outputs stay unless --overwrite
is given. INPUT and OUT may be fsspec URLs, such as s3://bucket/folder.

examples:
  vheatir restore photo.jpg -o restored
  vheatir restore night/*.jpg -o restored --luma 0.7
  vheatir restore scans/ more/*.jpg -o restored --task jpeg
  vheatir restore clip.mp4 -o clean.mp4

The shipped weights were trained on BSDS500 and are for non-commercial research (see LICENSE-WEIGHTS beside them).
The task photo is for the noise and the compression of photographs, denoise for Gaussian noise alone.

exit status: 0 all done, 1 some files (they are named) or the manifest failed, 2 nothing was done, 130 interrupted.
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "vheatir restore",
        description="Remove noise and the artifacts of JPEG compression from images.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    kinds = "PNG, JPEG, TIFF, BMP, WebP, HEIC, AVIF, camera RAW; MP4, MOV, MKV, WebM and other clips"
    add("inputs", nargs="+", metavar="INPUT", help=f"files, folders, globs or URLs ({kinds})")
    out_help = "folder for the results, made when it does not exist; for one input file also the result's name"
    add("-o", "--output", required=True, metavar="OUT", help=out_help)
    task_help = "photo: noise and compression of photographs (default); denoise: Gaussian noise; jpeg: JPEG artifacts"
    add("--task", default=DEFAULT_TASK, choices=TASKS, help=task_help)
    add("--overwrite", action="store_true", help="replace outputs that exist")
    _add_control(parser.add_argument_group("what the network does").add_argument)
    _add_resources(parser.add_argument_group("memory, speed, many files").add_argument)
    return parser


def _add_control(add) -> None:
    add("--weights", metavar="NAME|PATH", help="a shipped name or a safetensors file (default: the task's)")
    add(
        "--sigma",
        type=float,
        metavar="S",
        help="noise level (0-255) instead of the estimated one, for weights that take a level; "
        "the shipped ones are blind and need none",
    )
    add(
        "--quality",
        type=float,
        metavar="Q",
        help="JPEG quality (0-100) instead of the one read from the file or estimated; from 95 on the task jpeg leaves "
        "an image as it is",
    )
    add(
        "--strength",
        type=float,
        default=1.0,
        metavar="X",
        help="result = input + X * (restored - input), from 0 (the input) to 1 (default)",
    )
    add("--luma", type=float, default=1.0, metavar="X", help="share of the change of brightness that is kept, 0 to 1")
    add("--chroma", type=float, default=1.0, metavar="X", help="share of the change of color that is kept, 0 to 1")
    add("--ensemble", action="store_true", help="mean over eight flips and rotations: better, eight times slower")


def _add_resources(add) -> None:
    add("--device", help="torch device, such as cpu or cuda:0 (default: a GPU when there is one)")
    precision_help = (
        "of the products: float32, bf16, or auto (default): bf16 where it is faster and the PSNR changes by less than "
        "0.01 dB"
    )
    add("--precision", choices=PRECISIONS, default="auto", help=precision_help)
    tile_help = "side of the tiles; 0: the whole image (default: by the image's size and the free memory)"
    add("--tile", type=int, metavar="PIXELS", help=tile_help)
    add("--overlap", type=int, metavar="PIXELS", help="pixels that neighboring tiles share (default: 32)")
    size_help = "refuse images that claim to be larger (default: %(default)g)"
    add("--max-megapixels", type=float, default=MAX_PIXELS / 1e6, metavar="N", help=size_help)
    crf_help = "constant quality of a clip's encoder; lower is better and larger (default: %(default)g)"
    add("--crf", type=float, default=DEFAULT_CRF, metavar="X", help=crf_help)
    workers_help = f"files processed at the same time (default: one per core, at most {MOST_WORKERS})"
    add("--workers", type=int, metavar="N", help=workers_help)
    add("--engine", choices=("local", "ray"), default="local", help="ray: on the machines of a Ray cluster")
    add("--manifest", metavar="FILE", help="JSON lines, one for each input, with its result")
    add("-q", "--quiet", action="store_true", help="show errors, notes and the closing summary only")


@stopped_by_signals()
def main(argv: list[str]) -> int:
    """Restore the named files; the exit status is 0 only when every file was done."""
    arguments = _parser().parse_args(argv)

    from rich.console import Console

    from vheatir.restore.api import restore
    from vheatir.restore.progress import ConsoleProgress

    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    is_listed = True
    try:
        results = restore(
            arguments.inputs,
            arguments.output,
            task=arguments.task,
            weights=arguments.weights,
            sigma=arguments.sigma,
            quality=arguments.quality,
            strength=arguments.strength,
            luma=arguments.luma,
            chroma=arguments.chroma,
            ensemble=arguments.ensemble,
            device=arguments.device,
            precision=arguments.precision,
            tile=arguments.tile,
            overlap=arguments.overlap,
            max_megapixels=arguments.max_megapixels,
            crf=arguments.crf,
            workers=arguments.workers,
            engine=arguments.engine,
            manifest=arguments.manifest,
            overwrite=arguments.overwrite,
            progress=ConsoleProgress(console, quiet=arguments.quiet),
        )
    except KeyboardInterrupt:
        console.print("interrupted; finished outputs are complete, the same command continues with the rest")
        return 130
    except UnwrittenError as error:
        console.print(printable(f"error: {error}"))
        results = error.results
        is_listed = False
    ended = [result.outcome.status for result in results if result.outcome.status != "kept"]
    failed = ended.count("failed")
    if ended or arguments.manifest:
        done = f"{len(ended) - failed} restored into {arguments.output}"
        console.print(printable(f"{done}, {failed} failed" if failed else done))
    return 1 if failed or not is_listed else 0
