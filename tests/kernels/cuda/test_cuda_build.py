"""Compiling the CUDA kernels: by nvcc and NVRTC for several architectures, without spills; cache; when it is done."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vheatir.kernels.cpu.build import BuildError
from vheatir.kernels.cuda import build as cuda_build

ARCHITECTURES = (80, 90, 120)
KERNELS = 13
MOST_REGISTERS = 128  # of 65536, with two blocks of 256 threads


def resources(told: str) -> dict[str, tuple[int, int]]:
    """Registers and bytes of spills of each kernel, from what ptxas tells with -v."""
    blocks = re.split(r"Compiling entry function '", told)[1:]
    found = {}
    for block in blocks:
        name, architecture = re.match(r"(\w+)' for '(\w+)'", block).groups()
        spills = sum(int(number) for number in re.findall(r"(\d+) bytes spill", block))
        found[f"{name} {architecture}"] = (int(re.search(r"Used (\d+) registers", block).group(1)), spills)
    return found


def check(told: str, kernels: int) -> None:
    found = resources(told)
    for name, (registers, spills) in found.items():
        print(f"{name}: {registers} registers, {spills} bytes of spills")  # noqa: T201
    assert len(found) == kernels
    assert {name: spills for name, (_, spills) in found.items() if spills} == {}
    assert max(registers for registers, _ in found.values()) <= MOST_REGISTERS


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on the PATH")
def test_nvcc_compiles_without_spills(tmp_path, monkeypatch):
    told, run = [], subprocess.run

    def run_and_keep(*arguments, **options):
        done = run(*arguments, **options)
        told.append(done.stderr)
        return done

    monkeypatch.setattr(cuda_build, "_FLAGS", (*cuda_build._FLAGS, "-Xptxas=-v"))
    monkeypatch.setattr(cuda_build.subprocess, "run", run_and_keep)
    target = tmp_path / "deep" / "kernels.fatbin"
    cuda_build.build(target, list(ARCHITECTURES))
    check("".join(told), KERNELS * len(ARCHITECTURES))
    assert target.stat().st_size > 100_000
    assert os.listdir(target.parent) == [target.name]


@pytest.fixture
def nvrtc():
    try:
        return cuda_build._nvrtc()
    except BuildError as error:
        pytest.skip(str(error))


# Both hold the same compiler: where there is nvcc, one architecture shows that NVRTC takes source and flags.
@pytest.mark.parametrize("architecture", ARCHITECTURES if shutil.which("nvcc") is None else (90,))
def test_nvrtc_compiles_without_spills(architecture, nvrtc):
    code, told = cuda_build.compile_with_nvrtc(architecture, "--ptxas-options=-v")
    check(told, KERNELS)
    assert code.startswith(b"\x7fELF")


def test_nvrtc_makes_ptx_for_architectures_to_come(nvrtc, monkeypatch, tmp_path):
    (tmp_path / cuda_build.MAIN).write_text('extern "C" __global__ void empty() {}\n')
    monkeypatch.setattr(cuda_build, "SOURCES", tmp_path)
    monkeypatch.setattr(cuda_build, "_HEADERS", ())
    code, _ = cuda_build.compile_with_nvrtc(990)
    assert b".entry empty" in code


def test_an_error_in_the_source_is_told(nvrtc, monkeypatch, tmp_path):
    (tmp_path / cuda_build.MAIN).write_text("__global__ void broken() { int x = surely_not_there; }\n")
    monkeypatch.setattr(cuda_build, "SOURCES", tmp_path)
    monkeypatch.setattr(cuda_build, "_HEADERS", ())
    with pytest.raises(BuildError, match=r'NVRTC failed: .*"surely_not_there" is undefined'):
        cuda_build.compile_with_nvrtc(90)
    with pytest.raises(BuildError, match=r"knows no architecture for compute capability 7\.5"):
        cuda_build.compile_with_nvrtc(75)


def test_without_nvrtc_the_reason_names_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(BuildError, match=r"NVRTC cannot be used .*pip install cuda-bindings nvidia-cuda-nvrtc"):
        cuda_build.compile_with_nvrtc(90)


COMPILING = """
import sys
from pathlib import Path
from vheatir.kernels.cuda import build as cuda_build
cuda_build._identity = lambda: "test"
cuda_build._checked = lambda result, what: (1, 2)
class Version:
    nvrtcVersion = lambda: None
cuda_build._nvrtc = lambda: Version
def compile_with_nvrtc(capability):
    with open(Path(sys.argv[1], "builds"), "a") as log:
        log.write("build\\n")
    return b"code" * 100_000, ""
cuda_build.compile_with_nvrtc = compile_with_nvrtc
assert cuda_build.compiled(90).read_bytes() == b"code" * 100_000
"""


def test_processes_that_start_together_compile_once(tmp_path):
    environment = {**os.environ, "VHEATIR_CACHE": str(tmp_path / "cache"), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", COMPILING, str(tmp_path)]
    processes = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    assert (tmp_path / "builds").read_text() == "build\n"
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {
        "build.lock",
        "vheatir_cuda-test-sm_90-nvrtc1.2.bin",
    }


def test_the_names_change_with_the_sources(monkeypatch, tmp_path):
    before = cuda_build.library_name()
    for name in (cuda_build.MAIN, *cuda_build._HEADERS):
        shutil.copy(cuda_build.SOURCES / name, tmp_path)
    monkeypatch.setattr(cuda_build, "SOURCES", tmp_path)
    assert cuda_build.library_name() == before
    for name in (cuda_build.MAIN, *cuda_build._HEADERS):
        with open(tmp_path / name, "a") as source:
            source.write("\n")
        assert cuda_build.library_name() != before
        before = cuda_build.library_name()


def test_all_sources_are_named():
    """A file that is included but not named would be missing from the hash and from NVRTC's headers."""
    assert {path.name for path in cuda_build.SOURCES.glob("cuda_*")} == {cuda_build.MAIN, *cuda_build._HEADERS}


def commands(folder: Path, **scripts: str) -> str:
    for name, text in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    return f"{folder}:/bin:/usr/bin"


CODES = "printf 'sm_80\\nsm_86\\nsm_90\\nsm_90a\\n'"


@pytest.mark.parametrize(
    "wish, stated, gpu, planned",
    [
        (None, None, "", []),
        (None, None, "9.0\n8.6", [86, 90]),
        (None, None, "7.5", []),
        (None, "80;90", "", [80, 90]),
        (None, "9.0, sm_86", "12.0", [86, 90]),
        ("1", None, "", [80, 86, 90]),
        ("1", None, "9.0", [90]),
        ("1", "120", "9.0", [120]),
        ("0", "90", "9.0", []),
    ],
)
def test_what_an_installation_builds_for(wish, stated, gpu, planned, tmp_path, monkeypatch):
    smi = f"printf '{gpu}\\n'" if gpu else "exit 9"
    monkeypatch.setenv("PATH", commands(tmp_path, nvcc=CODES, **{"nvidia-smi": smi}))
    for name, value in ((cuda_build.SWITCH, wish), (cuda_build.ARCHITECTURES, stated)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    assert cuda_build.planned_architectures() == planned


def test_builds_that_cannot_be_are_told(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv(cuda_build.SWITCH, raising=False)
    monkeypatch.setenv(cuda_build.ARCHITECTURES, "90")
    assert cuda_build.planned_architectures() == []
    monkeypatch.setenv(cuda_build.SWITCH, "1")
    with pytest.raises(BuildError, match="nvcc is not on the PATH"):
        cuda_build.planned_architectures()
    for wrong in ("75", "hopper", "sm_9o"):
        monkeypatch.setenv(cuda_build.ARCHITECTURES, wrong)
        with pytest.raises(BuildError, match=f"must list compute capabilities from 80 on.*{wrong}"):
            cuda_build.planned_architectures()
    monkeypatch.setenv("PATH", commands(tmp_path, nvcc="echo 'error: no' >&2; exit 1"))
    with pytest.raises(BuildError, match="nvcc failed: error: no"):
        cuda_build.build(tmp_path / "kernels.fatbin", [90])
    assert not (tmp_path / "kernels.fatbin").exists()
