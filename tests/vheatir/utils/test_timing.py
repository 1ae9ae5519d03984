"""Measuring memory: quiet, and without a trace in the environment. Measuring time: of the device that is asked for."""

import os
import subprocess
import sys
from pathlib import Path

import torch

from vheatir.utils import timing

ROOT = Path(__file__).resolve().parents[3]
MEASURE = """
import os
import torch
from vheatir.utils.timing import peak_mib
assert peak_mib(lambda: torch.ones(1 << 18), torch.device("cpu")) == 1
assert "KINETO_LOG_LEVEL" not in os.environ
"""


def test_measuring_memory_writes_nothing():
    environment = {name: value for name, value in os.environ.items() if name != "KINETO_LOG_LEVEL"}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", MEASURE], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_queue_of_the_measured_gpu_is_drained(monkeypatch):
    # without a device torch waits for the current one, which is the first, and times of others would end at the launch
    drained = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: drained.append(device))
    second = torch.device("cuda", 1)
    timing.interleave({"call": lambda: None}, second, rounds=1, warmup=1)
    assert set(drained) == {second}
