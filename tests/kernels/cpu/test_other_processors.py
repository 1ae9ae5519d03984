"""A wheel for other processors: compiled by a cross compiler, its kernel run under emulation.

Needs g++ for aarch64 and QEMU's user-mode emulation (Debian: g++-aarch64-linux-gnu, qemu-user-static).
"""

import shutil
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from tests import test_packaging
from vheatir.kernels.cpu import build as cpu_build
from vheatir.kernels.cpu.plan import SHORT_LEAF, transform_plan
from vheatir.kernels.dct import decay_map
from vheatir.kernels.reference import hco_reference

MACHINE = "aarch64"
COMPILER, EMULATOR, SYSTEM = f"{MACHINE}-linux-gnu-g++", f"qemu-{MACHINE}-static", f"/usr/{MACHINE}-linux-gnu"

pytestmark = test_packaging.pytestmark
needs_compiler = pytest.mark.skipif(shutil.which(COMPILER) is None, reason=f"there is no {COMPILER}")

AXIS = """
const std::vector<vheatir_step> steps_{side}{{{steps}}};
const std::vector<int32_t> rows_{side}{{{rows}}};
const std::vector<float> table_{side}{{{table}}};
const vheatir_plan plan_{side} = {{
    {length}, {slots}, {count}, {scale}, steps_{side}.data(), rows_{side}.data(), table_{side}.data()}};
"""
PROGRAM = """
#include <cstdio>
#include <vector>
#include "api.h"
{axes}
const std::vector<float> source{{{source}}}, decay{{{decay}}};
int main() {{
  const int64_t batch = {batch}, height = {height}, width = {width}, channels = {channels};
  std::vector<float> target(source.size(), 7), spectrum(source.size(), 7);
  vheatir_job job = {{}};
  job.batch = batch, job.height = height, job.width = width, job.channels = channels;
  job.along_height = plan_h, job.along_width = plan_w;
  job.source = source.data(), job.target = target.data(), job.decay = decay.data(), job.keep_spectrum = spectrum.data();
  job.source_pixel = channels, job.source_row = width * channels, job.source_image = height * width * channels;
  job.decay_order = VHEATIR_DECAY_MAPS, job.threads = 2;
  if (vheatir_conduct(&job)) return 1;
  std::printf("%d", vheatir_instructions());
  for (float value : target) std::printf(" %.9g", value);
}}
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VHEATIR_MACHINE", MACHINE)
        patch.setenv("CXX", COMPILER)
        return test_packaging.build_wheel(tmp_path_factory.mktemp("foreign"), patch, "1")


@pytest.fixture(scope="module")
def library(wheel) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".so")]
        return Path(archive.extract(name, wheel.parent))


@needs_compiler
def test_the_wheel_and_its_library_belong_to_the_other_processors(wheel, library):
    assert wheel.name.endswith(f"-py3-none-linux_{MACHINE}.whl")
    assert library.name == cpu_build.library_name(MACHINE) != cpu_build.library_name("x86_64")
    header = library.read_bytes()[:20]
    assert header[:4] == b"\x7fELF" and int.from_bytes(header[18:20], "little") == 183  # EM_AARCH64


def _literals(values) -> str:
    return ",".join(f"{value.hex()}f" for value in np.asarray(values, dtype=np.float32).ravel().tolist())


def _axis(side: str, length: int) -> str:
    plan = transform_plan(length, SHORT_LEAF)
    steps = ",".join("{" + ",".join(map(str, step)) + "}" for step in plan.steps.tolist())
    rows, table = ",".join(map(str, plan.rows.tolist())), _literals(plan.table)
    sizes = {"length": length, "slots": plan.slots, "count": len(plan.steps), "scale": repr(float(plan.scale))}
    return AXIS.format(side=side, steps=steps, rows=rows, table=table, **sizes)


def _program(x: torch.Tensor, decay: torch.Tensor) -> str:
    sizes = dict(zip(("batch", "height", "width", "channels"), x.shape))
    axes = _axis("h", sizes["height"]) + _axis("w", sizes["width"])
    return PROGRAM.format(axes=axes, source=_literals(x), decay=_literals(decay), **sizes)


@needs_compiler
@pytest.mark.skipif(shutil.which(EMULATOR) is None, reason=f"there is no {EMULATOR}")
@pytest.mark.parametrize("shape", [(2, 7, 9, 5), (1, 48, 20, 19), (1, 45, 64, 16)], ids=str)
def test_its_kernel_computes_the_operator_under_emulation(shape, library, tmp_path):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(shape, generator=generator)
    decay = decay_map(torch.rand(shape[1:], generator=generator))
    source, program = tmp_path / "program.cpp", tmp_path / "program"
    source.write_text(_program(x, decay))
    rpath = f"-Wl,-rpath,{library.parent}"
    subprocess.run([COMPILER, f"-I{cpu_build.SOURCES}", source, library, rpath, "-o", program], check=True, timeout=300)
    done = subprocess.run([EMULATOR, "-L", SYSTEM, program], stdout=subprocess.PIPE, text=True, check=True, timeout=300)
    instructions, *values = done.stdout.split()
    assert instructions == "0"  # portable
    got = torch.tensor([float(value) for value in values]).view(shape)
    torch.testing.assert_close(got.double(), hco_reference(x.double(), decay.double()), atol=2e-6, rtol=1e-5)


@pytest.mark.skipif(cpu_build.compiler() is None, reason=cpu_build.NO_COMPILER)
def test_a_compiler_for_the_wrong_processors_is_refused(tmp_path):
    with pytest.raises(cpu_build.BuildError, match="not for no-such-machine; name a cross compiler by CXX"):
        cpu_build.build(tmp_path / "library.so", "no-such-machine")
    assert list(tmp_path.iterdir()) == []
