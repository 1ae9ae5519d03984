"""A run that was stopped or killed at any moment ends, once resumed, with the weights of one that was not: bit for bit.

Everything random is in play: crops, symmetries, noise, and the stochastic depth that draws in the main process.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import vheatir
from vheatir.errors import UserError
from vheatir.train.registry import register_all

pytest.importorskip("basicsr", reason="training needs BasicSR")

ROOT = Path(__file__).resolve().parent.parent.parent.parent
RANDOM = ("network_g.drop_path_rate=0.3", "network_g.depths=[2]", "datasets.train.sigma={min: 0, max: 55}")


def stop_after(monkeypatch, iteration, act):
    """`act()` in the middle of that iteration."""
    from vheatir.train.model import VHeatIRModel

    parts = VHeatIRModel.parts

    def parting(self, current_iter):
        if current_iter == iteration:
            act()
        return parts(self, current_iter)

    monkeypatch.setattr(VHeatIRModel, "parts", parting)


@pytest.mark.parametrize(
    "more",
    [
        (),
        ("datasets.train.num_worker_per_gpu=2",),
        ("train.ema_decay=0", "train.optim_g={type: SGD, lr: 0.01, momentum: 0.9}"),
        ("train.scheduler={type: OneCycleLR, max_lr: 1e-2, total_steps: 12}", "train.warmup_iter=-1"),
        ("train.scheduler={type: CosineAnnealingLR, T_max: 12}", "train.warmup_iter=7", "train.amp=bf16"),
        ("train.scheduler={type: CosineAnnealingRestartLR, periods: [6, 6], restart_weights: [1, 0.5]}",),
        ("train.amp=fp16", "train.accumulate=2"),
    ],
    ids=["0 workers", "2 workers", "no average", "one cycle", "cosine", "restarts", "fp16"],
)
def test_resume_equals_an_uninterrupted_run(train, monkeypatch, more):
    straight = train(*RANDOM, *more, name="straight")
    with monkeypatch.context() as patch:
        stop_after(patch, 5, lambda: signal.raise_signal(signal.SIGINT))
        folder = train(*RANDOM, *more, name="stopped", status=130)
    torch.manual_seed(99)  # whatever the process has drawn in between
    assert train(*RANDOM, *more, name="stopped", resume=True) == folder
    train.assert_same(straight, folder)
    assert train.curves(folder) == train.curves(straight)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_at_an_iteration_with_a_checkpoint_to_resume(train, monkeypatch, number, capsys):
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    stop_after(monkeypatch, 3, lambda: signal.raise_signal(number))
    folder = train(status=130)
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["iter_00000003.pt"]
    assert "stopped at iteration 3; go on with --resume" in (folder / "train.log").read_text()
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers


def test_a_second_signal_ends_the_run_at_once(train, monkeypatch):
    stop_after(monkeypatch, 3, lambda: [signal.raise_signal(signal.SIGINT) for _ in range(2)])
    with pytest.raises(KeyboardInterrupt):
        train()


def test_resume_of_a_finished_run_changes_nothing(train):
    folder = train()
    before = (folder / "models" / "latest.safetensors").read_bytes(), train.curves(folder)
    train(resume=True)
    assert ((folder / "models" / "latest.safetensors").read_bytes(), train.curves(folder)) == before


def test_an_evaluation_that_failed_has_its_iteration_when_it_is_made_up_for(train, monkeypatch):
    from vheatir.train.model import VHeatIRModel

    calls = []
    validate = VHeatIRModel.validate

    def failing(self, *arguments, **more):
        calls.append(arguments)
        if len(calls) == 2:
            raise UserError("the disk of the images is gone")
        return validate(self, *arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(VHeatIRModel, "validate", failing)
        with pytest.raises(UserError, match="is gone"):
            train("val.save_img=true")
    folder = train("val.save_img=true", resume=True)
    assert sorted(path.name for path in (folder / "images").iterdir()) == ["00000006", "00000012"]


def test_resume_goes_on_to_a_higher_total(train):
    train("train.total_iter=8")
    longer = train(resume=True)
    train.assert_same(longer, train(name="straight"))
    assert (longer / "resolved_resumed_8.yml").is_file() and (longer / "run_resumed_8.json").is_file()


@pytest.mark.parametrize(
    ("where", "error", "words"),
    [
        (
            "part_loss",
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nSee there"),
            "memory ran out",
        ),
        ("validate", RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 bytes."), "memory ran out"),
        (
            "part_loss",
            RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "),
            "a loader process ended",
        ),
    ],
    ids=["step", "validation", "loader"],
)
def test_want_of_memory_ends_the_run_with_advice_and_is_in_its_log(train, monkeypatch, where, error, words):
    from vheatir.train.model import VHeatIRModel

    def fail(self, *_arguments, **_more):
        raise error

    train("train.total_iter=4")
    with monkeypatch.context() as patch:
        patch.setattr(VHeatIRModel, where, fail)
        with pytest.raises(UserError, match=rf"{words} after iteration [46] \(.*\.\)[;,] .*--resume goes on"):
            train(resume=True)
    folder = train(resume=True)
    assert words in (folder / "train.log").read_text()
    train.assert_same(folder, train(name="straight"))


def test_resume_does_not_need_the_weights_that_the_run_started_from(train, tmp_path):
    first = train("train.total_iter=2", name="first")
    start = tmp_path / "start.safetensors"
    (first / "models" / "latest.safetensors").rename(start)
    options = (f"path.pretrain_network_g={start}", "train.optim_g.lr=1e-3")
    straight = train(*options, name="straight")
    train(*options, "train.total_iter=8")
    start.unlink()
    resumed = train(*options, resume=True)
    train.assert_same(resumed, straight)
    assert str(start) in (resumed / "resolved_resumed_8.yml").read_text()


@pytest.mark.parametrize("keep", [0, 1, 100, -1], ids=["empty", "one byte", "head", "all but one byte"])
def test_resume_passes_over_a_cut_checkpoint(train, monkeypatch, capsys, keep):
    straight = train(*RANDOM, name="straight")
    with monkeypatch.context() as patch:
        stop_after(patch, 9, lambda: signal.raise_signal(signal.SIGTERM))
        folder = train(*RANDOM, name="cut", status=130)
    newest = folder / "checkpoints" / "iter_00000009.pt"
    newest.write_bytes(newest.read_bytes()[:keep])
    train(*RANDOM, name="cut", resume=True)
    train.assert_same(straight, folder)
    assert "resumed at iteration 8" in (folder / "train.log").read_text()
    assert train.curves(folder) == train.curves(straight)


def test_resume_with_nothing_whole_says_so(train):
    with pytest.raises(UserError, match=r"there is no run .*; start it without --resume"):
        train(resume=True)
    folder = train()
    for path in (folder / "checkpoints").iterdir():
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="none of 2 checkpoints is whole"):
        train(resume=True)
    for path in (folder / "checkpoints").iterdir():
        path.unlink()
    with pytest.raises(UserError, match="holds no checkpoint"):
        train(resume=True)


@pytest.mark.parametrize(
    "change",
    [
        "network_g.dim=12",
        "network_g.depths=[2]",
        "train.optim_g={type: SGD, lr: 1}",
        "train.scheduler={type: CosineAnnealingLR, T_max: 12}",
        "val.metrics={psnr: {type: vheatir_psnr, border: 2}}",
        "val.metrics={ssim: {type: vheatir_ssim}}",
    ],
)
def test_resume_with_options_that_do_not_fit_is_refused(train, change):
    folder = train("train.total_iter=4")
    log = (folder / "train.log").read_text()
    with pytest.raises(UserError, match=r"--resume: the checkpoint does not fit these options"):
        train(change, resume=True)
    assert (folder / "train.log").read_text() == log


def test_resume_cleans_up_after_a_kill(train):
    folder = train("train.total_iter=4")
    with open(folder / "curves.jsonl", "a") as file:
        file.write(json.dumps({"iteration": 6, "train/l_pix": 1.0}) + '\n{"iteration": 8, "tra')
    left = folder / "checkpoints" / ".vheatir-1-abcd.tmp"
    left.write_bytes(b"half")
    train(resume=True)
    assert [point["iteration"] for point in train.curves(folder)] == [2, 4, 4, 6, 6, 8, 10, 12, 12]
    assert not left.exists()


def _newest(folder):
    """Iteration of the newest checkpoint under its final name; 0 without one."""
    return max((int(path.stem.split("_")[1]) for path in folder.glob("checkpoints/iter_*.pt")), default=0)


def _half_written(folder):
    return [path for part in ("checkpoints", "models") for path in (folder / part).glob(".vheatir-*.tmp")]


def _killed(work, folder, goal, delay, amid_writing):
    """`work()` in a forked child that is killed `delay` seconds after checkpoint `goal`, or once it writes a file then.

    Whether it was still alive.
    """
    child = os.fork()
    if child == 0:
        status, fsync = 1, os.fsync
        os.fsync = lambda descriptor: (time.sleep(0.01), fsync(descriptor))  # a slow disk
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            status = work()
        finally:
            os._exit(status)
    while (done := os.waitpid(child, os.WNOHANG))[0] == 0:
        if goal is not None and _newest(folder) >= goal and (not amid_writing or _half_written(folder)):
            break
        time.sleep(0.002)
    if done[0] == 0:
        time.sleep(0 if amid_writing else delay)
        os.kill(child, signal.SIGKILL)
        done = os.waitpid(child, 0)
    status = os.waitstatus_to_exitcode(done[1])
    assert status in (0, -signal.SIGKILL)
    return status != 0


def test_twenty_sigkills_at_random_moments_and_resume_equal_an_uninterrupted_run(train):
    """Ten with and ten without loader workers, some while a file is written; each resumed at once."""
    import cv2

    from vheatir.train.command import main

    register_all()
    cv2.setNumThreads(0)  # its threads do not survive the fork above
    draw, kills, amid_writing = random.Random(0), 0, 0
    for workers in (0, 2):
        more = (*RANDOM, f"datasets.train.num_worker_per_gpu={workers}", "train.total_iter=60", "val.val_freq=20")
        more = (*more, "logger.save_checkpoint_freq=1")
        straight, folder = train(*more, name=f"straight{workers}"), train.root / f"killed{workers}"
        for attempt in range(11):
            goal = None if attempt == 10 else _newest(folder) + draw.randint(0, 4)  # 0: while it starts
            work = train.argv(*more, name=folder.name, resume=_newest(folder) > 0)
            kills += _killed(lambda work=work: main(work), folder, goal, draw.uniform(0, 0.05), attempt % 2)
            amid_writing += bool(_half_written(folder))
        train.assert_same(straight, folder)
        assert train.curves(folder) == train.curves(straight)
        for name in ("latest", "best"):
            first, second = ((path / "models" / f"{name}.safetensors").read_bytes() for path in (straight, folder))
            assert first == second, name
    assert kills == 20 and amid_writing >= 5


def test_sigkill_of_the_command_and_resume_by_the_command(train):
    """The same through the shell, from another folder."""
    more = (*RANDOM, "train.total_iter=40", "logger.save_checkpoint_freq=1", "val.val_freq=40")
    straight, folder = train(*more, name="straight"), train.root / "killed"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "vheatir", "train"]
    options = {"env": environment, "cwd": train.root, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([*command, *train.argv(*more, name="killed")], **options)
    while _newest(folder) < 5 and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert subprocess.run([*command, *train.argv(*more, name="killed", resume=True)], **options).returncode == 0
    assert "resumed at iteration" in (folder / "train.log").read_text()
    train.assert_same(straight, folder)


def test_version_is_in_the_run(train):
    run = json.loads((train("train.total_iter=2") / "run.json").read_text())
    assert run["versions"]["vheatir"] == vheatir.__version__ and "basicsr" in run["versions"]
