"""How well JPEG images are restored, by the position of the grid of 8x8 blocks.

    python benchmarks/jpeg_grid.py datasets/BSD432 --pattern '38*.jpg' --json results/jpeg_grid.json

A file begins with a whole block. Crops of files, and training crops, may begin anywhere within one. The upper left
part of each image is compressed once, alone and with Gaussian noise, in 4:2:0. Crops of the result that begin at other
pixels are restored by each set of weights, and the same area of all is compared with the clean image.
"""

import argparse
import sys
from pathlib import Path

import cv2
import numpy as np

from vheatir import Restorer
from vheatir.cli import run
from vheatir.data.degradations import jpeg_roundtrip
from vheatir.errors import UserError
from vheatir.image_io.arrays import to_float, to_uint8
from vheatir.metrics.fidelity import psnr
from vheatir.utils.run_metadata import prepare_output, run_metadata, write_json

_PERIOD = 16  # pixels in which the chroma blocks of 4:2:0 repeat
_SIDE = 256
_BORDER = 16  # pixels that are not compared, beside those that some of the crops lack
_POSITIONS = (0, 2, 4, 6, 8, 14)  # where the first whole block begins in the crop
_CASES = ((10, 0), (40, 0), (75, 0), (90, 0), (75, 8), (90, 8))  # quality, sigma


def compressed(clean: np.ndarray, quality: int, sigma: float) -> np.ndarray:
    """The image with noise as it comes out of the file; uint8 (H, W, 3)."""
    noise = np.random.RandomState(0).normal(0, sigma, clean.shape)
    return jpeg_roundtrip(to_uint8(np.clip(to_float(clean) + noise / 255, 0, 1)), quality, "4:2:0")


def scores(restorer: Restorer, clean: np.ndarray, decoded: np.ndarray) -> dict[int, float]:
    """PSNR of the same area, restored from crops whose grid begins at each of the positions."""
    found = {}
    side = min(clean.shape[:2]) - _PERIOD
    for position in _POSITIONS:
        start = _PERIOD - position
        crop = slice(start, start + side)
        restored = to_uint8(restorer.restore(to_float(np.ascontiguousarray(decoded[crop, crop]))))
        inner = slice(_PERIOD + _BORDER - start, side - _BORDER - start)
        truth = slice(_PERIOD + _BORDER, side - _BORDER)
        found[position] = psnr(restored[inner, inner], clean[truth, truth])
    return found


def main(argv: list[str]) -> int:
    """Entry."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of clean images")
    parser.add_argument("--pattern", default="*", help="only these files of it (default: all)")
    parser.add_argument("--task", choices=("photo", "jpeg"), default="photo", help="of the weights (default: photo)")
    parser.add_argument("--weights", nargs="+", default=["photo_color_blind"], help="names or files (default: photo)")
    parser.add_argument("--json", type=Path, required=True, help="where to write the figures")
    arguments = parser.parse_args(argv)
    prepare_output(arguments.json)
    images = [cv2.imread(str(path)) for path in sorted(arguments.data.glob(arguments.pattern))]
    images = [np.ascontiguousarray(image[:_SIDE, :_SIDE, ::-1]) for image in images if image is not None]
    if not images or min(min(image.shape[:2]) for image in images) < _SIDE:
        raise UserError(f"{arguments.data}: expected images of at least {_SIDE}x{_SIDE} that match {arguments.pattern}")
    results = {}
    for name in arguments.weights:
        restorer = Restorer(arguments.task, name)
        results[name] = {}
        for quality, sigma in _CASES:
            found = [scores(restorer, image, compressed(image, quality, sigma)) for image in images]
            means = {position: float(np.mean([one[position] for one in found])) for position in _POSITIONS}
            results[name][f"quality {quality}, sigma {sigma}"] = means
            shown = ", ".join(f"{position}: {value:.2f}" for position, value in means.items())
            sys.stdout.write(f"{name}, quality {quality}, sigma {sigma}: {shown}\n")
    content = {"images": len(images), "results": results, "metadata": run_metadata(["python", *sys.argv])}
    write_json(arguments.json, content)
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
