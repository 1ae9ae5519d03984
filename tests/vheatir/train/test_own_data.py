"""From pairs of one's own to restored images."""

import cv2
import numpy as np

from vheatir.cli import main
from vheatir.evaluate import evaluate
from vheatir.image_io import read_image


def test_a_network_trained_on_pairs_restores_and_is_evaluated(train, small_photos, tmp_path):
    for side in ("train", "val"):
        for path in (small_photos / side).iterdir():
            (tmp_path / side).mkdir(exist_ok=True)
            cv2.imwrite(str(tmp_path / side / path.name), cv2.imread(str(path)) // 2)
    tables = {
        side: f"{{type: PairedDataset, dataroot_gt: {small_photos / side}, dataroot_lq: {tmp_path / side}}}"
        for side in ("train", "val")
    }
    paired = [f"datasets.{side}={table}" for side, table in tables.items()]
    folder = train(*paired, "datasets.train.gt_size=16", "datasets.train.batch_size_per_gpu=2")
    weights = folder / "models" / "best.safetensors"
    source = tmp_path / "val" / "val0.png"
    assert (
        main(["restore", str(source), "-o", str(tmp_path / "out"), "--weights", str(weights), "--device", "cpu"]) == 0
    )
    restored, degraded = (read_image(path).pixels for path in (tmp_path / "out" / "val0.png", source))
    assert restored.shape == degraded.shape and np.any(restored != degraded)

    for name in ("val0", "val1"):
        (tmp_path / "test").mkdir(exist_ok=True)
        for ending, folder in (("real", tmp_path / "val"), ("mean", small_photos / "val")):
            (tmp_path / "test" / f"{name}_{ending}.png").write_bytes((folder / f"{name}.png").read_bytes())
    (result,) = evaluate([tmp_path / "test"], "photo", gray=False, weights=weights)
    best = max(point["val/psnr"] for point in train.curves(weights.parents[1]) if "val/psnr" in point)
    assert abs(result["restored"]["psnr"] - best) < 0.02
