"""`vheatir.evaluate`: PSNR, SSIM and PSNR-B on folders of clean images, by the protocol of the published tables."""

import logging
import math
import sys
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from tqdm import tqdm

from vheatir.data.sources import ImageSource, map_threads
from vheatir.errors import UnwrittenError, UserError
from vheatir.evaluate.methods import ASSUMED_SIGMA, CLASSIC, open_method
from vheatir.evaluate.protocol import (
    LEVEL_NAMES,
    LEVELS,
    READ,
    ExtraMetrics,
    Method,
    evaluate_image,
    mean_scores,
    read_clean,
)
from vheatir.image_io.write import save_png
from vheatir.metrics.fidelity import WINDOW
from vheatir.metrics.perceptual import Perceptual
from vheatir.utils.files import at_home, printable, skipped_note
from vheatir.utils.run_metadata import prepare_folder

_logger = logging.getLogger("vheatir.evaluate")


def evaluate(  # long function: most of it says what its arguments mean
    data: str | Path | Sequence[str | Path],
    task: str,
    levels: float | Sequence[float] | None = None,
    *,
    gray: bool,
    method: Method | str | None = "vheatir",
    weights: str | Path | None = None,
    device: str | None = None,
    tile: int | None = None,
    precision: str = "float32",
    ensemble: bool = False,
    metrics: Sequence[str] | ExtraMetrics = (),
    save_images: str | Path | None = None,
    limit: int | None = None,
    progress: bool = False,
) -> list[dict[str, Any]]:
    """Degrade the clean images of folders, restore them, and measure both.

    Args:
        data: one or several folders of clean images, or for "photo" of pairs NAME_real.* and NAME_mean.*, searched
            recursively. Files that are left out, as of other formats, are counted in a logged note.
        task: "denoise" (levels are sigma on the 0-255 scale), "jpeg" (levels are qualities) or "photo" (nothing is
            degraded; levels are the sigma that "nlm" and "bm3d" assume, 5 by default, and none for networks).
        levels: one or several; None takes those of the published tables.
        gray: the gray protocol instead of the color one.
        method: "vheatir", our network; "nlm", non-local means; "bm3d"; a function of (degraded float image, level)
            that returns the restored float image in [0, 1]; None measures the degraded input only.
        weights: shipped name or .safetensors file for "vheatir"; the task's own by default.
        device: torch device for "vheatir" and the metrics; by default CUDA where there is one, the CPU for metrics.
        tile: side in pixels of the tiles in which "vheatir" restores; 0: whole images; chosen by default.
        precision: of the products of "vheatir": "float32", "bf16" or "auto", see `Restorer`.
        ensemble: "vheatir" gives the mean over eight flips and rotations: better, eight times slower.
        metrics: beside PSNR, SSIM and PSNR-B: names of `vheatir.metrics.perceptual.NAMES`, or a function of
            (uint8 image, clean uint8 image) that returns metrics by name.
        save_images: restored images go to this folder as data/levelname+level/name.png; not into a folder of `data`.
        limit: use only the first images of each folder.
        progress: show a progress line on a terminal.

    Returns:
        One result for each folder and each level, in that order: {"data", "task", "color", "level", "images", "input",
        "restored", "per_image"}; metrics are by name, and "restored" is None where nothing restores.

    Raises:
        UserError: a folder, level, method or weights that cannot be used.
        UnwrittenError: a UserError; all is measured, but images could not be saved. It has the `results`.
    """
    data = [data] if isinstance(data, str | Path) else data
    levels = checked_levels(task, [float(levels)] if isinstance(levels, int | float | np.number) else levels, method)
    if task == "photo" and gray:
        raise UserError("photographs are evaluated in color; leave gray out")
    if limit is not None and limit < 1:
        raise UserError(f"limit must be at least 1 image, got {limit}")
    if save_images is not None and method is None:
        raise UserError(
            "nothing is restored, so there are no images to save; choose weights or leave --save-images out"
        )
    if isinstance(method, str):
        method, _ = open_method(method, task, gray, weights, device, tile, precision, ensemble)
    extra_metrics = metrics if callable(metrics) else None
    if metrics and not callable(metrics):
        extra_metrics = Perceptual(metrics, device or "cpu")
    sources = _open_sources(data, check_stems=save_images is not None)
    images = {name: (_pairs(source) if task == "photo" else source.keys)[:limit] for name, source in sources.items()}
    for name, source in sources.items():  # hours of work are not for an error at their end
        extra_keys = [_mean_of(source, key) for key in images[name]] if task == "photo" else []
        source.check(min_size=WINDOW, keys=[*images[name], *extra_keys])
        _check_sizes(source, images[name], task, extra_metrics)
    if save_images is not None:
        _check_place(Path(save_images), sources)
        prepare_folder(Path(save_images))
    total = sum(map(len, images.values())) * len(levels)
    results = []
    saving = _Saving(None if save_images is None else Path(save_images))
    with tqdm(total=total, unit="image", disable=None if progress else True, file=sys.stderr) as bar:
        for name, source in sources.items():
            for level in levels:
                bar.set_description(f"{name} {LEVEL_NAMES[task]} {level:g}")
                records = []
                for key in images[name]:
                    record, restored = _evaluate_file(source, key, task, level, gray, method, extra_metrics)
                    records.append(record)
                    saving.save(Path(name, f"{LEVEL_NAMES[task]}{level:g}", key).with_suffix(".png"), restored)
                    bar.update()
                results.append(_summary(name, task, gray, level, records))
    if saving.refused is not None:
        raise UnwrittenError(saving.refused, results)
    return results


class _Saving:
    """Writes restored images below a folder, up to the first one that cannot be written: no reason not to measure on.

    Attributes:
        refused: what went wrong.
    """

    def __init__(self, root: Path | None):
        self._root = root
        self.refused: str | None = None

    def save(self, below: Path, restored: np.ndarray | None) -> None:
        if self._root is None or restored is None or self.refused is not None:
            return
        try:
            save_png(self._root / below, restored)
        except OSError as error:
            path = self._root / below
            self.refused = f"{path}: cannot be written ({error.strerror}); this and all later images were not saved"


def checked_levels(task: str, levels: Sequence[float] | None, method: Method | str | None = "vheatir") -> list[float]:
    """The levels of an evaluation, those of the published tables for None; UserError for others than a task takes.

    Args:
        task: "denoise", "jpeg" or "photo".
        levels: sigma (0-255 scale) or quality; None for the published ones.
        method: what restores, for messages and what it can do.
    """
    if task not in LEVELS:
        raise UserError(f"unknown task {task!r}; known: {', '.join(LEVELS)}")
    if task == "photo" and method == "vheatir" and levels is not None:
        raise UserError("--sigma is what nlm and bm3d assume of photographs; our networks take none, leave it out")
    if task == "photo" and method in CLASSIC and levels is None:
        levels = [ASSUMED_SIGMA]
    levels = list(LEVELS[task] if levels is None else levels)
    for level in levels:
        if task == "jpeg" and not (float(level).is_integer() and 1 <= level <= 100):
            raise UserError(f"quality {level}: expected integers from 1 to 100")
        if task != "jpeg" and not 0 <= level < math.inf:
            raise UserError(f"sigma {level}: expected numbers >= 0 on the 0-255 scale")
    if not levels or len(set(levels)) < len(levels):
        raise UserError(f"levels {levels}: expected at least one, each only once")
    return [int(level) if level == int(level) else float(level) for level in levels]


def _open_sources(data: Sequence[str | Path], check_stems: bool) -> dict[str, ImageSource]:
    sources: dict[str, ImageSource] = {}
    for folder in data:
        path = at_home(folder)
        if folder == "" or not path.is_dir():
            advice = "this is a file, give its folder" if path.is_file() else "check --data"
            raise UserError(f"{folder or '(empty)'}: no such folder, expected one with clean images; {advice}")
        name = path.resolve().name
        if name in sources:
            raise UserError(f"two data folders are called {name}; evaluate them in two runs")
        sources[name] = ImageSource(path, backend="disk", suffixes=READ)
        if sources[name].others:
            _logger.warning("note: %s: %s", printable(name), skipped_note(sources[name].others))
        if check_stems:
            sources[name].by_stem()  # refuses two files that would be saved under one name
    return sources


def _check_place(folder: Path, sources: dict[str, ImageSource]) -> None:
    """UserError where restored images would lie among the clean ones, and be taken for such the next time."""
    for name in sources:
        place = (folder / name).resolve()
        for source in sources.values():
            if place.is_relative_to(source.root.resolve()):
                raise UserError(
                    f"{folder / name}: lies in {source.root}, where the next evaluation would take the restored images "
                    "for clean ones; choose another place for --save-images"
                )


def _pairs(source: ImageSource) -> list[str]:
    """The noisy files of pairs NAME_real.* and NAME_mean.*."""
    found = [key for key in source.keys if PurePosixPath(key).stem.endswith("_real")]
    if not found:
        raise UserError(f"{source.root}: expected pairs NAME_real.* and NAME_mean.*, found no file named *_real.*")
    means = {_mean_of(source, key) for key in found}
    rest = [key for key in source.keys if key not in means and key not in found]
    lonely = [key for key in rest if PurePosixPath(key).stem.endswith("_mean")]
    if lonely:
        wanted = PurePosixPath(lonely[0]).stem.removesuffix("_mean") + "_real"
        raise UserError(f"{source.describe(lonely[0])}: expected one file {wanted}.* beside it, found 0")
    if rest:
        text = "note: %s: %d images are named neither *_real.* nor *_mean.* and were skipped"
        _logger.warning(text, printable(source.root.name), len(rest))
    return found


def _mean_of(source: ImageSource, key: str) -> str:
    """The clean file that belongs to a noisy one."""
    path = PurePosixPath(key)
    wanted = path.with_name(path.stem.removesuffix("_real") + "_mean")
    partners = [other for other in source.keys if PurePosixPath(other).with_suffix("") == wanted]
    if len(partners) != 1:
        raise UserError(f"{source.describe(key)}: expected one file {wanted.name}.* beside it, found {len(partners)}")
    return partners[0]


def _check_sizes(source: ImageSource, keys: Sequence[str], task: str, extra_metrics: ExtraMetrics | None) -> None:
    """UserError for a pair of two sizes, and for an image that is too small for one of the metrics."""
    if task != "photo" and not isinstance(extra_metrics, Perceptual):
        return  # to decode all images once more tells nothing

    def check(key: str) -> None:
        size = source.read_native(key).shape[:2]
        wanted = source.read_native(_mean_of(source, key)).shape[:2] if task == "photo" else size
        if size != wanted:
            raise UserError(f"{source.describe(key)}: {size}, but its mean has {wanted}")
        if isinstance(extra_metrics, Perceptual):
            try:
                extra_metrics.check_size(*size)
            except ValueError as error:
                raise UserError(f"{source.describe(key)}: {error}") from error

    map_threads(check, keys)


def _evaluate_file(
    source: ImageSource,
    key: str,
    task: str,
    level: float,
    gray: bool,
    method: Method | None,
    extra_metrics: ExtraMetrics | None,
) -> tuple[dict[str, Any], np.ndarray | None]:
    """The metrics of one image, and the restored image where a method restores."""
    clean = read_clean(source, _mean_of(source, key) if task == "photo" else key, task, gray)
    photographed = read_clean(source, key, task, gray) if task == "photo" else None
    if min(clean.shape[:2]) < WINDOW:
        raise UserError(
            f"{source.describe(key)}: {clean.shape[0]}x{clean.shape[1]} pixels; SSIM needs 11x11, remove it"
        )
    try:
        record, restored = evaluate_image(clean, task, level, method, extra_metrics, photographed=photographed)
    except ValueError as error:
        raise UserError(f"{source.describe(key)}: {error}") from error
    return {"image": key, "height": clean.shape[0], "width": clean.shape[1], **record}, restored


def _summary(name: str, task: str, gray: bool, level: float, records: list[dict[str, Any]]) -> dict[str, Any]:
    restored = [record["restored"] for record in records if record["restored"] is not None]
    return {
        "data": name,
        "task": task,
        "color": "gray" if gray else "color",
        "level": level,
        "images": len(records),
        "input": mean_scores([record["input"] for record in records]),
        "restored": mean_scores(restored) if restored else None,
        "per_image": records,
    }
