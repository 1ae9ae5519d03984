"""`vheatir demo`: restores a noisy and an over-compressed photograph, then trains a small network for a minute."""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
from skimage import data

from vheatir.errors import UserError
from vheatir.evaluate.protocol import degrade
from vheatir.image_io.arrays import to_uint8
from vheatir.image_io.write import save_png
from vheatir.metrics.fidelity import psnr, ssim
from vheatir.restore.restorer import Restorer
from vheatir.utils.run_metadata import prepare_folder

_CASES = (  # task, photograph that scikit-image installs, level
    ("denoise", "chelsea", 25),
    ("jpeg", "coffee", 10),
)
_LEVEL_NAMES = {"denoise": "Gaussian noise, sigma 25", "jpeg": "JPEG, quality 10"}
_GAP = 8  # white pixels between the images


def _side_by_side(images: list[np.ndarray]) -> np.ndarray:
    gap = np.full((images[0].shape[0], _GAP, 3), 255, np.uint8)
    row = [part for image in images for part in (image, gap)]
    return np.concatenate(row[:-1], axis=1)


def restore_photographs(out: Path) -> None:
    """Degrade and restore one photograph per task; print metrics, write input | restored | original as PNG."""
    for task, name, level in _CASES:
        clean = getattr(data, name)()
        degraded = degrade(clean, task, level)
        start = time.perf_counter()
        restored = to_uint8(Restorer(task).restore(degraded))
        seconds = time.perf_counter() - start
        before = to_uint8(np.clip(degraded, 0, 1))
        path = out / f"{task}.png"
        save_png(path, _side_by_side([before, restored, clean]))
        sys.stdout.write(
            f"{name}, {_LEVEL_NAMES[task]}: PSNR {psnr(before, clean):.2f} -> {psnr(restored, clean):.2f} dB, "
            f"SSIM {ssim(before, clean):.3f} -> {ssim(restored, clean):.3f}, {seconds:.1f} s; {path}\n"
        )


def train_smoke(out: Path) -> int:
    """Train `smoke.yml` and check that the loss fell and the validation PSNR rose above the noisy input's.

    Returns:
        The status of `vheatir train`: 0, or 130 where it was stopped, and then nothing is checked.

    Raises:
        UserError: the training did not learn.
    """
    from vheatir.train.trainer import train  # BasicSR is an extra

    if not train("smoke", overrides=[f"path.experiments_root={json.dumps(str(out))}"]):
        return 130
    curves = [json.loads(line) for line in (out / "smoke" / "curves.jsonl").read_text().splitlines()]
    losses = [point["train/l_pix"] for point in curves if "train/l_pix" in point]
    last = next(point for point in reversed(curves) if "val/psnr" in point)
    before = last["val/input_psnr"]
    after = last["val/psnr"]
    sys.stdout.write(
        f"training: loss {losses[0]:.4f} -> {losses[-1]:.4f}, validation PSNR {before:.2f} (noisy) -> {after:.2f} dB\n"
    )
    if losses[-1] >= losses[0] or after <= before:
        raise UserError("the training did not learn: please report this with the output above and `vheatir info`")
    return 0


def main(argv: list[str]) -> int:
    """Entry of `vheatir demo`."""
    parser = argparse.ArgumentParser("vheatir demo", description=__doc__)
    parser.add_argument("-o", "--out", type=Path, default=Path("results/demo"), help="where images and the run go")
    parser.add_argument("--no-train", action="store_true", help="only restore the two photographs")
    arguments = parser.parse_args(argv)
    prepare_folder(arguments.out)
    restore_photographs(arguments.out)
    return 0 if arguments.no_train else train_smoke(arguments.out)
