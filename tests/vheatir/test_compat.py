"""Importing is light, public names arrive on first use, and BasicSR imports beside today's torchvision."""

import importlib.util
import re
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

import vheatir
from vheatir import cli, compat
from vheatir.errors import UserError

ROOT = Path(__file__).resolve().parent.parent.parent
OLD = "torchvision.transforms.functional_tensor"
HEAVY = ("torch", "torchvision", "numpy", "scipy", "cv2", "skimage", "kornia", "basicsr", "timm", "yaml", "lmdb")

needs_basicsr = pytest.mark.skipif(importlib.util.find_spec("basicsr") is None, reason="BasicSR is not installed")


def loaded_by(code: str) -> set[str]:
    """Top-level modules a fresh interpreter holds after running the code."""
    report = "; import sys; print('\\n' + ' '.join(sorted({name.split('.')[0] for name in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", code + report], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


def test_importing_vheatir_imports_nothing_heavy():
    assert loaded_by("import vheatir").isdisjoint(HEAVY)


@pytest.mark.parametrize("arguments", [["--help"], ["--version"]], ids=str)
def test_the_command_answers_without_importing_anything_heavy(arguments):
    code = f"from vheatir import cli; import contextlib\nwith contextlib.suppress(SystemExit): cli.main({arguments})\n0"
    assert loaded_by(code).isdisjoint(HEAVY)


@pytest.mark.parametrize("name", sorted(set(vheatir.__all__) - {"__version__"}))
def test_public_names_exist(name):
    assert getattr(vheatir, name).__name__.removeprefix("vheatir.") == name
    assert name in dir(vheatir)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'heat'"):
        _ = vheatir.heat


def test_the_alias_is_the_private_module_and_leaves_it_as_it_was():
    functional = pytest.importorskip("torchvision.transforms._functional_tensor")
    alias = importlib.import_module(OLD)
    assert alias is functional
    assert alias.__spec__.name == alias.__name__ == "torchvision.transforms._functional_tensor"


def test_install_adds_one_finder_however_often_it_is_called():
    for _ in range(2):
        compat.install()
        assert sum(isinstance(finder, compat._AliasFinder) for finder in sys.meta_path) == 1


@needs_basicsr
def test_basicsr_imports_after_vheatir():
    assert {"basicsr", "torchvision"} <= loaded_by("import vheatir, basicsr")


@needs_basicsr
def test_basicsr_imports_in_a_spawned_worker_that_only_unpickles_something_of_ours():
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        assert pool.submit(compat.require_basicsr).result(timeout=120) is None


def test_missing_basicsr_is_an_error_that_says_what_to_install(monkeypatch):
    monkeypatch.setattr(compat.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"BasicSR 1\.4\.2.*not installed"):
        compat.require_basicsr()


@pytest.mark.parametrize(
    "cause",
    [
        ImportError("libGL.so.1 is missing"),
        RuntimeError("operator torchvision::nms does not exist"),  # of a torchvision that another torch belongs to
        AttributeError("module 'numpy' has no attribute 'float'"),
        OSError("libtorch_cuda.so: cannot open shared object file"),
    ],
    ids=lambda cause: type(cause).__name__,
)
def test_basicsr_that_does_not_import_is_an_error_that_names_the_cause(monkeypatch, cause):
    def fails(name):
        raise cause

    monkeypatch.setattr(compat.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(compat.importlib, "import_module", fails)
    with pytest.raises(UserError, match=rf"does not import \({re.escape(str(cause))}\)"):
        compat.require_basicsr()


def test_a_user_error_is_printed_without_traceback_and_gives_status_2(capsys):
    def command(argv):
        raise UserError(f"no such file: {argv[0]}")

    assert cli.run(command, ["a.png"]) == 2
    assert capsys.readouterr().err == "error: no such file: a.png\n"


def test_the_interrupt_key_gives_status_130(capsys):
    def command(argv):
        raise KeyboardInterrupt

    assert cli.run(command, []) == 130


def test_arguments_after_the_command_reach_it_unchanged(monkeypatch):
    received = []
    monkeypatch.setattr("vheatir.info.main", lambda argv: received.extend(argv) or 0)
    assert cli.main(["info", "--json", "-x", "--", "y"]) == 0
    assert received == ["--json", "-x", "--", "y"]


def test_an_unknown_command_names_the_known_ones(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["denoise"])
    assert stopped.value.code == 2
    assert "restore" in capsys.readouterr().err


@pytest.mark.parametrize("command", sorted(cli.COMMANDS))
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main([command, "--help"])
    assert stopped.value.code == 0
    assert f"vheatir {command}" in capsys.readouterr().out
