"""What becomes of flat dark colors in noisy photographs: bias of their mean, and grain that stays.

    python benchmarks/dark_colors.py --json results/dark_colors.json

Flat images in the camera noise of options/photo_light.yml, of its upper half (`shot_noise` 0.001 to 0.01), one camera
for each sample, without JPEG, once with noise of
mean zero and once with black clipped in the raw numbers (`one_sided_probability` 1). In levels of 255: `shift`, the
largest difference over the channels between the means of the restored image and of the photograph; `grain`, the
standard deviation of the worst channel before and after. Means over the samples.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import yaml

from vheatir import Restorer
from vheatir.cli import run
from vheatir.data.camera_dataset import CameraNoiseDataset
from vheatir.image_io.write import save_png
from vheatir.utils.run_metadata import prepare_output, run_metadata, write_json

_COLORS = {
    "red": (64, 8, 8),
    "green": (8, 48, 10),
    "blue": (8, 10, 64),
    "purple": (48, 6, 56),
    "gray": (24, 24, 24),
}
_SIDE, _CROP = 192, 128
_RECIPE = Path(__file__).resolve().parent.parent / "options" / "photo_light.yml"
_PLAIN = ("soft", "shrink", "web", "clean", "jpeg", "gray", "text")


def samples(folder: Path, color: tuple[int, int, int], count: int, one_sided: bool) -> list[np.ndarray]:
    """Noisy crops of one flat color, float32 (128, 128, 3) in [0, 1]."""
    folder.mkdir()
    save_png(folder / "flat.png", np.broadcast_to(np.array(color, np.uint8), (_SIDE, _SIDE, 3)))
    options = yaml.safe_load(_RECIPE.read_text(encoding="utf-8"))["datasets"]["train"]
    kept = {key: value for key, value in options.items() if key in CameraNoiseDataset.OPTIONS - {"progressive"}}
    kept |= {f"{name}_probability": 0 for name in _PLAIN} | {"one_sided_probability": float(one_sided)}
    kept |= {"phase": "train", "gt_size": _CROP, "dataroot_gt": str(folder), "shot_noise": {"min": 0.001, "max": 0.01}}
    dataset = CameraNoiseDataset({key: value for key, value in kept.items() if key != "exclude"})
    return [dataset[number]["lq"].permute(1, 2, 0).numpy() for number in range(count)]


def main(argv: list[str]) -> int:
    """Entry."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="where to write the figures")
    parser.add_argument("--weights", metavar="NAME", help="others than those of the task photo")
    parser.add_argument("--samples", type=int, default=12, help="of each color (default: %(default)s)")
    arguments = parser.parse_args(argv)
    prepare_output(arguments.json)
    restorer = Restorer("photo", arguments.weights)
    results = {}
    for clipped in (False, True):
        for name, color in _COLORS.items():
            with tempfile.TemporaryDirectory() as folder:
                noisy = samples(Path(folder) / "flat", color, arguments.samples, clipped)
            restored = [restorer.restore(image) for image in noisy]
            pairs = list(zip(noisy, restored, strict=True))
            shifts = [np.abs((after - before).mean((0, 1))).max() for before, after in pairs]
            grains = [[image.std((0, 1)).max() for image in pair] for pair in pairs]
            before, after = np.mean(grains, axis=0) * 255
            one = {"color": color, "shift": float(np.mean(shifts)) * 255}
            one |= {"grain_before": float(before), "grain_after": float(after)}
            key = f"{name}, {'black clipped' if clipped else 'mean zero'}"
            results[key] = one
            sys.stdout.write(f"{key}: shift {one['shift']:.2f}, grain {before:.2f} -> {after:.2f}\n")
    write_json(arguments.json, {"results": results, "metadata": run_metadata(["python", *sys.argv])})
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
