"""How training is started: launchers and their environment, GPUs for processes, going on by itself, spawned workers."""

import multiprocessing
import os
import re
import subprocess
from pathlib import Path

import pytest
import torch

from vheatir.backbone.training.processes import Processes, place, started
from vheatir.errors import UserError
from vheatir.train.build import complete_options
from vheatir.train.command import main

pytest.importorskip("basicsr", reason="training needs BasicSR")

ROOT = Path(__file__).resolve().parent.parent.parent.parent
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
VARIABLES += ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_JOB_ID", "SLURM_JOB_NODELIST")
VARIABLES += ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT")


@pytest.fixture
def environment(monkeypatch):
    """Sets variables of the launchers, of which none is set before."""
    for name in VARIABLES:
        monkeypatch.setenv(name, "")  # so that what a test sets is undone
        monkeypatch.delenv(name)

    def change(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return change


def test_without_a_launcher_there_is_one_process(environment):
    assert place(None) == place("none") == Processes()
    environment(RANK="1", WORLD_SIZE="2")  # left behind by something else
    assert place(None) == Processes()


def test_torchrun_is_recognised(environment):
    environment(TORCHELASTIC_RUN_ID="x", RANK="3", WORLD_SIZE="4", LOCAL_RANK="1", LOCAL_WORLD_SIZE="2")
    assert place(None) == place("pytorch") == Processes(3, 4, 1, 2)


@pytest.mark.parametrize(
    "launcher, words",
    [
        ("pytorch", r"RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE not set in the environment; start with torchrun"),
        ("slurm", r"SLURM_PROCID, SLURM_NTASKS, SLURM_LOCALID not set in the environment; start with srun"),
    ],
)
def test_a_launcher_that_did_not_start_the_process_is_refused_by_name(environment, recipe, launcher, words):
    with pytest.raises(UserError, match=f"--launcher {launcher}: {words}"):
        main(["-opt", str(recipe), "--launcher", launcher])


def test_slurm_gives_place_and_address(environment, monkeypatch):
    asked = []

    def scontrol(command, **options):
        asked.append(command)
        return subprocess.CompletedProcess(command, 0, "node7\nnode8\n", "")

    monkeypatch.setattr(subprocess, "run", scontrol)
    environment(
        SLURM_PROCID="5", SLURM_NTASKS="8", SLURM_LOCALID="1", SLURM_JOB_ID="30007", SLURM_JOB_NODELIST="node[7-8]"
    )
    assert place("slurm") == Processes(5, 8, 1, None)
    assert asked == [["scontrol", "show", "hostnames", "node[7-8]"]]
    got = {name: os.environ[name] for name in ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK")}
    assert got == {"MASTER_ADDR": "node7", "MASTER_PORT": "15007", "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}
    environment(MASTER_ADDR="", SLURM_JOB_NODELIST="")
    monkeypatch.delenv("MASTER_ADDR")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess("", 0, "", ""))
    with pytest.raises(UserError, match="gives no host; set MASTER_ADDR"):
        place("slurm")


def test_processes_that_do_not_find_each_other_say_where_they_looked(environment):
    environment(RANK="1", WORLD_SIZE="2", LOCAL_RANK="1", LOCAL_WORLD_SIZE="2")
    environment(MASTER_ADDR="127.0.0.1", MASTER_PORT="9")
    words = r"process 1 of 2 did not find the others within 2 s at 127\.0\.0\.1:9"
    with pytest.raises(UserError, match=words), started("pytorch", timeout=2):
        raise AssertionError("nobody is there")


@pytest.mark.parametrize(
    "gpus, found, processes, words",
    [
        (
            4,
            4,
            Processes(),
            r"num_gpu is 4, but each process takes one GPU, and 1 run here; start with torchrun --nproc_per",
        ),
        (1, 0, Processes(), r"num_gpu is 1, but torch sees no CUDA device"),
        (-1, 0, Processes(), r"num_gpu must be auto, 0 or the number of GPUs on each machine, got -1"),
        ("two", 0, Processes(), r"num_gpu must be auto, 0 or the number of GPUs on each machine, got 'two'"),
        ("auto", 2, Processes(2, 3, 2, 3), r"process 2 of this machine has no GPU: it has 2; start 2 processes"),
    ],
)
def test_gpus_that_are_not_there_are_refused(recipe, monkeypatch, gpus, found, processes, words):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: found)
    with pytest.raises(UserError, match=words):
        complete_options(recipe, {"num_gpu": gpus}, is_train=True, processes=processes)


@pytest.mark.parametrize(
    "gpus, found, processes, device",
    [
        ("auto", 0, Processes(1, 2, 1, 2), None),
        (0, 2, Processes(), None),
        ("auto", 2, Processes(1, 2, 1, 2), 1),
        (2, 2, Processes(3, 4, 1, 2), 1),
        ("auto", 1, Processes(3, 4, 3, None), 0),  # SLURM shows each process a GPU of its own
    ],
)
def test_each_process_takes_a_gpu_of_its_own(recipe, monkeypatch, gpus, found, processes, device):
    chosen = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: found)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    options = complete_options(recipe, {"num_gpu": gpus}, is_train=True, processes=processes)
    assert chosen == ([] if device is None else [device])
    assert options["num_gpu"] == len(chosen) and options["dist"] == (processes.world > 1)
    assert (options["rank"], options["world_size"]) == (processes.rank, processes.world)


def test_auto_resume_starts_and_goes_on_from_any_folder(train, monkeypatch, tmp_path):
    """Stock BasicSR looks below the working directory, and silently begins anew where that is another one."""
    (tmp_path / "elsewhere").mkdir()
    straight = train(name="straight")
    for total in (6, 12, 12):
        assert main([*train.argv(f"train.total_iter={total}"), "--auto_resume"]) == 0
        monkeypatch.chdir(tmp_path / "elsewhere")
    train.assert_same(straight, train.root / "tiny")
    assert train.curves(train.root / "tiny")[-1] == train.curves(straight)[-1]
    assert not list((tmp_path / "elsewhere").iterdir())


def test_resume_from_another_folder_says_where_it_looked(train, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=rf"there is no run {tmp_path}/runs/tiny; start it without --resume"):
        main([*train.argv("path.experiments_root=runs"), "--resume"])


def test_a_restart_by_torchrun_resumes(train, environment):
    train("train.total_iter=6")
    environment(TORCHELASTIC_RESTART_COUNT="1")
    folder = train()
    assert "resumed at iteration 6" in (folder / "train.log").read_text()
    train.assert_same(folder, train(name="straight"))  # of which there is nothing to resume


def test_the_argument_of_torch_distributed_launch_is_taken(train):
    assert main([*train.argv("train.total_iter=2"), "--local-rank=0"]) == 0


@pytest.mark.parametrize("key", ["prefetch_mode=cpu", "persistent_workers=false", "num_prefetch_queue=2"])
def test_prefetching_and_persistent_workers_of_basicsr_are_refused(train, key):
    """Together they end in a deadlock; the loader's workers fetch ahead and live as long as the run without them."""
    with pytest.raises(UserError, match=rf"datasets\.train\.{key.split('=')[0]}: leave it"):
        train(f"datasets.train.{key}")


def test_the_tests_that_the_page_on_basicsr_names_exist():
    page = (ROOT / "docs" / "basicsr.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(test_\w+)`", page)) - {"test_pipeline"}  # a function of BasicSR
    written = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(), re.M)
    }
    assert len(named) > 15 and named <= written, named - written


def test_resume_with_another_seed_is_refused(train):
    train("train.total_iter=6")
    with pytest.raises(UserError, match=r"--resume: .* \(manual_seed was 3, is now 4\)"):
        train("manual_seed=4", resume=True)


def test_spawned_workers_give_the_same_run_as_none(train, monkeypatch):
    """Workers are started once, not every epoch (each start imports torch), and nothing depends on the start method."""
    straight, started_workers = train(name="straight"), []
    before, start = multiprocessing.get_start_method(allow_none=True), multiprocessing.Process.start
    monkeypatch.setattr(multiprocessing.Process, "start", lambda self: (started_workers.append(self), start(self)))
    multiprocessing.set_start_method("spawn", force=True)
    try:
        folder = train("datasets.train.num_worker_per_gpu=1", name="spawned")
    finally:
        multiprocessing.set_start_method(before, force=True)
    train.assert_same(straight, folder)
    assert len(started_workers) == 1


def test_the_best_checkpoint_is_kept_beside_the_newest(train, monkeypatch):
    from vheatir.train.model import VHeatIRModel

    scores = iter([1.0, 3.0, 2.0, 3.0])
    monkeypatch.setattr(
        VHeatIRModel, "validate", lambda *_: {"images": 1, "input": {}, "restored": {"psnr": next(scores)}}
    )
    folder = train("val.val_freq=3", "logger.keep_checkpoints=1")  # an iteration at which no checkpoint was due
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["iter_00000006.pt", "iter_00000012.pt"]


def test_a_full_disk_ends_the_run_with_a_message(train, monkeypatch):
    from vheatir.runs import run_logger

    def full(*_, **__):
        raise OSError(28, "No space left on device", "checkpoints/iter_00000008.pt")

    train("train.total_iter=4")
    monkeypatch.setattr(run_logger, "save_checkpoint", full)
    with pytest.raises(UserError, match=r"No space left on device: .*--resume goes on from the last checkpoint"):
        train(resume=True)
    monkeypatch.undo()
    train.assert_same(train(resume=True), train(name="straight"))
