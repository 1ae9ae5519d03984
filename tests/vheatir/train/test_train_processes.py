"""Training in two processes over gloo: one process with the global batch would do the same, and where one process ends,
all end with its message. The processes are forked; torchrun itself starts those of the last test.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from vheatir.runs.checkpoints import load_latest

pytest.importorskip("basicsr", reason="training needs BasicSR")

ROOT = Path(__file__).resolve().parent.parent.parent.parent
GLOBAL_BATCH = "datasets.train.batch_size_per_gpu=4"  # of one process, for two with 2 each


def close(one, other):
    """Two state dicts agree as far as the order of sums in float32 lets them."""
    assert one.keys() == other.keys()
    for key in one:
        torch.testing.assert_close(
            one[key], other[key], rtol=1e-4, atol=5e-6, msg=lambda text, key=key: f"{key}: {text}"
        )


def equal(one, other):
    assert one.keys() == other.keys()
    for key in one:
        assert torch.equal(one[key], other[key]), key


def recording(folder):
    """A patch after which each process leaves what it saw, what it validated and its model in a file."""
    folder.mkdir(exist_ok=True)

    def patch(rank):
        from vheatir.backbone.training.loop import Loop
        from vheatir.train import validation
        from vheatir.train.model import VHeatIRModel

        seen, scored = [], []
        parts, restore, save = VHeatIRModel.parts, validation.restore_planes, Loop.save

        def parting(self, iteration):
            seen.append(self.lq)
            return parts(self, iteration)

        def restoring(network, lq, *arguments):
            scored.append(lq.shape)
            return restore(network, lq, *arguments)

        def saving(self):
            save(self)
            torch.save({"seen": seen, "scored": scored, "model": self.update.state()}, folder / f"{rank}.pt")

        VHeatIRModel.parts, validation.restore_planes, Loop.save = parting, restoring, saving

    return patch


def run(train, count, *overrides, name, status=0, more=()):
    """Train in so many processes; the run's folder and what each process recorded."""
    records = train.root.parent / f"records_{name}"
    ended = train.ranks(count, *overrides, name=name, more=more, patch=recording(records))
    assert [end.status for end in ended] == [status] * count, ended
    return train.root / name, [torch.load(records / f"{rank}.pt", weights_only=True) for rank in range(count)]


# Adam would hide gradients that are a factor off, and blow up the last bits of those that are almost 0.
DESCENT = ("train.optim_g={type: SGD, lr: 0.05, momentum: 0.9}", "train.grad_clip=0.2")
SUM = ("train.accumulate=2", "train.pixel_opt={type: L1Loss, reduction: sum, loss_weight: 3e-4}", "train.ema_decay=0")


@pytest.mark.parametrize(
    "more",
    [("val.save_img=true", "datasets.train.num_worker_per_gpu=1"), SUM],
    ids=["mean", "sum of parts"],
)
def test_ddp_over_gloo_equals_one_process_with_the_global_batch(train, small_photos, more):
    more = (
        f"datasets.val_b={{type: GaussianNoiseDataset, dataroot_gt: {small_photos / 'train'}, sigma: 50}}",
        *DESCENT,
        *more,
    )
    two, (first, second) = run(train, 2, *more, name="two")
    one, (alone,) = run(train, 1, GLOBAL_BATCH, *more, name="one")
    for mine, other, both in zip(first["seen"], second["seen"], alone["seen"], strict=True):
        assert torch.equal(torch.cat([mine, other]), both)  # disjoint shares: the same crops with the same noise
    assert [len(record["scored"]) for record in (first, second, alone)] == [2 * 4, 2 * 3, 2 * 7]
    for part in {"network", "network_ema"} & alone["model"].keys():
        equal(first["model"][part], second["model"][part])
        close(first["model"][part], alone["model"][part])
    assert [point.keys() for point in train.curves(two)] == [point.keys() for point in train.curves(one)]
    for point, want in zip(train.curves(two), train.curves(one)):
        if SUM[0] in more:  # PSNR and SSIM in training are those of the last part
            point, want = ({k: v for k, v in table.items() if "batch_" not in k} for table in (point, want))
        assert point == pytest.approx(want, rel=1e-3)
    names = [sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*")) for folder in (two, one)]
    assert names[0] == names[1]  # one process writes
    assert "parameters on cpu, 2 processes, 5 images" in (two / "train.log").read_text()


def test_ddp_over_gloo_keeps_batch_norms_alike_without_an_average(train, normed):
    """Where stock BasicSR, which validates in the first process alone, goes out of step and ends."""
    _, (first, second) = run(train, 2, normed, "train.ema_decay=0", "val.val_freq=3", name="normed")
    equal(first["model"]["network"], second["model"]["network"])
    assert first["model"]["network"]["body.1.num_batches_tracked"] == 12


def test_gloo_resume_with_another_number_of_processes(train):
    """The same global batch: the same run. Another one: no sample is left out or comes twice."""
    straight, _ = run(train, 1, GLOBAL_BATCH, name="straight")
    first, _ = run(train, 2, "train.total_iter=6", name="a")
    folder, (alone,) = run(train, 1, GLOBAL_BATCH, name="a", more=("--resume",))
    assert folder == first and len(alone["seen"]) == 6
    close(train.state(straight)["network"], train.state(folder)["network"])
    run(train, 1, "train.total_iter=6", GLOBAL_BATCH, name="b")
    third, records = run(train, 3, name="b", more=("--resume",))
    assert load_latest(third / "checkpoints")["position"]["samples"] == 6 * 4 + 6 * 6
    _, (whole,) = run(train, 1, "datasets.train.batch_size_per_gpu=2", "train.total_iter=18", name="c")
    got = torch.cat([torch.cat([record["seen"][i] for record in records]) for i in range(2)])
    assert torch.equal(got, torch.cat(whole["seen"])[24:36])


def test_gloo_shares_validation_out(tmp_path, train, small_photos, load_beside):
    """The scores to the last digit, in order, and all images, also those of one name."""
    import cv2

    from vheatir.archs.vheatir_arch import VHeatIR
    from vheatir.backbone.training.processes import started
    from vheatir.cli import run as run_command
    from vheatir.data.datasets import GaussianNoiseDataset
    from vheatir.metrics.fidelity import psnr
    from vheatir.train.validation import validate

    for number, source in enumerate(sorted((small_photos / "train").iterdir())):
        folder = tmp_path / "images" / str(number // 2)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"same{number % 2}.png").write_bytes(source.read_bytes())
    torch.manual_seed(0)
    network = VHeatIR(dim=8, depths=[1], embed_size=8).eval()
    nn.init.normal_(network.conv_last.weight, std=0.02)
    dataset = GaussianNoiseDataset({"phase": "val", "dataroot_gt": str(tmp_path / "images"), "sigma": 25})
    metrics = {"psnr": lambda a, b: psnr(a, b, border=0, luma=False)}

    def work(rank):
        def score(_):
            with started("pytorch") as processes:
                place = tmp_path / f"saved{processes.world}"
                result = validate(
                    network, dataset, metrics, device=torch.device("cpu"), save_dir=place, processes=processes
                )
            torch.save(result, tmp_path / f"{processes.world}_{rank}.pt")

        torch.set_num_threads(1)
        return run_command(score, [])

    cv2.setNumThreads(0)
    for count in (1, 2):
        assert [end.status for end in load_beside("ranks").run_ranks(count, work, tmp_path)] == [0] * count
    alone, first, second = (torch.load(tmp_path / f"{name}.pt") for name in ("1_0", "2_0", "2_1"))
    assert alone == first == second and alone["images"] == 5
    saved = [{path.name: path.read_bytes() for path in (tmp_path / f"saved{count}").iterdir()} for count in (1, 2)]
    assert saved[0] == saved[1] and len(saved[0]) == 5


def terminate_before_the_message(rank):
    """Where the other process ends, torchrun sends SIGTERM to this one, which may come before its message."""
    from vheatir.runs.training import logger

    error = logger.error

    def telling(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        error(*arguments)

    logger.error = telling


def at_iteration(number, act):
    """A patch that acts in the second process in the middle of an iteration."""

    def patch(rank):
        from vheatir.train.model import VHeatIRModel

        parts = VHeatIRModel.parts

        def parting(self, iteration):
            if iteration == number and rank == 1:
                act(self)
            return parts(self, iteration)

        terminate_before_the_message(rank)
        VHeatIRModel.parts = parting

    return patch


def fail(model):
    raise ValueError("boom")


def poison(model):
    model.lq = model.lq * float("nan")


@pytest.mark.parametrize(
    "act, statuses, words",
    [
        (fail, [2, 1], "process 1 of 2: ValueError: boom; its traceback is above"),
        (poison, [2, 2], "the loss is nan at iteration 5, images"),
        (
            lambda model: os.kill(os.getpid(), signal.SIGKILL),
            [2, -9],
            "a process of 2 lost another one, which was killed",
        ),
        (lambda model: time.sleep(14), [2, 2], "a process of 2 waited in vain for another one, which hangs"),
    ],
    ids=["exception", "non-finite", "sigkill", "hang"],
)
def test_gloo_rank_that_ends_ends_all_with_its_message(train, act, statuses, words):
    ended = train.ranks(2, patch=at_iteration(5, act), more=("--timeout", "8"))
    assert [end.status for end in ended] == statuses, ended
    log = (train.root / "tiny" / "train.log").read_text()
    assert log.count(words) == 1 and words in "".join(end.errors for end in ended)
    assert "".join(end.errors for end in ended).count(f"error: {words}") <= 1
    if act is poison:
        stored = torch.load(train.root / "tiny" / "nonfinite_00000005.pt", weights_only=True)
        assert [batch["lq"].shape[0] for batch in stored["batches"]] == [2, 2]
        assert all(value.isfinite().all() for value in stored["model"]["network"].values())


def test_gloo_sigkill_of_a_rank_and_resume_equal_one_process(train):
    ended = train.ranks(2, patch=at_iteration(7, lambda model: os.kill(os.getpid(), signal.SIGKILL)))
    assert [end.status for end in ended] == [2, -signal.SIGKILL]
    folder, _ = run(train, 2, name="tiny", more=("--resume",))
    assert "resumed at iteration 6" in (folder / "train.log").read_text()  # the best so far, beside that of 4
    straight, _ = run(train, 1, GLOBAL_BATCH, name="straight")
    close(train.state(straight)["network"], train.state(folder)["network"])


def torchrun(train, *overrides, more=()):
    """Two processes started as a user does."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
        "-m",
        "vheatir.train",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, *train.argv(*overrides), *more],
        env=environment,
        cwd=train.root.parent,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for_lines(process, folder, count):
    """Until the run has logged so many points, or has ended."""
    while process.poll() is None:
        if (folder / "curves.jsonl").is_file() and len((folder / "curves.jsonl").read_text().splitlines()) >= count:
            return
        time.sleep(0.05)


def test_torchrun_over_gloo_sigterm_and_sigkill_of_a_rank_then_resume(train):
    folder = train.root / "tiny"
    endless = ("train.total_iter=100000", "val.val_freq=100000", "logger.save_checkpoint_freq=100000")
    process = torchrun(train, *endless, more=("--launcher", "pytorch"))
    wait_for_lines(process, folder, 2)
    process.terminate()
    errors = process.communicate(timeout=300)[1]
    assert "stopped at iteration" in errors, errors
    (checkpoint,) = (folder / "checkpoints").iterdir()
    stopped = load_latest(folder / "checkpoints")["iteration"]
    assert stopped >= 4 and checkpoint.stem == f"iter_{stopped:08d}"
    process = torchrun(train, *endless, more=("--auto_resume",))
    wait_for_lines(process, folder, stopped // 2 + 2)
    children = subprocess.run(["ps", "--ppid", str(process.pid), "-o", "pid="], capture_output=True, text=True)
    os.kill(int(children.stdout.split()[1]), signal.SIGKILL)
    errors = process.communicate(timeout=300)[1]
    assert "Warning:" not in errors, errors
    assert process.returncode == 1 and f"resumed at iteration {stopped}" in errors
    assert errors.count("error: a process of 2 lost another one, which was killed") == 1, errors
    assert train(f"train.total_iter={stopped + 2}", "val.val_freq=100000", resume=True) == folder
