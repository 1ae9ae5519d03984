"""One OpenMP in a process, whichever of torch and the kernel is imported first: the kernel uses torch's."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vheatir.kernels.cpu import library

ROOT = Path(__file__).resolve().parents[3]
MAPS = Path("/proc/self/maps")

PROBE = """
import json, os, sys
{first}
{second}
import torch
from vheatir.kernels.cpu import library
torch.set_num_threads(2)
x, decay = torch.rand(2, 96, 96, 64), vheatir.decay_map(torch.rand(96, 96, 64))
y = vheatir.heat_conduction(x, decay)
error = (y - vheatir.hco_reference(x.double(), decay.double())).abs().max().item()
z = torch.rand(512, 512) @ torch.rand(512, 512)  # torch's own threads beside the kernel's
names = {{line.split()[-1] for line in open("/proc/self/maps") if "omp" in os.path.basename(line.split()[-1])}}
openmp = sorted({{os.path.realpath(name) for name in names if ".so" in name}})
path, threads = str(library.library().path), torch.get_num_threads()
print(json.dumps({{"openmp": openmp, "error": error, "path": path, "threads": threads}}))
"""


@pytest.mark.skipif(not MAPS.exists(), reason="reads the libraries of a process from /proc")
@pytest.mark.parametrize(
    "order", [("import torch", "import vheatir"), ("import vheatir; vheatir.heat_conduction", "import torch")]
)
def test_torch_and_the_kernel_share_one_openmp(order):
    if library.refusal():
        pytest.skip(library.refusal())
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-c", PROBE.format(first=order[0], second=order[1])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["threads"] == 2 and found["path"].endswith(".so")
    assert len(found["openmp"]) == 1, found
    assert found["error"] < 1e-5
