"""`vheatir restore`: denoise pictures or remove JPEG artefacts with trained weights."""

import argparse
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vheatir.errors import UserError
from vheatir.image_io import MAX_PIXELS
from vheatir.restore import locations
from vheatir.restore.jobs import Job, plan_jobs
from vheatir.restore.manifest import Manifest
from vheatir.restore.one_file import FileOptions
from vheatir.restore.restorer import MAX_LEVEL, TASKS, Restorer
from vheatir.restore.workers import Report, run
from vheatir.utils.files import printable

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Restorer", "main"]

_MOST_WORKERS = 4  # by default; each holds a picture, and the network works for one at a time

_EPILOG = """\
OUT is a folder. A file goes to OUT/name, a folder's content to OUT/path-below-that-folder, names and suffixes stay.
Gray, colour, 8 and 16 bits, floats, alpha, colour profile and EXIF are kept. Existing outputs stay unless --overwrite
is given. INPUT and OUT may be fsspec URLs, such as s3://bucket/folder.

examples:
  vheatir restore photo.png -o restored --task denoise
  vheatir restore scans/ more/*.jpg -o restored --task jpeg

The shipped weights were trained on BSDS500 and are for non-commercial research (see LICENSE-WEIGHTS beside them).
The denoising weights were made for Gaussian noise; they are not for the noise of cameras.

exit status: 0 all done, 1 some files failed (they are named), 2 nothing was done, 130 interrupted.
"""


@dataclass(frozen=True)
class Settings:
    """How to make the Restorer; small and plain, so that it can be sent to other machines."""

    task: str
    weights: str | None
    device: str | None
    tile: int | None
    overlap: int | None
    strength: float
    ensemble: bool

    def restorer(self) -> Restorer:
        return Restorer(
            self.task,
            self.weights,
            self.device,
            self.tile,
            self.overlap,
            strength=self.strength,
            ensemble=self.ensemble,
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "vheatir restore",
        description="Denoise pictures, or remove the artefacts of JPEG compression.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("inputs", nargs="+", metavar="INPUT", help="files, folders, globs or URLs (PNG, JPEG, TIFF, BMP, WebP)")
    add("-o", "--output", required=True, metavar="OUT", help="folder for the results; made when it does not exist")
    add("--task", required=True, choices=TASKS, help="denoise: Gaussian noise; jpeg: JPEG artefacts")
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
        help="JPEG quality (0-100) instead of the one read from the file or estimated, likewise",
    )
    add(
        "--strength",
        type=float,
        default=1.0,
        metavar="X",
        help="result = input + X * (restored - input), from 0 (the input) to 1 (default)",
    )
    add("--ensemble", action="store_true", help="mean over eight flips and rotations: better, eight times slower")


def _add_resources(add) -> None:
    add("--device", help="torch device, such as cpu or cuda:0 (default: a GPU when there is one)")
    tile_help = "side of the tiles; 0: the whole image (default: by the image's size and the free memory)"
    add("--tile", type=int, metavar="PIXELS", help=tile_help)
    add("--overlap", type=int, metavar="PIXELS", help="pixels that neighbouring tiles share (default: 32)")
    size_help = "refuse pictures that claim to be larger (default: %(default)g)"
    add("--max-megapixels", type=float, default=MAX_PIXELS / 1e6, metavar="N", help=size_help)
    workers_help = f"files in work at the same time (default: one per core, at most {_MOST_WORKERS})"
    add("--workers", type=int, metavar="N", help=workers_help)
    add("--engine", choices=("local", "ray"), default="local", help="ray: on the machines of a Ray cluster")
    add("--manifest", metavar="FILE", help="JSON lines in which every input stands once, with what became of it")
    add("-q", "--quiet", action="store_true", help="show errors and notes only")


def main(argv: list[str]) -> int:
    """Restore the named files; the exit status is 0 only when every file was done."""
    from rich.console import Console

    arguments = _parser().parse_args(argv)
    options = _file_options(arguments)
    jobs = plan_jobs(arguments.inputs, arguments.output)
    out = locations.place(arguments.output)
    there = set() if arguments.overwrite else locations.existing([job.target for job in jobs], out)
    todo = [job for job in jobs if job.target not in there]
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    if there:
        console.print(f"{len(there)} existing outputs stay as they are (--overwrite replaces them)")
    if not todo and not arguments.manifest:
        return 0
    settings = Settings(*(getattr(arguments, name) for name in Settings.__dataclass_fields__))
    restorer = settings.restorer() if todo else None  # with Ray too: what is wrong shows before anything starts
    if restorer is not None and options.level is not None and not restorer.takes_level:
        console.print("note: these weights are blind: --sigma and --quality have no effect on them")
    if isinstance(out, Path):
        locations.make_folder(out)
    kept = [job for job in jobs if job.target in there]
    manifest = Manifest(Path(arguments.manifest), jobs, kept) if arguments.manifest else None
    return _run(arguments, settings, restorer, todo, options, manifest, console)


def _run(
    arguments: argparse.Namespace,
    settings: Settings,
    restorer: Restorer | None,
    todo: list[Job],
    options: FileOptions,
    manifest: Manifest | None,
    console: "Console",
) -> int:
    report = Report(console, todo, quiet=arguments.quiet)
    try:
        if todo and arguments.engine == "ray":
            from vheatir.restore.ray_workers import run_on_ray

            how = {"workers": arguments.workers, "overwrite": arguments.overwrite}
            run_on_ray(settings, todo, options, **how, report=report, manifest=manifest)
        elif todo:
            workers = arguments.workers or min(_MOST_WORKERS, os.cpu_count() or 1)
            run(restorer, todo, options, workers=workers, report=report, manifest=manifest)
    except KeyboardInterrupt:
        console.print("interrupted; finished outputs are whole, the same command goes on with the rest")
        return 130
    finally:
        if manifest is not None:
            manifest.close()
    done = f"{len(todo) - report.failed} restored into {arguments.output}"
    console.print(printable(f"{done}, {report.failed} failed" if report.failed else done))
    return 1 if report.failed else 0


def _file_options(arguments: argparse.Namespace) -> FileOptions:
    given = {"denoise": arguments.sigma, "jpeg": arguments.quality}
    other = {"denoise": "--quality", "jpeg": "--sigma"}[arguments.task]
    if given["jpeg" if arguments.task == "denoise" else "denoise"] is not None:
        raise UserError(f"{other} does not belong to the task {arguments.task}; leave it out")
    level, most = given[arguments.task], MAX_LEVEL[arguments.task]
    if level is not None and not 0 <= level <= most:
        raise UserError(f"the level must lie between 0 and {most:g}, got {level:g}")
    if arguments.workers is not None and arguments.workers < 1:
        raise UserError(f"--workers must be at least 1, got {arguments.workers}")
    if not arguments.max_megapixels > 0:
        raise UserError(f"--max-megapixels must be above 0, got {arguments.max_megapixels}")
    return FileOptions(level=level, max_pixels=round(min(arguments.max_megapixels, 1e9) * 1e6))
