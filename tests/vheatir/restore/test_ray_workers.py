"""`--engine ray` on a local cluster of two workers: the same results, and a killed worker loses nothing."""

import json
import os
import pickle
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import vheatir.restore.ray_workers as ray_workers
from vheatir import weights
from vheatir.archs.vheatir_arch import VHeatIR
from vheatir.cli import main as vheatir_main
from vheatir.image_io import Image, read_image, write_image

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'vheatir[ray]'")
COUNT = 24


@pytest.fixture(scope="module")
def cluster():
    root = str(Path(__file__).resolve().parents[3])
    environment = {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    options = {"num_cpus": 2, "include_dashboard": False, "object_store_memory": 80 * 1024**2}
    try:
        ray.init(**options, runtime_env={"env_vars": environment}, log_to_driver=False)
    except Exception as error:  # Ray gives its processes half a minute to start
        pytest.skip(f"no local Ray cluster could be started here: {error}")
    yield
    ray.shutdown()


@pytest.fixture
def command(tmp_path, monkeypatch):
    network = VHeatIR(dim=8, depths=[1], embed_size=8, downscale=2)
    torch.nn.init.normal_(network.conv_last.weight, std=0.02)
    metadata = {"task": "denoise", "color": "color", "levels": "none", "license": "none"}
    metadata["config"] = json.dumps(network.config)
    weights.save(tmp_path / "tiny.safetensors", network.state_dict(), metadata)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    for number in range(COUNT):
        pixels = np.random.default_rng(number).uniform(size=(300, 300, 3)).astype(np.float32)
        write_image(f"in/{number:02}.png", Image(pixels))
    fixed = ["--task", "denoise", "--weights", "tiny.safetensors", "--device", "cpu", "--quiet"]
    return lambda *arguments: vheatir_main(["restore", *map(str, arguments), *fixed])


def manifest(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def parents(pid: str):
    while pid not in ("0", ""):
        yield pid
        pid = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1]


def own_workers():
    """Processes of actors of this test's cluster."""
    for folder in Path("/proc").iterdir():
        try:
            actor = folder.name.isdigit() and b"_Worker" in (folder / "cmdline").read_bytes()
            if actor and str(os.getpid()) in parents(folder.name):
                yield int(folder.name)
        except OSError:  # it has just ended
            continue


def kill_one_worker(killed: list[int]):
    """SIGKILL an actor in the middle of its work, once a few files are done."""
    deadline = time.monotonic() + 120
    while len(list(Path("out").glob("*.png"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    for pid in own_workers():
        os.kill(pid, signal.SIGKILL)
        killed.append(pid)
        return


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="finds the worker through /proc")
def test_two_workers_one_killed_nothing_lost_and_the_second_run_does_what_is_missing(cluster, command):
    killed: list[int] = []
    killer = threading.Thread(target=kill_one_worker, args=(killed,))
    killer.start()
    status = command("in", "-o", "out", "--engine", "ray", "--workers", "2", "--manifest", "list.jsonl")
    killer.join()
    assert status == 0 and killed
    lines = manifest("list.jsonl")
    assert len(lines) == COUNT == len({line["input"] for line in lines})
    assert {line["status"] for line in lines} == {"done"}
    assert not [path for path in Path("out").iterdir() if path.suffix != ".png" and not path.name.startswith(".")]

    assert command("in", "-o", "local") == 0
    for path in sorted(Path("local").iterdir()):
        np.testing.assert_array_equal(read_image(path).pixels, read_image(Path("out") / path.name).pixels)

    before = {path: path.stat().st_mtime_ns for path in Path("out").glob("*.png")}
    missing = [Path("out") / f"{number:02}.png" for number in (3, 17)]
    for path in missing:
        path.unlink()
    assert command("in", "-o", "out", "--engine", "ray", "--workers", "1", "--manifest", "list.jsonl") == 0
    after = {path: path.stat().st_mtime_ns for path in Path("out").glob("*.png")}
    assert set(after) == set(before)
    assert {path for path in after if after[path] != before[path]} == set(missing)
    assert len(manifest("list.jsonl")) == COUNT


def test_a_image_that_kills_every_worker_fails_alone_after_four_tries(cluster, command, monkeypatch, capfd):
    """With Ray's own default the task would be tried again for ever."""
    tries = Path("tries").absolute()

    class Killed(ray_workers._Worker):
        def __call__(self, batch):
            if any(pickle.loads(packed).source.name == "04.png" for packed in batch["job"]):
                with tries.open("a") as file:
                    file.write("x")
                os.kill(os.getpid(), signal.SIGKILL)
            return super().__call__(batch)

    monkeypatch.setattr(ray_workers, "_Worker", Killed)
    for number in range(8, COUNT):
        Path(f"in/{number:02}.png").unlink()
    assert command("in", "-o", "out", "--engine", "ray", "--workers", "2", "--manifest", "list.jsonl") == 1
    assert tries.read_text() == "xxxx"
    found = {Path(line["input"]).name: line["status"] for line in manifest("list.jsonl")}
    assert found == {f"{number:02}.png": "failed" if number == 4 else "done" for number in range(8)}
    assert sorted(path.name for path in Path("out").glob("*.png")) == sorted(set(found) - {"04.png"})
    assert "in/04.png: the workers that took it or its neighbors were lost 4 times" in capfd.readouterr().err
