"""Keeping the heap: fewer pages fetched for tensors that come again, unless something says otherwise."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
FAULTS = """
import resource
import torch
from vheatir.utils.heap import keep_heap
kept = keep_heap()
def work(blocks):
    for _ in range(blocks):
        torch.ones(1 << 24)  # 64 MiB; glibc by itself learns to keep blocks up to 32
work(24)  # an aligned block needs a little more than itself: the first few do not fit where the one before was
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work(10)
print(int(kept), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def run(**environment):
    own = {name: value for name, value in os.environ.items() if "MALLOC" not in name and "GLIBC" not in name}
    own = {name: value for name, value in own.items() if name != "VHEATIR_KEEP_HEAP"}
    environment = {**own, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, "-c", FAULTS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=True)
    kept, faults = map(int, done.stdout.split())
    return bool(kept), faults


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_large_tensors_get_the_memory_of_those_before():
    kept, faults = run()
    left_alone, many = run(VHEATIR_KEEP_HEAP="0")
    assert kept and not left_alone
    assert faults < 0.05 * many, (faults, many)


@pytest.mark.parametrize(
    "environment", [{"MALLOC_TRIM_THRESHOLD_": "9"}, {"GLIBC_TUNABLES": "glibc.malloc.check=0"}], ids=str
)
def test_what_the_environment_says_of_malloc_holds(environment):
    assert run(**environment)[0] is False
