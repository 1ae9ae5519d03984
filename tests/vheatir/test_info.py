"""`vheatir info` tells what is installed and which operator path would run."""

import json

import pytest
import torch

from vheatir import __version__, info
from vheatir.kernels import dispatch
from vheatir.kernels.cpu import library as native
from vheatir.utils import run_metadata


def test_json_holds_versions_machine_paths_and_training(capsys):
    assert info.main(["--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["versions"]["vheatir"] == __version__
    assert (
        found["versions"]["torch"] == torch.__version__.split("+")[0] or found["versions"]["torch"] in torch.__version__
    )
    assert found["machine"]["threads"] == torch.get_num_threads()
    assert found["training"].startswith(("available", "not available"))
    assert "cpu" in found["paths"]


def test_paths_are_those_the_operator_takes():
    for row in info.operator_paths("cpu"):
        chosen = dispatch.choose(row["height"], row["width"], torch.device("cpu"))
        assert (row["path"], row["reason"]) == (chosen.name, chosen.reason)


@pytest.mark.parametrize("kernel", ["0", "1"], ids=["kernel-off", "kernel-on"])
def test_text_names_each_package_and_each_path(kernel, capsys, monkeypatch):
    monkeypatch.setenv(native.SWITCH, kernel)
    assert info.main([]) == 0
    text = capsys.readouterr().out
    for word in ("torch", "opencv", "processor", "threads", "CPU kernel", "heat_conduction on cpu"):
        assert word in text
    assert ("dense matrix products" in text) == (native.refusal() is not None)


def test_the_state_of_the_cpu_kernel_is_told_with_the_reason(monkeypatch):
    told = info.cpu_kernel()
    assert told["available"] == (native.refusal() is None)
    monkeypatch.setenv(native.SWITCH, "0")
    assert info.cpu_kernel() == {"available": False, "reason": "the CPU kernel is switched off by VHEATIR_CPU_KERNEL=0"}


def test_a_package_that_is_missing_has_no_version(monkeypatch):
    monkeypatch.setitem(run_metadata._PACKAGES, "absent", ("surely-not-installed",))
    assert info.versions()["absent"] is None
    assert "absent         -" in info._text(info.collect())


@pytest.mark.skipif(torch.cuda.is_available(), reason="the machine has a CUDA device")
def test_a_machine_without_gpu_is_described_as_such():
    assert info.machine()["cuda_devices"] == []
    assert list(info.collect()["paths"]) == ["cpu"]
