"""`vheatir preview`: a sheet of training samples and the statistics of their noise, beside those of real pairs."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.utils.data import default_collate

from vheatir.archs.base import middle_planes
from vheatir.data.base import RestorationDataset
from vheatir.data.batch_degradations import finish_batch
from vheatir.data.noise_statistics import LAGS, NoiseStatistics, noise_statistics, spread
from vheatir.data.sources import list_images
from vheatir.errors import UserError
from vheatir.image_io import decode_image
from vheatir.image_io.arrays import to_uint8
from vheatir.image_io.write import save_png
from vheatir.train.build import build_datasets, complete_options
from vheatir.train.options import read_options
from vheatir.train.registry import load_plugins, register_all
from vheatir.utils.recipes import find_options
from vheatir.utils.run_metadata import prepare_output, run_metadata, write_json

# pixels: least side of a panel, white between, height of a line of text
_PANEL = 192
_GAP = 8
_LINE = 14
_STRETCH = 8  # of the difference
_ACROSS = 3  # samples beside each other
_SAMPLES = "samples"  # the column of the training set

_EPILOG = """\
Each sample: input, target, and their difference stretched 8 times about gray. Below it the standard deviation of the
noise in luma and chroma (0-255 scale) and their autocorrelation at 1 to 4 pixels. The table has the 10 %, 50 % and 90 %
quantiles over all measured samples, and over the pairs; `rows` and `columns` tell stripes: the standard deviation of
the mean luma of 64 neighbors over that of luma. `direction` is the autocorrelation of luma at one pixel along rows
minus that along columns, without its sign.

examples:
  vheatir preview -opt photo_light -o sheet.png
  vheatir preview -opt photo_light -o sheet.png --pairs CC15 PolyU --json statistics.json
"""


@dataclass(frozen=True)
class NoisyPair:
    """An input and its target, uint8 RGB of one size, and what was measured of their difference."""

    noisy: np.ndarray
    clean: np.ndarray
    measured: NoiseStatistics


def _rgb(plane: torch.Tensor) -> np.ndarray:
    return to_uint8(plane.expand(3, -1, -1).permute(1, 2, 0).numpy())


def samples(dataset: RestorationDataset, count: int) -> Iterator[NoisyPair]:
    """The first `count` samples of a data set, with the steps that it leaves to the device."""
    for number in range(count):
        batch = finish_batch(default_collate([dataset[number]]), torch.device("cpu"))
        noisy = _rgb(middle_planes(batch["lq"][0], len(batch["gt"][0])))
        clean = _rgb(batch["gt"][0])
        yield NoisyPair(noisy, clean, noise_statistics(noisy, clean))


def real_pairs(folder: Path, side: int) -> Iterator[NoisyPair]:
    """The pairs NAME_real.*, NAME_mean.* below a folder, measured as a whole; of their pixels the middle is kept.

    Args:
        folder: with the pairs.
        side: of the middle, at most.

    Raises:
        UserError: no such folder, no pair in it, a name without its partner or with two, or images that cannot be read,
            are too small or of different sizes.
    """
    if not folder.is_dir():
        raise UserError(f"--pairs {folder}: no such folder")
    files: dict[str, Path] = {}
    for name in list_images(folder):
        former = files.setdefault(str(Path(name).with_suffix("")), folder / name)
        if former != folder / name:
            raise UserError(f"--pairs {folder}: {former.name} and {name} differ only in suffix; keep one")
    names = sorted({name.removesuffix(end) for name in files for end in ("_real", "_mean") if name.endswith(end)})
    if not names:
        raise UserError(f"--pairs {folder}: expected images NAME_real.* and NAME_mean.*, found none")
    if alone := [name for name in names if not {f"{name}_real", f"{name}_mean"} <= files.keys()]:
        raise UserError(f"--pairs {folder}: only one of _real and _mean is there; add the other: {', '.join(alone)}")
    for name in names:
        noisy, clean = (_read(files[name + end]) for end in ("_real", "_mean"))
        if noisy.shape != clean.shape:
            raise UserError(f"--pairs {folder}: {name}: _real is {noisy.shape[:2]}, _mean {clean.shape[:2]}")
        if min(noisy.shape[:2]) <= LAGS:
            raise UserError(f"--pairs {folder}: {name} is {noisy.shape[:2]}, expected more than {LAGS} pixels a side")
        middle, clean_middle = (_middle(image, side).copy() for image in (noisy, clean))  # not a view of all of it
        yield NoisyPair(middle, clean_middle, noise_statistics(noisy, clean))


def _middle(image: np.ndarray, side: int) -> np.ndarray:
    top, left = (max(length - side, 0) // 2 for length in image.shape[:2])
    return image[top : top + side, left : left + side]


def _read(path: Path) -> np.ndarray:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); restore the file") from error
    image = decode_image(data, str(path))
    return image if image.ndim == 3 else cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)


def sheet(pairs: Sequence[NoisyPair], side: int) -> np.ndarray:
    """uint8 RGB of all pairs, `side` pixels from the middle of each, every pixel shown as a square."""
    cells = [_cell(pair, side) for pair in pairs]
    rows = [cells[start : start + _ACROSS] for start in range(0, len(cells), _ACROSS)]
    blank = np.full_like(cells[0], 255)
    return np.concatenate([np.concatenate(row + [blank] * (_ACROSS - len(row)), axis=1) for row in rows])


def _cell(pair: NoisyPair, side: int) -> np.ndarray:
    difference = (pair.noisy.astype(np.float32) - pair.clean) * _STRETCH + 128
    panels = [pair.noisy, pair.clean, np.clip(np.rint(difference), 0, 255).astype(np.uint8)]
    zoom = -(-_PANEL // side)
    cell = np.full((side * zoom + 2 * _LINE + 2 * _GAP, 3 * (side * zoom + _GAP) + _GAP, 3), 255, np.uint8)
    for number, panel in enumerate(panels):
        part = _middle(panel, side).repeat(zoom, 0).repeat(zoom, 1)
        x = _GAP + number * (side * zoom + _GAP)
        cell[_GAP : _GAP + side * zoom, x : x + side * zoom] = part
    for number, (name, strength) in enumerate((("luma", "luma_std"), ("chroma", "chroma_std"))):
        lags = " ".join(f"{value:.2f}" for value in getattr(pair.measured, name))
        text = f"{name} {getattr(pair.measured, strength):.1f}: {lags}"
        place = (_GAP, _GAP + side * zoom + (number + 1) * _LINE - 3)
        cv2.putText(cell, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 0, 0), 1, cv2.LINE_AA)
    return cell


def _spread_out(pairs: Sequence[NoisyPair], count: int) -> Sequence[NoisyPair]:
    return [pairs[index * len(pairs) // count] for index in range(count)] if len(pairs) > count else pairs


def quantile_table(columns: dict[str, dict[str, tuple[float, float, float]]]) -> str:
    """Text of the quantiles: a line for each figure, three columns for each source."""
    width = max(len(name) for name in next(iter(columns.values())))
    lines = [" " * width + "".join(f"{name[-24:]:>26}" for name in columns)]
    for figure in next(iter(columns.values())):
        numbers = ("".join(f"{value:8.2f}" for value in found[figure]) for found in columns.values())
        lines.append(f"{figure:<{width}}" + "".join(f"  {text}" for text in numbers))
    return "\n".join(lines) + "\n"


def _column(folder: Path) -> str:
    """The name of a folder of pairs in the results, never that of the training samples."""
    return str(folder) if str(folder) != _SAMPLES else f"./{folder}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "vheatir preview",
        description="Show training samples and measure their noise.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("-opt", "--opt", required=True, metavar="FILE", help="options file, or name of a recipe")
    add("-o", "--out", required=True, type=Path, metavar="FILE", help="the sheet, a PNG")
    add("--set", action="append", default=[], metavar="A.B=VALUE", help="change one option; repeatable")
    add("--plugin", action="append", default=[], metavar="FILE", help="Python file with own classes")
    add("--count", type=int, default=12, metavar="N", help="samples, and of each folder pairs, on the sheet (12)")
    add("--measure", type=int, default=200, metavar="N", help="samples to measure (200)")
    add("--pairs", nargs="+", type=Path, default=[], metavar="DIR", help="real pairs NAME_real.*, NAME_mean.*")
    add("--json", type=Path, metavar="FILE", help="write the quantiles here")
    return parser


def main(argv: list[str]) -> int:
    """Write the sheet, print the table."""
    arguments = _parser().parse_args(argv)
    if arguments.count < 1 or arguments.measure < 1:
        raise UserError("--count and --measure: expected at least 1")
    if arguments.out.suffix.lower() != ".png":
        raise UserError(f"-o {arguments.out}: expected a name that ends in .png")
    for path in filter(None, (arguments.out, arguments.json)):
        prepare_output(path)
    register_all()
    load_plugins(arguments.plugin)
    path = find_options(arguments.opt)
    options = complete_options(path, read_options(path, arguments.set), is_train=True)
    options["datasets"] = {"train": options["datasets"]["train"]}
    dataset = build_datasets(path, options)["train"]
    pairs = {_column(folder): list(real_pairs(folder, dataset.gt_size)) for folder in arguments.pairs}
    found = {_SAMPLES: list(samples(dataset, max(arguments.measure, arguments.count))), **pairs}
    shown = [pair for pairs in found.values() for pair in _spread_out(pairs, arguments.count)]
    columns = {name: spread([pair.measured for pair in pairs]) for name, pairs in found.items()}
    side = min(dataset.gt_size, *(length for pair in shown for length in pair.noisy.shape[:2]))
    save_png(arguments.out, sheet(shown, side))
    sys.stdout.write(f"{quantile_table(columns)}{len(shown)} shown: {arguments.out}\n")
    if arguments.json:
        counts = {name: len(pairs) for name, pairs in found.items()}
        metadata = run_metadata(["vheatir", "preview", *argv]) | {"pairs": counts, "quantiles": [0.1, 0.5, 0.9]}
        write_json(arguments.json, {"results": columns, "metadata": metadata})
    return 0
