"""Restoration beyond the training crop: whole image against tiles, `exact` against `published` embedding resize.

    python benchmarks/beyond_crop.py --task denoise --level 25 --data FOLDER --crop 64 --json OUT.json

The same area is restored in each way: from every image the center of 1, 2 and 4 times the training crop is cut,
degraded as in the evaluation protocol, and restored at once or in overlapping tiles of the training crop's size.
Only networks with a frequency embedding (VHeatIR) have something to resize; for others `resize` is null.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from vheatir import weights
from vheatir.backbone.layers.embedding import RESIZE_MODES
from vheatir.backbone.layers.freezing import freeze
from vheatir.cli import run
from vheatir.data.sources import ImageSource
from vheatir.evaluate.protocol import degrade, read_clean
from vheatir.image_io.arrays import to_uint8
from vheatir.metrics.fidelity import psnr
from vheatir.restore.tiling import apply_tiled
from vheatir.utils.run_metadata import prepare_output, run_metadata, write_json

FACTORS = (1, 2, 4)


def _centre(image: np.ndarray, side: int) -> np.ndarray:
    top, left = ((length - side) // 2 // 8 * 8 for length in image.shape[:2])
    return np.ascontiguousarray(image[top : top + side, left : left + side])


def _restore(network, degraded: np.ndarray, tile: int) -> tuple[np.ndarray, float]:
    planes = torch.from_numpy(degraded.transpose(2, 0, 1)[None])
    start = time.perf_counter()
    with torch.inference_mode():
        output = apply_tiled(network, planes, tile, tile // 4)
    return to_uint8(output.clamp(0, 1)[0].numpy().transpose(1, 2, 0)), time.perf_counter() - start


def measure(network, images: list[np.ndarray], task: str, level: float, crop: int) -> list[dict]:
    """Mean PSNR and seconds for each factor, way and resize mode; images smaller than the largest cut are left out.

    Raises:
        SystemExit: no image is large enough.
    """
    rows, ways = [], [("whole", 0), ("tiles of the crop", crop), ("tiles of twice the crop", 2 * crop)]
    largest = max(FACTORS) * crop
    images = [image for image in images if min(image.shape[:2]) >= largest]
    if not images:
        raise SystemExit(f"expected images of at least {largest} pixels on each side; give others, or a smaller --crop")
    for factor in FACTORS:
        side = factor * crop
        cuts = [_centre(image, side) for image in images]
        inputs = [degrade(cut, task, level) for cut in cuts]
        for resize in RESIZE_MODES if "resize" in network.config else (None,):
            if resize is not None:
                network.resize = resize
            freeze(network)
            for way, tile in ways:
                if tile >= side:
                    continue
                pairs = [_restore(network, degraded, tile) for degraded in tqdm(inputs, desc=f"{side} {resize} {way}")]
                scores = [psnr(restored, cut) for (restored, _), cut in zip(pairs, cuts, strict=True)]
                seconds = float(np.median([elapsed for _, elapsed in pairs]))
                row = {"side": side, "resize": resize, "way": way, "images": len(cuts), "psnr": float(np.mean(scores))}
                rows.append({**row, "median_seconds": seconds})
                print(f"{side:>5}  {resize or '':<9}  {way:<24} {row['psnr']:.3f} dB  {seconds:.3f} s")
    return rows


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=("denoise", "jpeg"), default="denoise")
    parser.add_argument("--level", type=float, default=25, help="sigma or quality")
    parser.add_argument("--data", required=True, help="folder of clean color images")
    parser.add_argument("--weights", help="shipped name or safetensors file (default: the task's own)")
    parser.add_argument("--crop", type=int, default=64, help="training crop in pixels")
    parser.add_argument("--limit", type=int, default=12, help="images used")
    parser.add_argument("--json", type=Path, help="write the figures there")
    arguments = parser.parse_args(argv)
    if arguments.json:
        prepare_output(arguments.json)
    name = arguments.weights or weights.DEFAULTS[arguments.task]["color"]
    network, _ = weights.load(name)
    source = ImageSource(arguments.data)
    images = [read_clean(source, key, arguments.task, gray=False) for key in source.keys[: arguments.limit]]
    rows = measure(network, images, arguments.task, arguments.level, arguments.crop)
    if arguments.json:
        metadata = {**run_metadata(sys.argv), "weights": name, "task": arguments.task, "level": arguments.level}
        write_json(arguments.json, {"results": rows, "metadata": metadata})
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
