"""The folder of a run: curves that every reader of JSON takes."""

import json
import math

import pytest

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
