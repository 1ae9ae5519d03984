"""Folders of runs: what a resumed run keeps of its curves, and that every reader of JSON takes them."""

import json
import math

import pytest

from vheatir.runs.checkpoints import save_checkpoint
from vheatir.runs.folder import RunFolder
from vheatir.runs.run_logger import RunLogger


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


def opened(root, resume: bool) -> RunFolder:
    """The run "mine" below a folder, as training opens it."""
    (root / "mine.yml").write_text("name: mine\n")
    run = RunFolder(root / "runs", "mine", resume=resume)
    run.open(root / "mine.yml", {"logger": {"use_tb_logger": False}}, [])
    return run


def steps_in(run: RunFolder) -> list[int]:
    """Of the points of the curves."""
    return [json.loads(line)["iteration"] for line in (run.folder / "curves.jsonl").read_text().splitlines()]


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
    """Checkpoints of older versions do not say how many points there were."""
    run = tmp_path / "runs" / "mine"
    save_checkpoint(run / "checkpoints", resumed_at, {"iteration": resumed_at}, keep=1)
    (run / "curves.jsonl").write_text("".join(f'{{"iteration": {step}, "train/loss": 1.0}}\n' for step in steps))
    folder = opened(tmp_path, resume=True)
    folder.close()
    assert steps_in(folder) == kept


def test_points_of_a_run_that_was_killed_soon_after_it_took_larger_batches_come_once(tmp_path):
    """Their steps are below those of the checkpoint, and no new one was written."""
    run = opened(tmp_path, resume=False)
    for step in (4, 8, 12):
        run.log_scalars(step, {"train/loss": 1.0})
    RunLogger(run, 2, write_weights=None).save(12, {"iteration": 12}, best=None)
    run.close()
    for _ in range(2):  # step 12 counts as step 6 now
        run = opened(tmp_path, resume=True)
        for step in (7, 9):
            run.log_scalars(step, {"train/loss": 1.0})
        run.close()
    assert steps_in(run) == [4, 8, 12, 7, 9]
    RunLogger(run, 2, write_weights=None).save(9, {"iteration": 9}, best=None)
    run.log_scalars(11, {"train/loss": 1.0})
    run = opened(tmp_path, resume=True)
    run.close()
    assert steps_in(run) == [4, 8, 12, 7, 9]


def test_an_evaluation_that_was_noted_after_the_checkpoint_before_it_comes_once(tmp_path):
    run = opened(tmp_path, resume=False)
    run.log_scalars(4, {"train/loss": 1.0})
    RunLogger(run, 2, write_weights=None).save(4, {"iteration": 4}, best=None)
    run.log_scalars(4, {"val/psnr": 30.0})
    run.close()
    run = opened(tmp_path, resume=True)
    run.log_scalars(4, {"val/psnr": 30.0})
    run.close()
    assert steps_in(run) == [4, 4]
