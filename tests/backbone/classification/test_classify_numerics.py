"""Norms over processes, and runs in fewer bits."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("timm", reason="training backbones needs the extra `backbone`")

from safetensors.torch import load_file

from tests.backbone.classification import small
from vheatir.backbone.training.precision import autocast_dtype
from vheatir.backbone.training.processes import Processes
from vheatir.errors import UserError
from vheatir.pretrain import main

ROOT = Path(__file__).resolve().parent.parent.parent.parent


def test_processes_on_gloo_keep_statistics_of_their_own_batches():
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, *torchrun, "-m", "tests.backbone.norms_of_processes"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400, check=False)
    assert ended.returncode == 0, ended.stderr
    (first, first_alone), (second, second_alone) = torch.tensor(json.loads(ended.stdout.splitlines()[-1]))
    torch.testing.assert_close(first, first_alone)
    torch.testing.assert_close(second, second_alone)
    assert (first - second).abs().max() > 1e-3


@pytest.mark.parametrize(
    "device, processes, shared", [("cuda", 2, True), ("cuda", 1, False), ("cpu", 2, False)], ids=str
)
def test_norms_are_shared_on_cuda_alone(make_model, device, processes, shared):
    model = make_model("unified_convnext_micro")
    keys = set(model.state_dict())
    model = Processes(world=processes).with_shared_norms(model, torch.device(device))
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert [isinstance(norm, nn.SyncBatchNorm) for norm in norms] == [shared]
    assert set(model.state_dict()) == keys


@pytest.mark.parametrize("model", ["vheat_tiny", "unified_swin_micro"])
def test_a_run_in_bf16_learns_what_a_run_in_float32_does(model, tmp_path):
    images = small.make_images(tmp_path / "set", train=8, val=4)
    losses = {}
    for amp in ("none", "bf16"):
        network = {"name": model, "dims": 24} if "swin" in model else {}
        recipe = small.make_recipe(
            tmp_path / amp,
            images,
            model=network,
            augment={"auto_augment": None, "erase": 0.0, "mixup": 0.0, "cutmix": 0.0},
            train={"epochs": 4, "accumulate": 1, "lr": 1e-3, "amp": amp},
        )
        assert main(["-opt", str(recipe)]) == 0
        run = tmp_path / amp / "runs" / "small"
        points = [json.loads(line) for line in (run / "curves.jsonl").read_text().splitlines()]
        losses[amp] = [point["train/loss"] for point in points if "train/loss" in point]
        weights = load_file(run / "models" / "latest.safetensors")
        assert {value.dtype for value in weights.values() if value.is_floating_point()} == {torch.float32}
    assert losses["bf16"] != losses["none"]  # it was computed in fewer bits
    assert losses["bf16"][0] == pytest.approx(losses["none"][0], rel=0.05)
    for points in losses.values():
        assert points[-1] < 0.8 * points[0]


def test_types_that_a_device_cannot_compute_in_are_refused(tmp_path, monkeypatch):
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert autocast_dtype("bf16", cpu, refuse_emulation=True) == torch.bfloat16
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    with pytest.raises(ValueError, match=r"train\.amp bf16: this GPU does not compute in bfloat16; take fp16 or none"):
        autocast_dtype("bf16", cuda, refuse_emulation=True)
    recipe = small.make_recipe(tmp_path, small.make_images(tmp_path / "set", train=3, val=1))
    with pytest.raises(UserError, match=r"train\.amp fp16 needs a CUDA device, this run is on cpu; take auto, bf16"):
        main(["-opt", str(recipe), "--set", "train.amp=fp16"])
