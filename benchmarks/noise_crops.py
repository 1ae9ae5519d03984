"""A sheet of crops at 100 %: Gaussian noise removed by non-local means, BM3D and the shipped weights, beside the truth.

    python benchmarks/noise_crops.py datasets/test -o docs/images/noise_crops.webp --json results/noise_crops.json

The folder holds CBSD68 and Set12. The noise is that of `vheatir evaluate`; non-local means and BM3D are told its sigma,
the weights are not. A part of 256x256 pixels around the crop goes through each method. The crop is the square whose
truth changes most from pixel to pixel, or the one that is named here. BM3D is the package bm3d of its authors
(non-commercial use): `pip install bm3d`.
"""

import argparse
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from photo_crops import Row, most_detailed, psnr, save_below, sheet

from vheatir import Restorer
from vheatir.cli import run
from vheatir.data.degradations import add_gaussian_noise
from vheatir.errors import UserError
from vheatir.evaluate.methods import bm3d, nlm
from vheatir.image_io import decode_image, to_float, to_uint8
from vheatir.utils.run_metadata import prepare_output, run_metadata, write_json

_COLUMNS = ("noisy", "non-local means", "BM3D", "vHeatIR", "truth")
_PART, _SIDE = 256, 176  # pixels of what is restored, and of the crop in its middle
_MOST_BYTES = 500_000


class Scene(NamedTuple):
    """A test image, the noise, and where to look: top and left of the crop, None for the most detailed square."""

    title: str
    file: str
    sigma: float
    corner: tuple[int, int] | None = None


_SCENES = (
    Scene("Barbara, stripes, sigma 25", "Set12/09.*", 25, (300, 320)),
    Scene("Barbara, stripes, sigma 50", "Set12/09.*", 50, (300, 320)),
    Scene("253027, zebras, sigma 25", "CBSD68/253027.*", 25),
    Scene("302008, a face, sigma 50", "CBSD68/302008.*", 50, (30, 110)),
    Scene("102061, a castle, sigma 50", "CBSD68/102061.*", 50),
)


def truth_of(folder: Path, pattern: str) -> np.ndarray:
    """uint8 of the one file of that name, RGB or gray."""
    found = sorted(folder.glob(pattern))
    if not found:
        raise UserError(f"{folder / pattern}: there is no such image; give the folder of CBSD68 and Set12")
    return decode_image(found[0].read_bytes(), str(found[0]))


def inside(start: int, length: int, whole: int) -> int:
    """The start of a range of that length within the whole, as near as can be."""
    return max(0, min(start, whole - length))


def row_of(scene: Scene, folder: Path, restorer: Restorer) -> tuple[Row, dict[str, Any]]:
    """The crops of a scene and the PSNR of each in the part that was restored."""
    truth = truth_of(folder, scene.file)
    gray = truth.ndim == 2
    colors = np.repeat(truth[..., None], 3, axis=2) if gray else truth
    top, left = scene.corner or most_detailed(colors, _SIDE)
    margin = (_PART - _SIDE) // 2
    first, second = (inside(at - margin, _PART, side) for at, side in zip((top, left), truth.shape[:2], strict=True))
    noisy = add_gaussian_noise(to_float(truth), scene.sigma, np.random.RandomState(0))
    noisy = np.ascontiguousarray(noisy[first : first + _PART, second : second + _PART]).astype(np.float32)
    part = truth[first : first + _PART, second : second + _PART]
    results = [noisy, nlm(noisy, scene.sigma), bm3d(noisy, scene.sigma), restorer.restore(noisy)]
    shown = [to_uint8(np.clip(one, 0, 1)) for one in results] + [part]
    scores = {name: psnr(one, part) for name, one in zip(_COLUMNS[1:-1], shown[1:-1], strict=True)}
    sys.stdout.write(f"{scene.title}: {', '.join(f'{name} {value:.2f} dB' for name, value in scores.items())}\n")
    crop = slice(top - first, top - first + _SIDE), slice(left - second, left - second + _SIDE)
    crops = [np.repeat(one[..., None], 3, axis=2) if gray else one for one in shown]
    title = f"{scene.title}: {' / '.join(f'{value:.1f}' for value in scores.values())} dB"
    return Row(title, [one[crop] for one in crops]), {"sigma": scene.sigma, "top": top, "left": left, "psnr": scores}


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="with CBSD68 and Set12 in it")
    parser.add_argument("-o", "--output", type=Path, required=True, help="WebP file to write")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    arguments = parser.parse_args(argv)
    if arguments.json:
        prepare_output(arguments.json)
    restorer, rows, results = Restorer("denoise"), [], {}
    for scene in _SCENES:
        row, results[scene.title] = row_of(scene, arguments.folder, restorer)
        rows.append(row)
    save_below(sheet(rows, _COLUMNS), arguments.output, _MOST_BYTES)
    if arguments.json:
        write_json(arguments.json, {"scenes": results, "metadata": run_metadata(sys.argv)})
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
