"""`vheatir restore` and `Restorer`: denoise pictures or remove JPEG artefacts with trained weights."""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vheatir.errors import UserError
from vheatir.files import printable
from vheatir.image_io import MAX_PIXELS, Image, read_image, write_image
from vheatir.jobs import Job, plan_jobs

if TYPE_CHECKING:
    import torch
    from rich.console import Console
    from rich.progress import Progress, TaskID

TASKS = ("denoise", "jpeg")
_FLOATS = (np.float16, np.float32, np.float64)
_MAX_VALUE = 16.0  # noise leaves [0, 1] by a few standard deviations; values beyond are on another scale

_EPILOG = """\
OUT is a folder. A file goes to OUT/name, a folder's content to OUT/path-below-that-folder, names and suffixes stay.
Gray, colour, 8 and 16 bits, alpha, colour profile and EXIF are kept. Existing outputs stay unless --overwrite is given.

examples:
  vheatir restore photo.png -o restored --task denoise
  vheatir restore scans/ more/*.jpg -o restored --task jpeg

The shipped weights were trained on BSDS500 and are for non-commercial research (see LICENSE-WEIGHTS beside them).
The denoising weights were made for Gaussian noise; they are not for the noise of cameras.

exit status: 0 all done, 1 some files failed (they are named), 2 nothing was done, 130 interrupted.
"""


class Restorer:
    """Restores images in memory with one set of weights.

    task: "denoise" or "jpeg". weights: shipped name or path of a safetensors file; the task's own by default. device: a
    torch device; a GPU when there is one by default. tile: side of the overlapping tiles in pixels, 0 for the whole
    image at once; chosen by the image's size by default. overlap: pixels that neighbouring tiles share.
    """

    def __init__(
        self,
        task: str,
        weights: str | Path | None = None,
        device: "str | torch.device | None" = None,
        tile: int | None = None,
        overlap: int | None = None,
    ):
        from vheatir import tiling
        from vheatir import weights as store

        if task not in TASKS:
            raise UserError(f"unknown task {task!r}; known: {', '.join(TASKS)}")
        self.tile = tile
        self.overlap = _default_overlap(tile) if overlap is None else overlap
        try:
            tiling.check_tile(tiling.DEFAULT_TILE if tile is None else tile, self.overlap)
        except ValueError as error:
            raise UserError(str(error)) from error
        self.task, self.device = task, _device(device)
        self.network, self.metadata = store.load(store.DEFAULTS[task] if weights is None else weights, self.device)
        if self.metadata["task"] != task:
            raise UserError(
                f"the weights {weights} are for the task {self.metadata['task']!r}, not {task!r}; "
                "give other weights or change the task"
            )

        if self.network.config.get("level_map"):
            raise UserError(f"the weights {weights} need a stated level for each image; use blind weights")

    def restore(self, image: np.ndarray, *, on_tile: Callable[[float], None] | None = None) -> np.ndarray:
        """The restored image, of the same shape and dtype, in [0, 1].

        image: float32, float64 or float16, HWC RGB or HW gray, in [0, 1]; noise may leave that range, it is not
        clipped. A gray image goes to a colour network as three equal channels and comes back as their mean. Computed in
        float32. `on_tile` is called with the share done.
        """
        import torch

        from vheatir import tiling

        _check_image(image)
        height, width = image.shape[:2]
        if image.ndim == 3 and self.metadata["color"] == "gray":
            raise ValueError("these weights are for gray images, the image has three channels; use colour weights")
        tensor = torch.from_numpy(np.ascontiguousarray(image, dtype=np.float32)).reshape(1, height, width, -1)
        tile = tiling.default_tile(height, width) if self.tile is None else self.tile
        with torch.inference_mode():
            result = tiling.apply_tiled(self._patch, tensor.permute(0, 3, 1, 2), tile, self.overlap, on_tile=on_tile)
        if not torch.isfinite(result).all():
            raise ValueError("the network made NaN or infinite values; these weights cannot be used for this image")
        return result.clamp(0, 1).permute(0, 2, 3, 1).reshape(image.shape).numpy().astype(image.dtype, copy=False)

    def _patch(self, patch: "torch.Tensor") -> "torch.Tensor":
        gray_as_color = patch.shape[1] == 1 and self.metadata["color"] == "color"
        output = self.network((patch.expand(-1, 3, -1, -1) if gray_as_color else patch).contiguous().to(self.device))
        return (output.mean(dim=1, keepdim=True) if gray_as_color else output).float().cpu()


def _default_overlap(tile: int | None) -> int:
    from vheatir import tiling

    return min(tiling.DEFAULT_OVERLAP, tile // 4) if tile else tiling.DEFAULT_OVERLAP


def _device(name: "str | torch.device | None") -> "torch.device":
    import torch

    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"the device {str(name)!r} cannot be used: {str(error).splitlines()[0]}") from error
    return device


def _check_image(image: np.ndarray) -> None:
    if not isinstance(image, np.ndarray) or image.dtype not in _FLOATS:
        got = image.dtype if isinstance(image, np.ndarray) else type(image).__name__
        raise TypeError(
            f"expected a NumPy array of float32, float64 or float16 in [0, 1], got {got}; "
            "bring integers to [0, 1] first, 8 bits with image.astype('float32') / 255"
        )
    if not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)) or 0 in image.shape:
        raise ValueError(
            f"expected the shape (height, width, 3) for RGB or (height, width) for gray, got {image.shape}; "
            "split alpha off and put it back afterwards, restore the images of a batch one by one"
        )
    finite = np.isfinite(image)
    if not finite.all():
        raise ValueError(
            f"the image holds {image.size - np.count_nonzero(finite)} NaN or infinite values; replace them"
        )
    if max(image.max(), -image.min()) > _MAX_VALUE:
        raise ValueError(
            f"the image's values run from {image.min():.4g} to {image.max():.4g}, expected [0, 1] apart from noise; "
            "divide by the value of white"
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "vheatir restore",
        description="Denoise pictures, or remove the artefacts of JPEG compression.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("inputs", nargs="+", metavar="INPUT", help="files, folders or globs (PNG, JPEG, TIFF, BMP, WebP)")
    add("-o", "--output", required=True, metavar="OUT", help="folder for the results; made when it does not exist")
    add("--task", required=True, choices=TASKS, help="denoise: Gaussian noise; jpeg: JPEG artefacts")
    add("--weights", metavar="NAME|PATH", help="a shipped name or a safetensors file (default: the task's)")
    add("--device", help="torch device, such as cpu or cuda:0 (default: a GPU when there is one)")
    add(
        "--tile",
        type=int,
        metavar="PIXELS",
        help="side of the tiles; 0: the whole image (default: by the image's size)",
    )
    add("--overlap", type=int, metavar="PIXELS", help="pixels that neighbouring tiles share (default: 32)")
    add("--overwrite", action="store_true", help="replace outputs that exist")
    add(
        "--max-megapixels",
        type=float,
        default=MAX_PIXELS / 1e6,
        metavar="N",
        help="refuse pictures that claim to be larger (default: %(default)g)",
    )
    return parser


def main(argv: list[str]) -> int:
    """Restore the named files; the exit status is 0 only when every file was done."""
    from rich.console import Console

    arguments = _parser().parse_args(argv)
    jobs = plan_jobs(arguments.inputs, arguments.output)
    todo = jobs if arguments.overwrite else [job for job in jobs if not job.target.exists()]
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    if len(jobs) > len(todo):
        console.print(f"{len(jobs) - len(todo)} existing outputs stay as they are (--overwrite replaces them)")
    if not todo:
        return 0
    restorer = Restorer(arguments.task, arguments.weights, arguments.device, arguments.tile, arguments.overlap)
    _make_folder(Path(arguments.output))
    try:
        failed = _restore_all(restorer, todo, console, round(arguments.max_megapixels * 1e6))
    except KeyboardInterrupt:
        console.print("interrupted; finished outputs are whole, the same command goes on with the rest")
        return 130
    done = f"{len(todo) - failed} restored into {arguments.output}"
    console.print(printable(f"{done}, {failed} failed" if failed else done))
    return 1 if failed else 0


def _restore_all(restorer: Restorer, jobs: list[Job], console: "Console", max_pixels: int) -> int:
    """Restore one file after the other; returns how many failed."""
    failed = 0
    with _progress(console) as progress:
        bar = progress.add_task("", total=len(jobs))
        for index, job in enumerate(jobs):
            progress.update(bar, completed=index, description=printable(job.source.name))
            on_tile = partial(_advance, progress, bar, index)
            try:
                notes = _restore_file(restorer, job, max_pixels, on_tile)
            except Exception as error:  # whatever is wrong with one file, the others are still done
                failed += 1
                console.print(printable(f"error: {_reason(job, error)}"))
            else:
                for note in notes:
                    console.print(printable(f"note: {job.source}: {note}"))
        progress.update(bar, completed=len(jobs), description="")
    return failed


def _advance(progress: "Progress", bar: "TaskID", before: int, share: float) -> None:
    progress.update(bar, completed=before + share)


def _restore_file(
    restorer: Restorer, job: Job, max_pixels: int, on_tile: Callable[[float], None] | None
) -> tuple[str, ...]:
    image: Image = read_image(job.source, max_pixels=max_pixels)
    image.pixels = restorer.restore(image.pixels, on_tile=on_tile)
    _make_folder(job.target.parent)
    write_image(job.target, image)
    return image.notes


def _reason(job: Job, error: Exception) -> str:
    """One line that names the file, whatever happened."""
    if isinstance(error, UserError):
        return str(error) if str(job.source) in str(error) else f"{job.source}: {error}"
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    if isinstance(error, MemoryError) or "memory" in text.lower():
        return f"{job.source}: not enough memory; restore it in smaller tiles, such as --tile 128"
    if isinstance(error, ValueError | OSError):
        return f"{job.source}: {text}"
    return f"{job.source}: unexpected {type(error).__name__}: {text}"


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: the output folder cannot be made: {error.strerror}") from error


def _progress(console: "Console") -> "Progress":
    from rich import progress

    columns = (
        progress.BarColumn(),
        progress.TextColumn("{task.completed:.1f}/{task.total} files"),
        progress.TimeElapsedColumn(),
        progress.TextColumn("left"),
        progress.TimeRemainingColumn(),
        progress.TextColumn("{task.description}", markup=False),
    )
    return progress.Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
