"""Peak memory and time of `vheatir restore` on one large image, in a process of its own.

    python benchmarks/large_images.py --task denoise --megapixels 100 --format tif png --json OUT.json

The image is a repeated photograph of scikit-image with seeded noise, of 16 bits as TIFF (deflated strips) and PNG and
of 8 bits as JPEG. `peak_mib` is the largest resident memory of the process, Python and libraries included;
`start_mib` what it takes to restore an image of 64x64 pixels.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import skimage.data

from vheatir.cli import run
from vheatir.image_io.tiff_info import TiffInfo
from vheatir.image_io.write import write_blocks
from vheatir.restore.defaults import PRECISIONS, TASKS
from vheatir.utils.run_metadata import prepare_output, run_metadata, write_json

SIGMA = 25.0
_ROWS = 256
_DEPTHS = {"tif": 16, "png": 16, "jpg": 8}

# Starts the command in a child and prints the child's peak resident memory, whatever else this process holds.
_MEASURE = """
import resource, subprocess, sys
status = subprocess.run(sys.argv[1:], stderr=subprocess.DEVNULL).returncode
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print(status, peak if sys.platform == "darwin" else peak * 1024)
"""


def image_rows(height: int, width: int, depth: int) -> Iterator[np.ndarray]:
    """A noisy photograph, repeated and mirrored, in blocks of rows."""
    photo = skimage.data.astronaut()
    photo = np.concatenate([photo, photo[::-1]])
    photo = np.concatenate([photo, photo[:, ::-1]], axis=1).astype(np.float32) / 255
    rng = np.random.default_rng(0)
    columns = np.arange(width) % photo.shape[1]
    for top in range(0, height, _ROWS):
        rows = np.arange(top, min(top + _ROWS, height)) % photo.shape[0]
        block = photo[rows][:, columns]
        block = block + rng.standard_normal(block.shape, dtype=np.float32) * np.float32(SIGMA / 255)
        yield np.rint(block.clip(0, 1) * (2**depth - 1)).astype(f"uint{depth}")


def write_image(path: Path, height: int, width: int) -> None:
    """Write `image_rows` in the format of the suffix."""
    depth = _DEPTHS[path.suffix[1:]]
    extras = {"tiff": TiffInfo(width, height, depth, 2, compressed=True)} if path.suffix == ".tif" else {}
    write_blocks(path, (height, width, 3), depth, image_rows(height, width, depth), extras)


def measure(path: Path, folder: Path, arguments: argparse.Namespace) -> tuple[float, float]:
    """Peak memory in MiB and seconds of restoring one file."""
    command = [
        sys.executable,
        "-m",
        "vheatir",
        "restore",
        str(path),
        "-o",
        str(folder / "out"),
        "--task",
        arguments.task,
    ]
    command += ["--overwrite", "--max-megapixels", "1e6", "--device", arguments.device]
    command += ["--weights", arguments.weights] if arguments.weights else []
    command += ["--precision", arguments.precision]
    command += ["--tile", str(arguments.tile)] if arguments.tile is not None else []
    root = str(Path(__file__).resolve().parents[1])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))}
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, *command], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    status, peak = map(int, done.stdout.split())
    if status != 0:
        raise SystemExit(f"restoring {path.name} failed with status {status}; run: {' '.join(command)}")
    return peak / 2**20, time.monotonic() - begun


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS, default="denoise")
    parser.add_argument("--weights", help="shipped name or file (default: the task's)")
    parser.add_argument("--megapixels", type=float, nargs="+", default=[100.0])
    parser.add_argument("--format", choices=sorted(_DEPTHS), nargs="+", default=["tif"])
    parser.add_argument("--tile", type=int, help="pixels (default: chosen by the command)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args(argv)
    if arguments.json:
        prepare_output(arguments.json)
    results = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for kind in arguments.format:
            write_image(folder / f"small.{kind}", 64, 64)
            start_mib, _ = measure(folder / f"small.{kind}", folder, arguments)
            for megapixels in arguments.megapixels:
                height = round((megapixels * 1e6 / 1.5) ** 0.5)
                size = (height, round(1.5 * height))
                write_image(folder / f"large.{kind}", *size)
                peak_mib, seconds = measure(folder / f"large.{kind}", folder, arguments)
                row = {"format": kind, "bits": _DEPTHS[kind], "height": size[0], "width": size[1]}
                row |= {"peak_mib": round(peak_mib), "start_mib": round(start_mib), "seconds": round(seconds, 1)}
                results.append(row)
                print(row, flush=True)
    if arguments.json:
        write_json(arguments.json, {"results": results, "metadata": run_metadata(sys.argv)})


if __name__ == "__main__":
    raise SystemExit(run(main))
