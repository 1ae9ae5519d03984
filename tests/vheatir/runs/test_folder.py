"""Folders of runs: what a resumed run keeps of its curves, and that every reader of JSON takes them."""

import json
import math

import pytest

from vheatir.runs.checkpoints import save_checkpoint
from vheatir.runs.folder import RunFolder


def test_curves_hold_no_numbers_that_json_does_not_know(tmp_path):
    run = RunFolder(tmp_path, "clean", resume=False)
    run.folder.mkdir()
    point = {"val/psnr": 30.0, "val/input_psnr": math.inf, "train/grad_norm": math.nan}  # sigma 0; a step of fp16
    run.log_scalars(5, point)
    (line,) = (run.folder / "curves.jsonl").read_text().splitlines()
    found = json.loads(line, parse_constant=pytest.fail)
    assert found == {"iteration": 5, "val/psnr": 30.0, "val/input_psnr": None, "train/grad_norm": None}
    run._drop_what_came_after(5)
    run.log_scalars(5, point)  # of a run that goes on from a checkpoint before its evaluation
    assert (run.folder / "curves.jsonl").read_text() == line + "\n"


@pytest.mark.parametrize(
    ("steps", "resumed_at", "kept"),
    [
        ([2, 4, 6, 8], 6, [2, 4, 6]),
        ([2, 4, 6, 8], 5, [2, 4]),
        ([4, 8, 12, 7, 9, 11], 9, [4, 8, 12, 7, 9]),  # resumed at 12 with larger batches, where it was step 6
        ([4, 8, 12], 2, []),
    ],
)
def test_points_after_the_checkpoint_are_dropped_and_no_others(steps, resumed_at, kept, tmp_path):
    run = tmp_path / "runs" / "mine"
    save_checkpoint(run / "checkpoints", resumed_at, {"iteration": resumed_at}, keep=1)
    (run / "curves.jsonl").write_text("".join(f'{{"iteration": {step}, "train/loss": 1.0}}\n' for step in steps))
    (tmp_path / "mine.yml").write_text("name: mine\n")
    folder = RunFolder(tmp_path / "runs", "mine", resume=True)
    folder.open(tmp_path / "mine.yml", {"logger": {"use_tb_logger": False}}, [])
    folder.close()
    points = [json.loads(line) for line in (run / "curves.jsonl").read_text().splitlines()]
    assert [point["iteration"] for point in points] == kept
