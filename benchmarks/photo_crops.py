"""A sheet of crops at 100 %: photographs of five cameras, restored, and the mean of many shots of the same scene.

    python benchmarks/photo_crops.py datasets/test -o docs/images/photo_crops.webp
    python benchmarks/photo_crops.py datasets/test --failures 5 -o docs/images/photo_failures.webp

The folder holds CC15 and PolyU50 as `vheatir evaluate --task photo` takes them (`*_real.*`, `*_mean.*`). Each image
is restored whole by the weights of the task photo, as `vheatir restore` does. The crop is the square whose mean of many
shots changes most from pixel to pixel: where detail can be lost. Prints the PSNR of each whole image before and
after. With `--failures N` the sheet shows the worst squares of both sets instead: of each scene the square with the
largest squared error of the result, of the N scenes in which that is largest.
"""

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vheatir import Restorer
from vheatir.cli import run
from vheatir.errors import UserError
from vheatir.image_io import decode_image, to_float, to_uint8
from vheatir.utils.files import atomic_open

_CAMERAS = {
    "Canon EOS 5D Mark III, ISO 3200": "CC15/5dmark3_iso3200_3",
    "Nikon D600, ISO 3200": "CC15/d600_iso3200_1",
    "Nikon D800, ISO 6400": "CC15/d800_iso6400_1",
    "Canon EOS 80D, ISO 12800": "PolyU50/Canon80D_8_8_12800_printer_11",
    "Sony A7 II, ISO 3200": "PolyU50/Sony_4-5_125_3200_plant_14",
}
_COLUMNS = ("photograph", "restored", "mean of many shots")
_SIDE, _GAP, _LINE = 224, 4, 20  # pixels of a crop, between crops, of a line of text
_MOST_BYTES = 300_000


class Row(NamedTuple):
    """A camera and its crops, uint8 RGB of the same size."""

    camera: str
    crops: list[np.ndarray]


def version(folder: Path, name: str, kind: str) -> np.ndarray:
    """uint8 RGB of `NAME_KIND` with whatever suffix."""
    found = sorted(folder.glob(f"{name}_{kind}.*"))
    if not found:
        raise UserError(f"{folder / name}_{kind}: there is no such image; give the folder of CC15 and PolyU50")
    return decode_image(found[0].read_bytes(), str(found[0]))


def most_detailed(image: np.ndarray, side: int) -> tuple[int, int]:
    """Top and left of the square with the largest mean |difference| between neighboring pixels of its luma."""
    luma = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float64)
    change = np.zeros_like(luma)
    change[:, 1:] += np.abs(np.diff(luma, axis=1))
    change[1:] += np.abs(np.diff(luma, axis=0))
    total = cv2.integral(change)
    inner = total[side:, side:] - total[:-side, side:] - total[side:, :-side] + total[:-side, :-side]
    top, left = np.unravel_index(np.argmax(inner), inner.shape)
    return int(top), int(left)


def worst_square(restored: np.ndarray, truth: np.ndarray, side: int) -> tuple[int, int, float]:
    """Top, left and mean squared error of the square in which the result is farthest from the truth."""
    squared = ((restored.astype(np.float64) - truth) ** 2).mean(axis=2)
    total = cv2.integral(squared)
    inner = total[side:, side:] - total[:-side, side:] - total[side:, :-side] + total[:-side, :-side]
    top, left = np.unravel_index(np.argmax(inner), inner.shape)
    return int(top), int(left), float(inner[top, left]) / side**2


def psnr(image: np.ndarray, truth: np.ndarray) -> float:
    """dB over the three channels."""
    return float(cv2.PSNR(image, truth))


def rows_of(folder: Path, side: int, weights: str | None) -> list[Row]:
    """Every camera's image restored, and what the sheet shows of it."""
    restorer, rows = Restorer("photo", weights), []
    for camera, name in _CAMERAS.items():
        photo, mean = version(folder, name, "real"), version(folder, name, "mean")
        restored = to_uint8(restorer.restore(to_float(photo)))
        sys.stdout.write(f"{camera}: {psnr(photo, mean):.2f} -> {psnr(restored, mean):.2f} dB\n")
        top, left = most_detailed(mean, side)
        versions = (photo, restored, mean)
        rows.append(Row(camera, [image[top : top + side, left : left + side] for image in versions]))
    return rows


def failures_of(folder: Path, side: int, weights: str | None, count: int) -> list[Row]:
    """The worst squares of all pairs, one of each image, worst first; the images of a camera's series count once."""
    restorer = Restorer("photo", weights)
    found: dict[str, tuple[float, Row]] = {}
    for path in sorted(folder.glob("CC15/*_real.*")) + sorted(folder.glob("PolyU50/*_real.*")):
        name = f"{path.parent.name}/{path.stem.removesuffix('_real')}"
        photo, mean = version(folder, name, "real"), version(folder, name, "mean")
        restored = to_uint8(restorer.restore(to_float(photo)))
        top, left, error = worst_square(restored, mean, side)
        crops = [image[top : top + side, left : left + side] for image in (photo, restored, mean)]
        gains = f"{psnr(crops[0], crops[2]):.1f} dB, restored {psnr(crops[1], crops[2]):.1f} dB"
        series = name.rsplit("_", 1)[0]
        if series not in found or error > found[series][0]:
            found[series] = (error, Row(f"{path.stem.removesuffix('_real')}: {gains}", crops))
    if not found:
        raise UserError(f"{folder}: holds no CC15/*_real.* or PolyU50/*_real.*; give the folder of both sets")
    return [row for _, row in sorted(found.values(), key=lambda one: -one[0])[:count]]


def sheet(rows: list[Row], columns: tuple[str, ...] = _COLUMNS) -> Image.Image:
    """All crops, pixel for pixel, under the names of their columns and of their camera."""
    side = rows[0].crops[0].shape[0]
    step = _LINE + side + _GAP
    width = len(columns) * (side + _GAP) - _GAP
    sheet = Image.new("RGB", (width, _LINE + len(rows) * step - _GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for column, title in enumerate(columns):
        draw.text((column * (side + _GAP) + side // 2, _LINE // 2), title, "black", font, anchor="mm")
    for number, row in enumerate(rows):
        top = _LINE + number * step
        draw.text((2, top + _LINE // 2), row.camera, "black", font, anchor="lm")
        for column, crop in enumerate(row.crops):
            sheet.paste(Image.fromarray(crop), (column * (side + _GAP), top + _LINE))
    return sheet


def save_below(sheet: Image.Image, path: Path, most_bytes: int) -> None:
    """As WebP of the highest quality, in steps of 5, that stays below so many bytes."""
    for quality in range(95, 0, -5):
        with atomic_open(path) as file:
            sheet.save(file, "WEBP", quality=quality, method=6)
        if path.stat().st_size < most_bytes:
            sys.stdout.write(f"{path}: {path.stat().st_size} bytes at quality {quality}\n")
            return
    raise UserError(f"{path}: not below {most_bytes} bytes at any quality; take smaller crops")


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="with CC15 and PolyU50 in it")
    parser.add_argument("-o", "--output", type=Path, required=True, help="WebP file to write")
    parser.add_argument("--failures", type=int, metavar="N", help="show the N worst squares instead")
    parser.add_argument("--weights", metavar="NAME", help="others than those of the task photo")
    parser.add_argument("--side", type=int, default=_SIDE, help="pixels of a crop (default: %(default)s)")
    arguments = parser.parse_args(argv)
    if arguments.failures:
        rows = failures_of(arguments.folder, arguments.side, arguments.weights, arguments.failures)
    else:
        rows = rows_of(arguments.folder, arguments.side, arguments.weights)
    save_below(sheet(rows), arguments.output, _MOST_BYTES)
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
