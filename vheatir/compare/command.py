"""`vheatir compare`: a figure of pictures before and after, by several methods, beside the truth.

Scores are those of whole pictures by the protocol of docs/evaluation.md; the crops only show where to look.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from vheatir.cli import run as run_command
from vheatir.compat import require_matplotlib
from vheatir.data.degradations import to_float, to_uint8
from vheatir.errors import UserError
from vheatir.evaluate.command import LEVEL_NAMES, degrade, read_clean
from vheatir.evaluate.methods import Method, open_method
from vheatir.image_io import decode_image, decode_opencv_gray
from vheatir.metrics.fidelity import WINDOW, Scores, scores, scores_of_degraded
from vheatir.utils.files import atomic_open
from vheatir.utils.run_metadata import prepare_output, run_metadata, write_json

INPUT = "input"
KINDS = (".png", ".pdf", ".svg")
_LABELS = {"nlm": "NL-means"}
_CROP = 96  # pixels, side of a crop that is chosen by itself


@dataclass(frozen=True)
class _File:
    """One image file, with the three methods of `ImageSource` that `read_clean` calls."""

    path: Path

    def describe(self, key: str) -> str:
        return str(self.path)

    def read_native(self, key: str) -> np.ndarray:
        return decode_image(self._content(), str(self.path))

    def read_opencv_gray(self, key: str) -> np.ndarray:
        return decode_opencv_gray(self._content(), str(self.path))

    def _content(self) -> bytes:
        try:
            return self.path.read_bytes()
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read ({error.strerror}); give the name of a picture") from error


@dataclass(frozen=True)
class Column:
    """A method under the name that the figure gives it; none for the degraded input itself."""

    name: str
    method: Method | None
    about: dict[str, Any]


def find_crop(clean: np.ndarray, versions: Sequence[np.ndarray], size: int) -> tuple[int, int, int, int]:
    """The square of `size` pixels (less in a smaller picture) where the versions' errors differ most: x, y, w, h.

    Of each version (uint8 like `clean`) the squared error is averaged over every such square; the one is taken with the
    largest distance between the worst and the best version, with a single version the one where it errs most.
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


def open_columns(arguments: argparse.Namespace) -> list[Column]:
    """The methods, in the order given: `input`, `nlm`, or weights (shipped name or file), each as [LABEL=]METHOD."""
    from vheatir import weights

    shipped = weights.DEFAULTS[arguments.task]["gray" if arguments.gray else "color"]
    names = arguments.methods or [
        INPUT,
        *(["nlm"] if arguments.task == "denoise" and _level(arguments) else []),
        shipped,
    ]
    columns = []
    for text in names:
        label, separator, method = text.partition("=")
        if not separator or Path(text).is_file():
            stem = Path(text).stem if Path(text).suffix == weights.SUFFIX else text
            label, method = _LABELS.get(text, stem), text
        if method == INPUT:
            columns.append(Column(label, None, {"method": INPUT}))
            continue
        if method == "nlm" and _level(arguments) is None:
            raise UserError("nlm needs to be told the noise level; add --sigma, or leave it out of --methods")
        kind, file = ("nlm", None) if method == "nlm" else ("vheatir", method)
        options = (None, None) if kind == "nlm" else (arguments.device, arguments.tile)
        columns.append(Column(label, *open_method(kind, arguments.task, arguments.gray, file, *options)))
    labels = [column.name for column in columns]
    if len(set(labels)) < len(labels) or "truth" in labels:
        raise UserError(f"--methods: two columns have the same name ({', '.join(labels)}); use LABEL=METHOD")
    return columns


def _level(arguments: argparse.Namespace) -> float | None:
    return arguments.sigma if arguments.task == "denoise" else arguments.quality


def read_picture(path: Path, task: str, gray: bool) -> np.ndarray:
    """A clean picture as `vheatir evaluate` reads it: uint8, HWC RGB or, when `gray`, HW.

    Raises:
        UserError: missing, unreadable, or too small for SSIM.
    """
    image = read_clean(_File(path), path.name, task, gray)
    if min(image.shape[:2]) < WINDOW:
        raise UserError(f"{path}: {image.shape[1]}x{image.shape[0]} pixels; SSIM needs {WINDOW}x{WINDOW}")
    return image


def _scores_of_input(degraded: np.ndarray, clean: np.ndarray) -> Scores:
    """As in `vheatir evaluate`: noise is measured neither clipped nor rounded, 8-bit pictures as they are."""
    rounded = to_uint8(degraded)
    return (
        scores(rounded, clean) if np.array_equal(to_float(rounded), degraded) else scores_of_degraded(degraded, clean)
    )


def compare_picture(
    path: Path, degraded_path: Path | None, columns: Sequence[Column], crop: Sequence[int] | None, arguments
):
    """One row of the figure: the picture at `path`, degraded (or read from `degraded_path`) and restored."""
    from vheatir.compare.figure import Row, Shown

    clean, level = read_picture(path, arguments.task, arguments.gray), _level(arguments)
    height, width = clean.shape[:2]
    if crop is not None and (crop[0] + crop[2] > width or crop[1] + crop[3] > height):
        raise UserError(f"{path}: the crop {','.join(map(str, crop))} reaches out of its {width}x{height} pixels")
    degraded = degrade(clean, arguments.task, level) if degraded_path is None else None
    if degraded is None:
        degraded = to_float(read_picture(degraded_path, arguments.task, arguments.gray))
        if degraded.shape != clean.shape:
            got = f"{degraded.shape[1]}x{degraded.shape[0]}"
            raise UserError(f"{degraded_path}: {got} pixels, but the clean {path} has {width}x{height}")
    shown = []
    for column in columns:
        if column.method is None:
            shown.append(Shown(column.name, to_uint8(degraded), _scores_of_input(degraded, clean), degraded=True))
        else:
            restored = to_uint8(column.method(degraded, level))
            shown.append(Shown(column.name, restored, scores(restored, clean)))
    if crop is None:
        judged = [one.pixels for one, column in zip(shown, columns, strict=True) if column.method] or [shown[0].pixels]
        crop = find_crop(clean, judged, arguments.crop_size)
    title = f"{path.stem}, {LEVEL_NAMES[arguments.task]} {level:g}" if degraded_path is None else path.stem
    return Row(title, clean, shown, tuple(crop))


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
        description="Degrade clean pictures, restore them by several methods, and draw crops beside the truth with "
        "PSNR and SSIM of the whole pictures; on demand error maps and spectra.",
    )
    parser.add_argument("pictures", nargs="+", type=Path, metavar="CLEAN", help="clean pictures, a row each")
    parser.add_argument("--task", required=True, choices=tuple(LEVEL_NAMES), help="Gaussian noise or JPEG artefacts")
    parser.add_argument("--sigma", type=float, metavar="S", help="noise level, 0-255 scale, to add")
    parser.add_argument("--quality", type=int, metavar="Q", help="JPEG quality to compress with")
    parser.add_argument("--degraded", nargs="+", type=Path, metavar="FILE", help="one for each clean picture, instead")
    parser.add_argument(
        "--methods",
        nargs="+",
        metavar="[LABEL=]METHOD",
        help="columns: input, nlm, shipped names or .safetensors files (default: input, nlm, the shipped weights)",
    )
    parser.add_argument("--gray", action="store_true", help="the gray protocol")
    parser.add_argument(
        "--crop", nargs="+", type=_crop, metavar="X,Y,W,H", help="one for all pictures or one for each; default: chosen"
    )
    parser.add_argument("--crop-size", type=int, default=_CROP, metavar="N", help="side of chosen crops (%(default)s)")
    parser.add_argument("--zoom", type=int, metavar="N", help="figure pixels for each pixel of a crop")
    parser.add_argument("--errors", action="store_true", help="add error maps")
    parser.add_argument("--spectra", action="store_true", help="add power spectra")
    parser.add_argument("--device", help="torch device (default: CUDA where there is one, else the CPU)")
    parser.add_argument("--tile", type=int, metavar="N", help="restore in tiles of N pixels; 0: whole pictures")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write scores, crops and metadata to this file")
    parser.add_argument("-o", "--out", nargs="+", type=Path, required=True, help="figure files: .png, .pdf, .svg")
    return parser


def _check(arguments: argparse.Namespace) -> None:
    level, wanted = _level(arguments), f"--{LEVEL_NAMES[arguments.task]}"
    other = arguments.quality if arguments.task == "denoise" else arguments.sigma
    if other is not None:
        raise UserError(f"--task {arguments.task} takes {wanted}, not the level of the other task")
    if level is None and arguments.degraded is None:
        raise UserError(f"how is the picture to be degraded? Add {wanted}, or --degraded with degraded pictures")
    least, most = (0, math.inf) if arguments.task == "denoise" else (1, 101)
    if level is not None and not least <= level < most:
        raise UserError(f"{wanted} {level}: expected a number from {least}" + (" to 100" if least else ""))
    count = len(arguments.pictures)
    for name, given, allowed in (
        ("--degraded", arguments.degraded, (count,)),
        ("--crop", arguments.crop, (1, count)),
    ):
        if given is not None and len(given) not in allowed:
            raise UserError(f"{name}: {len(given)} given for {count} pictures; expected one for each")
    for name, value in (("--crop-size", arguments.crop_size), ("--zoom", arguments.zoom)):
        if value is not None and value < 1:
            raise UserError(f"{name} must be at least 1, got {value}")
    for path in arguments.out:
        if path.suffix not in KINDS:
            raise UserError(f"{path}: a figure's name ends in {', '.join(KINDS)}")
        prepare_output(path)
    if arguments.json is not None:
        prepare_output(arguments.json)


def main(argv: list[str]) -> int:
    arguments = _parser().parse_args(argv)
    _check(arguments)
    require_matplotlib()
    from vheatir.compare.figure import DPI, caption, draw

    columns, count = open_columns(arguments), len(arguments.pictures)
    crops = (arguments.crop or [None]) * (count if len(arguments.crop or [None]) == 1 else 1)
    rows = []
    for path, degraded, crop in zip(arguments.pictures, arguments.degraded or [None] * count, crops, strict=True):
        rows.append(compare_picture(path, degraded, columns, crop, arguments))
        sys.stdout.write(f"{path}, crop {','.join(map(str, rows[-1].crop))}\n")
        sys.stdout.writelines(f"  {one.name:24} {caption(one.scores, True)}\n" for one in rows[-1].shown)
    blocks = arguments.task == "jpeg"
    figure = draw(rows, errors=arguments.errors, spectra=arguments.spectra, blocks=blocks, zoom=arguments.zoom)
    for path in arguments.out:
        with atomic_open(path) as file:
            figure.savefig(file, format=path.suffix[1:], dpi=DPI)
    if arguments.json is not None:
        write_json(arguments.json, _result(arguments, argv, columns, rows))
    sys.stdout.write(f"written: {', '.join(map(str, arguments.out))}\n")
    return 0


def _result(arguments, argv: list[str], columns: Sequence[Column], rows) -> dict[str, Any]:
    pictures = [
        {
            "image": path.name,
            "crop": dict(zip("xywh", row.crop, strict=True)),
            "scores": {one.name: dict(one.scores) for one in row.shown},
        }
        for path, row in zip(arguments.pictures, rows, strict=True)
    ]
    return {
        "metadata": run_metadata(["vheatir", "compare", *argv]),
        "task": arguments.task,
        LEVEL_NAMES[arguments.task]: _level(arguments),
        "methods": {column.name: column.about for column in columns},
        "pictures": pictures,
    }


if __name__ == "__main__":
    raise SystemExit(run_command(main))
