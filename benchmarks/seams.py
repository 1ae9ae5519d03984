"""Whether tiles leave seams: mean |gradient| of (output - input) on tile borders against everywhere else.

    python benchmarks/seams.py --task denoise --photos datasets/test/CBSD68 --json OUT.json --figure OUT.png

The image has 3840x2160 pixels, is degraded (Gaussian noise of sigma 25, or JPEG at quality 10) and restored as
`vheatir restore` does. `--photos` takes a photograph of at least that size, or a folder of smaller ones, which are laid
side by side at their own resolution; by default a photograph of scikit-image is enlarged. A border is where a tile
begins or ends inside the image; the gradient across it is compared with the gradients in the same direction at all
other places that lie alike in the 16x16 grid of JPEG's blocks: tiles begin on that grid, and there (output - input) has
edges of its own where artifacts are removed. `without` is the same for tiles that neither overlap nor blend, as a check
that the measure sees seams: it departs from 1, upwards where tiles disagree, downwards where they restore less at their
borders. The image to look at shows (output - input) around a corner of four tiles, and the output beside it, four
times enlarged.
"""

import argparse
import sys
from pathlib import Path

import cv2
import numpy as np
import skimage.data

from vheatir.cli import run
from vheatir.data.degradations import add_gaussian_noise, jpeg_roundtrip
from vheatir.data.sources import list_images
from vheatir.errors import UserError
from vheatir.image_io import decode_image, to_float, to_uint8
from vheatir.restore import tiling
from vheatir.restore.defaults import TASKS
from vheatir.restore.restorer import Restorer
from vheatir.utils.run_metadata import prepare_output, run_metadata, write_json

_GRID = 16  # pixels; a JPEG's blocks of 8, where its colors have half the resolution
_VIEW, _ENLARGED, _CONTRAST = 160, 4, 4.0  # pixels shown around the corner, how much larger, differences stretched


def photographs(place: Path, height: int, width: int) -> np.ndarray:
    """uint8 RGB; the photographs of a file or folder side by side, those on edge turned, cropped to the size."""
    files = [place / name for name in list_images(place)] if place.is_dir() else [place]
    photos = [decode_image(file.read_bytes(), str(file)) for file in files]
    photos = [np.rot90(photo) if photo.shape[0] > photo.shape[1] else photo for photo in photos]
    rows, columns = min(len(photo) for photo in photos), min(photo.shape[1] for photo in photos)
    across, down = -(-width // columns), -(-height // rows)
    if across * down > len(photos):
        raise UserError(
            f"{place}: {len(photos)} photographs of {columns}x{rows} do not fill {width}x{height}; give more"
        )
    lines = [
        np.concatenate([photo[:rows, :columns] for photo in photos[line * across : (line + 1) * across]], axis=1)
        for line in range(down)
    ]
    return np.concatenate(lines)[:height, :width]


def enlarged(height: int, width: int) -> np.ndarray:
    """uint8 RGB; an enlarged photograph with the fine grain that enlarging takes away put back."""
    photo = cv2.resize(skimage.data.astronaut(), (width, height), interpolation=cv2.INTER_CUBIC).astype(np.float32)
    grain = np.random.default_rng(1).normal(0, 2, (height, width, 1))
    return np.rint((photo + grain).clip(0, 255)).astype(np.uint8)


def degrade(clean: np.ndarray, task: str) -> np.ndarray:
    """float32, as in the evaluation protocol."""
    if task == "denoise":
        return add_gaussian_noise(to_float(clean), 25, np.random.default_rng(0))
    return to_float(jpeg_roundtrip(clean, 10))


def borders(length: int, tile: int, overlap: int) -> np.ndarray:
    """Where tiles begin or end inside an axis: b stands for the step from pixel b - 1 to pixel b."""
    spans = tiling.plan_axis(length, tile, overlap)
    return np.array(sorted({edge for start, stop, _ in spans for edge in (start, stop)} - {0, length}), dtype=int)


def seam_ratio(difference: np.ndarray, tile: int, overlap: int) -> float:
    """Mean |gradient| across tile borders over the mean elsewhere at the same phase, over both directions."""
    on, off = [], []
    for axis in (0, 1):
        gradient = np.abs(np.diff(difference, axis=axis)).mean(axis=2).mean(axis=1 - axis)
        at = borders(difference.shape[axis], tile, overlap) - 1
        elsewhere = np.ones(len(gradient), dtype=bool)
        elsewhere[at] = False
        phase = np.arange(len(gradient)) % _GRID
        on.append(gradient[at])
        off.append([gradient[elsewhere & (phase == line % _GRID)].mean() for line in at])
    return float(np.concatenate(on).mean() / np.concatenate(off).mean())


def view(difference: np.ndarray, output: np.ndarray, tile: int, overlap: int) -> np.ndarray:
    """The place of `_VIEW` pixels a side around a corner of tiles, as difference and as output."""
    top, left = (
        int(edges[len(edges) // 2]) - _VIEW // 2
        for edges in (borders(side, tile, overlap) for side in output.shape[:2])
    )
    place = (slice(max(top, 0), max(top, 0) + _VIEW), slice(max(left, 0), max(left, 0) + _VIEW))
    both = np.concatenate([0.5 + _CONTRAST * difference[place], output[place]], axis=1)
    return to_uint8(np.repeat(np.repeat(both, _ENLARGED, axis=0), _ENLARGED, axis=1))


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS, default="denoise")
    parser.add_argument("--weights", help="shipped name or file (default: the task's)")
    parser.add_argument("--size", type=int, nargs=2, default=[2160, 3840], metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--photos", type=Path, help="a large photograph, or a folder of small ones")
    parser.add_argument("--tile", type=int, default=tiling.DEFAULT_TILE)
    parser.add_argument("--overlap", type=int, default=tiling.DEFAULT_OVERLAP)
    parser.add_argument("--device")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--figure", type=Path)
    arguments = parser.parse_args(argv)
    for path in filter(None, (arguments.json, arguments.figure)):
        prepare_output(path)
    clean = photographs(arguments.photos, *arguments.size) if arguments.photos else enlarged(*arguments.size)
    degraded = degrade(clean, arguments.task)
    results = []
    for name, overlap in (("blended", arguments.overlap), ("without", 0)):
        restorer = Restorer(arguments.task, arguments.weights, arguments.device, arguments.tile, overlap)
        output = restorer.restore(degraded)
        difference = output - degraded
        ratio = seam_ratio(difference, arguments.tile, overlap)
        results.append({"tiles": name, "tile": arguments.tile, "overlap": overlap, "ratio": round(ratio, 4)})
        print(results[-1], flush=True)
        if name == "blended" and arguments.figure:
            shown = view(difference, output, arguments.tile, overlap)
            cv2.imwrite(str(arguments.figure), cv2.cvtColor(shown, cv2.COLOR_RGB2BGR))
    if arguments.json:
        size = {
            "task": arguments.task,
            "height": arguments.size[0],
            "width": arguments.size[1],
            "photos": str(arguments.photos),
        }
        write_json(arguments.json, {"results": [size | row for row in results], "metadata": run_metadata(sys.argv)})


if __name__ == "__main__":
    raise SystemExit(run(main))
