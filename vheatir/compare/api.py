"""`vheatir.compare`: images before and after, by several methods, beside the truth, as a figure and as scores.

Scores are those of whole images by the protocol of docs/evaluation.md; the crops only show where to look.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import cv2
import numpy as np

from vheatir import weights as store
from vheatir.compare.defaults import CROP_SIZE
from vheatir.compat import require_matplotlib
from vheatir.errors import UserError
from vheatir.evaluate.methods import CLASSIC, open_method
from vheatir.evaluate.protocol import LEVEL_NAMES, Method, check_figure_files, degrade, read_clean_file
from vheatir.image_io.arrays import to_float, to_uint8
from vheatir.metrics.fidelity import Scores, scores, scores_of_degraded
from vheatir.utils.files import atomic_open, printable

if TYPE_CHECKING:  # matplotlib is an extra, whose absence is said first
    from vheatir.compare.figure import Crop, Row

INPUT = "input"
_LABELS = {"nlm": "NL-means"}


@dataclass(frozen=True)
class Column:
    """A method under the name that the figure gives it; none for the degraded input itself."""

    name: str
    method: Method | None
    about: dict[str, Any]


def find_crop(clean: np.ndarray, versions: Sequence[np.ndarray], size: int) -> tuple[int, int, int, int]:
    """The square where the versions' errors differ most.

    Of each version the squared error is averaged over every such square; the one is taken with the largest distance
    between the worst and the best version, with a single version the one where it errs most.

    Args:
        clean: uint8, HWC RGB or HW.
        versions: images like `clean`.
        size: side in pixels; less in a smaller image.

    Returns:
        x, y, width and height in pixels.
    """
    height, width = (min(size, side) for side in clean.shape[:2])
    means = []
    for version in versions:
        squared = np.square(version.astype(np.float64) - clean)
        total = cv2.integral(squared if squared.ndim == 2 else squared.mean(2))
        inner = total[height:, width:] - total[:-height, width:] - total[height:, :-width] + total[:-height, :-width]
        means.append(inner)
    difference = np.max(means, 0) - np.min(means, 0) if len(means) > 1 else means[0]
    y, x = np.unravel_index(int(difference.argmax()), difference.shape)
    return int(x), int(y), width, height


def open_columns(
    methods: Sequence[str] | None, task: str, level: float | None, gray: bool, device: str | None, tile: int | None
) -> list[Column]:
    """The columns of the figure, in the order given.

    Args:
        methods: `input`, `nlm`, or weights (shipped name or file), each as [LABEL=]METHOD; None: input, nlm where the
            noise level is known, and the shipped weights.
        task: "denoise", "jpeg" or "photo".
        level: sigma or quality; None where the degraded images are given.
        gray: the gray protocol, which chooses the shipped weights.
        device: torch device of the networks.
        tile: see `vheatir.evaluate.methods.open_method`.

    Raises:
        UserError: two columns of one name, or a method that cannot be used.
    """
    if methods is None:
        baseline = ["nlm"] if task == "denoise" and level else []
        methods = [INPUT, *baseline, store.DEFAULTS[task]["gray" if gray else "color"]]
    columns = []
    for text in methods:
        label, separator, name = text.partition("=")
        if not separator or Path(text).is_file():
            label = _LABELS.get(text, Path(text).stem if Path(text).suffix == store.SUFFIX else text)
            name = text
        if name == INPUT:
            columns.append(Column(label, None, {"method": INPUT}))
        elif name == "nlm":
            if level is None:
                raise UserError("nlm needs the noise level; add --sigma, or leave it out of --methods")
            columns.append(Column(label, *open_method("nlm", task, gray, None, None, None)))
        else:
            _check_weights(name)
            columns.append(Column(label, *open_method("vheatir", task, gray, name, device, tile)))
    labels = [column.name for column in columns]
    if len(set(labels)) < len(labels) or "truth" in labels:
        raise UserError(f"--methods: two columns have the same name ({', '.join(labels)}); use LABEL=METHOD")
    return columns


def _check_weights(name: str) -> None:
    """UserError where a method is no weights, with what it may be."""
    if name in CLASSIC:
        raise UserError(f"--methods: {name} is a method of `vheatir evaluate` only; here are {INPUT}, nlm, and weights")
    try:
        store.find(name)
    except UserError as error:
        raise UserError(f"--methods takes {INPUT}, nlm, and weights; {error}") from error


def _scores_of_input(degraded: np.ndarray, clean: np.ndarray) -> Scores:
    """As in `vheatir evaluate`: noise is measured neither clipped nor rounded, 8-bit images as they are."""
    rounded = to_uint8(degraded)
    if np.array_equal(to_float(rounded), degraded):
        return scores(rounded, clean)
    return scores_of_degraded(degraded, clean)


@dataclass(frozen=True)
class Comparison:
    """How every image of a figure is treated: the columns, and what to degrade and crop by."""

    task: str
    level: float | None
    gray: bool
    columns: Sequence[Column]
    crop_size: int = CROP_SIZE

    def row(self, path: Path, degraded_path: Path | None, crop: "Crop | None") -> "Row":
        """One row of the figure: the image at `path`, degraded (or read from `degraded_path`) and restored.

        Args:
            path: a clean image.
            degraded_path: its degraded image; None degrades the clean one.
            crop: part of the image that is shown; None chooses it.

        Raises:
            UserError: the images do not fit together, or a method fails, as weights do whose output is NaN.
        """
        from vheatir.compare.figure import Row, Shown

        clean = read_clean_file(path, self.task, self.gray)
        height, width = clean.shape[:2]
        if crop is not None and (crop[0] + crop[2] > width or crop[1] + crop[3] > height):
            raise UserError(f"{path}: the crop {','.join(map(str, crop))} reaches out of its {width}x{height} pixels")
        degraded = self._degraded(path, clean, degraded_path)
        shown = []
        for column in self.columns:
            if column.method is None:
                shown.append(Shown(column.name, to_uint8(degraded), _scores_of_input(degraded, clean), degraded=True))
            else:
                try:
                    # `open_columns` has refused methods that need a level where there is none.
                    restored = to_uint8(column.method(degraded, cast(float, self.level)))
                except ValueError as error:
                    raise UserError(f"{path}: {column.name}: {error}") from error
                shown.append(Shown(column.name, restored, scores(restored, clean)))
        if crop is None:
            restored = [one.pixels for one in shown if not one.degraded] or [shown[0].pixels]
            crop = find_crop(clean, restored, self.crop_size)
        title = printable(path.stem)
        if degraded_path is None:
            title += f", {LEVEL_NAMES[self.task]} {self.level:g}"
        x, y, width, height = crop
        return Row(title, clean, shown, (x, y, width, height))

    def _degraded(self, path: Path, clean: np.ndarray, degraded_path: Path | None) -> np.ndarray:
        if degraded_path is None:
            assert self.level is not None, "it is asked for where nothing degraded is given"
            return degrade(clean, self.task, self.level)
        degraded = to_float(read_clean_file(degraded_path, self.task, self.gray))
        if degraded.shape != clean.shape:
            got = f"{degraded.shape[1]}x{degraded.shape[0]}"
            wanted = f"{clean.shape[1]}x{clean.shape[0]}"
            raise UserError(f"{degraded_path}: {got} pixels, but the clean {path} has {wanted}")
        return degraded


def _checked_level(
    task: str, sigma: float | None, quality: int | None, degraded: Sequence[Path] | None
) -> float | None:
    if task not in LEVEL_NAMES:
        raise UserError(f"unknown task {task!r}; known: {', '.join(LEVEL_NAMES)}")
    if task == "jpeg":
        level = quality
        other = sigma
    else:
        level = sigma
        other = quality
    wanted = f"--{LEVEL_NAMES[task]}"
    if other is not None:
        raise UserError(f"--task {task} takes {wanted}, not the level of the other task")
    if task == "photo" and degraded is None:
        raise UserError("nothing is made of photographs; add --degraded with them, one for each clean image")
    if level is None and degraded is None:
        raise UserError(f"how is the image to be degraded? Add {wanted}, or --degraded with degraded images")
    least, most = (1, 100) if task == "jpeg" else (0, math.inf)
    if level is not None and not (least <= level <= most and level < math.inf):
        raise UserError(f"{wanted} {level}: expected a number from {least}" + (" to 100" if least else ""))
    if task == "jpeg" and level is not None and level != int(level):
        raise UserError(f"{wanted} {level}: expected a whole number")
    return level


def _paths(given: str | Path | Sequence[str | Path]) -> list[Path]:
    return [Path(path) for path in ([given] if isinstance(given, str | Path) else given)]


def _check_counts(count: int, degraded: Sequence[Path] | None, crops: Sequence["Crop"] | None) -> None:
    for name, given, allowed in (("--degraded", degraded, (count,)), ("--crop", crops, (1, count))):
        if given is not None and len(given) not in allowed:
            raise UserError(f"{name}: {len(given)} given for {count} images; expected one for each")
    for crop in crops or ():
        whole = len(crop) == 4 and all(isinstance(number, int | np.integer) for number in crop)
        if not whole or min(crop[:2]) < 0 or min(crop[2:]) < 1:
            raise UserError(f"--crop: expected whole X, Y >= 0 and WIDTH, HEIGHT >= 1 in pixels, got {crop}")


def compare(  # long function: most of it says what its arguments mean
    images: str | Path | Sequence[str | Path],
    out: str | Path | Sequence[str | Path] = (),
    *,
    task: str,
    sigma: float | None = None,
    quality: int | None = None,
    degraded: str | Path | Sequence[str | Path] | None = None,
    methods: Sequence[str] | None = None,
    gray: bool = False,
    crops: Sequence[tuple[int, int, int, int]] | None = None,
    crop_size: int = CROP_SIZE,
    zoom: int | None = None,
    errors: bool = False,
    spectra: bool = False,
    device: str | None = None,
    tile: int | None = None,
    on_row: Callable[[Path, "Row"], None] | None = None,
) -> dict[str, Any]:
    """Degrade clean images, restore them by several methods, and draw crops beside the truth.

    Args:
        images: one or several clean images, a row each.
        out: one or several figure files to write: .png, .pdf, .svg.
        task: "denoise", "jpeg", or "photo" for photographs beside cleaner ones, which need `degraded`.
        sigma: noise level to add for "denoise", on the 0-255 scale; for "photo" what nlm assumes.
        quality: JPEG quality to compress with for "jpeg".
        degraded: degraded images, one for each clean one, instead of degrading.
        methods: columns, see `open_columns`.
        gray: the gray protocol.
        crops: (x, y, width, height) in pixels, one for all images or one for each; chosen by default.
        crop_size: side of chosen crops in pixels.
        zoom: figure pixels for each pixel of a crop; chosen by default.
        errors: add error maps.
        spectra: add power spectra.
        device: torch device; by default CUDA where there is one.
        tile: restore in tiles of so many pixels a side; 0: whole images; chosen by default.
        on_row: called with each image's path and its row when it is done.

    Returns:
        {"task", "sigma" or "quality", "methods": {name: what it is}, "images": [{"image", "crop", "scores"}]}.

    Raises:
        UserError: arguments that do not fit together, unreadable images, or matplotlib is missing.
    """
    images = _paths(images)
    out = _paths(out)
    degraded = None if degraded is None else _paths(degraded)
    if not images or (methods is not None and not methods):
        raise UserError("nothing to compare: give at least one image, and one method or none for the usual ones")
    level = _checked_level(task, sigma, quality, degraded)
    if task == "photo" and gray:
        raise UserError("photographs are compared in color; leave --gray out")
    _check_counts(len(images), degraded, crops)
    for name, value in (("--crop-size", crop_size), ("--zoom", zoom)):
        if value is not None and value < 1:
            raise UserError(f"{name} must be at least 1, got {value}")
    check_figure_files(out, [*images, *(degraded or [])])
    require_matplotlib()
    columns = open_columns(methods, task, level, gray, device, tile)
    for path in [*images, *(degraded or [])]:
        read_clean_file(path, task, gray)  # a broken one shows before any work
    comparison = Comparison(task, level, gray, columns, crop_size)
    every_crop = list(crops) if crops is not None else [None]
    every_crop = every_crop * len(images) if len(every_crop) == 1 else every_crop
    rows = []
    for path, degraded_path, crop in zip(images, degraded or [None] * len(images), every_crop, strict=True):
        rows.append(comparison.row(path, degraded_path, crop))
        if on_row is not None:
            on_row(path, rows[-1])
    _write_figure(out, rows, errors=errors, spectra=spectra, blocks=task == "jpeg", zoom=zoom)
    return _result(comparison, images, rows)


def _write_figure(out: Sequence[Path], rows: Sequence["Row"], **how: Any) -> None:
    from vheatir.compare.figure import DPI, draw

    if not out:
        return
    figure = draw(rows, **how)
    for path in out:
        with atomic_open(path) as file:
            figure.savefig(file, format=path.suffix[1:], dpi=DPI)


def _result(comparison: Comparison, images: Sequence[Path], rows: Sequence["Row"]) -> dict[str, Any]:
    records = [
        {
            "image": path.name,
            "crop": dict(zip("xywh", row.crop, strict=True)),
            "scores": {one.name: dict(one.scores or {}) for one in row.shown},
        }
        for path, row in zip(images, rows, strict=True)
    ]
    return {
        "task": comparison.task,
        LEVEL_NAMES[comparison.task]: comparison.level,
        "methods": {column.name: column.about for column in comparison.columns},
        "images": records,
    }
