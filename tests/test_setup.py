"""The set-up behind `make`: it names what is missing, keeps a torch that is there, and does nothing when up to date."""

import importlib.util
import re
import shutil
import sys
import tarfile
import tomllib
from pathlib import Path

import pytest
import yaml

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"


def _script(name: str):
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def preflight():
    return _script("preflight")


@pytest.fixture
def environment(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return _script("environment")


def test_a_system_with_everything_has_no_errors(preflight):
    assert preflight.errors() == []


@pytest.mark.parametrize(
    "version, named", [((3, 10), "Python 3.11 or 3.12 is needed"), ((3, 13), None), ((3, 12), None)], ids=str
)
def test_python_versions(preflight, monkeypatch, version, named):
    monkeypatch.setattr(preflight.sys, "version_info", version)
    found = preflight.errors()
    assert (named in found[0]) if named else found == []


def test_python_3_13_is_told_that_training_will_be_missing(preflight, monkeypatch, tmp_path):
    monkeypatch.setattr(preflight.sys, "version_info", (3, 13))
    assert any("cannot be built on Python 3.13" in note for note in preflight.notes(tmp_path))


def test_missing_venv_names_the_debian_package(preflight, monkeypatch):
    monkeypatch.setattr(preflight.importlib.util, "find_spec", lambda name: None)
    (error,) = preflight.errors()
    assert "apt-get install python3." in error and "-venv" in error


def test_missing_libraries_of_opencv_are_a_note_with_their_packages(preflight, monkeypatch, tmp_path):
    monkeypatch.setattr(preflight, "_loads", lambda library: library != "libGL.so.1")
    assert preflight.missing_for_opencv() == ["libgl1"]
    assert any("headless" in note and "apt-get install libgl1." in note for note in preflight.notes(tmp_path))
    assert preflight.report(tmp_path)


def test_a_full_disk_is_a_note_with_the_way_to_a_small_build(preflight, monkeypatch, tmp_path):
    usage = preflight.shutil.disk_usage(tmp_path)._replace(free=2**30)
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda path: usage)
    assert any("1.0 GiB are free" in note and "PIP_ARGS" in note for note in preflight.notes(tmp_path / "new"))


@pytest.fixture
def recorded(environment, monkeypatch):
    """The set-up with its installations recorded instead of run."""
    calls = []
    monkeypatch.setattr(environment, "create", lambda folder: _touch(folder / "bin" / "python"))
    monkeypatch.setattr(environment.Environment, "install", lambda self, *arguments: calls.append(arguments) or True)
    monkeypatch.setattr(environment.Environment, "runs", lambda self, code, quiet=False: True)
    return calls


def _touch(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.touch()


def _main(environment, monkeypatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["environment.py", *arguments])
    environment.main()


def test_torch_comes_first_and_basicsr_without_build_isolation(environment, recorded, monkeypatch, tmp_path):
    monkeypatch.setattr(environment.preflight, "BASICSR_CANNOT_BUILD", (9, 9))
    _main(environment, monkeypatch, "--venv", str(tmp_path / "env"))
    assert recorded[0] == ("torch>=2.9", "torchvision>=0.24")
    assert ("--no-build-isolation", "basicsr==1.4.2") in recorded[1:]
    assert recorded[-1] == ("--no-build-isolation", "--editable", ".[all]")


def test_an_environment_with_a_matching_stamp_is_left_alone(environment, recorded, monkeypatch, tmp_path):
    folder = ("--venv", str(tmp_path / "env"))
    _main(environment, monkeypatch, *folder, "--pip-args=--quiet")
    done = len(recorded)
    _main(environment, monkeypatch, *folder, "--pip-args=--quiet")
    assert len(recorded) == done
    _main(environment, monkeypatch, *folder, "--pip-args=--no-cache-dir")
    assert len(recorded) == 2 * done


def test_without_a_wheel_of_basicsr_the_rest_is_installed(environment, recorded, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(environment.preflight, "BASICSR_CANNOT_BUILD", (3, 0))
    calls = []
    monkeypatch.setattr(
        environment.Environment, "install", lambda self, *a: calls.append(a) or "--only-binary=basicsr" not in a
    )
    _main(environment, monkeypatch, "--venv", str(tmp_path / "env"))
    assert calls[-1][-1] == ".[all]"
    assert "going on without training" in capsys.readouterr().err


def test_where_opencv_does_not_load_the_headless_build_of_the_same_version_replaces_it(
    environment, recorded, monkeypatch, tmp_path
):
    loads = iter([False, True])
    monkeypatch.setattr(
        environment.Environment, "runs", lambda self, code, quiet=False: next(loads) if "cv2" in code else True
    )
    monkeypatch.setattr(environment.Environment, "version", lambda self, package: "5.0.0.93")
    _main(environment, monkeypatch, "--venv", str(tmp_path / "env"))
    assert recorded[-1] == ("--no-deps", "--force-reinstall", "opencv-python-headless==5.0.0.93")


def test_a_torchvision_of_another_build_stops_the_set_up(environment, recorded, monkeypatch, tmp_path):
    monkeypatch.setattr(environment.Environment, "runs", lambda self, code, quiet=False: "torchvision" not in code)
    with pytest.raises(SystemExit, match="do not belong together"):
        _main(environment, monkeypatch, "--venv", str(tmp_path / "env"))
    assert not (tmp_path / "env" / environment.STAMP).exists()


@pytest.mark.parametrize("status", [0, 1])
def test_an_environment_without_pip_gets_it(environment, recorded, monkeypatch, tmp_path, status):
    """As uv makes them, and as they are left where making one was interrupted: every installation failed."""
    runs = []
    monkeypatch.setattr(environment.Environment, "runs", lambda self, code, quiet=False: code != "import pip")
    ended = environment.subprocess.CompletedProcess([], status)
    monkeypatch.setattr(environment.subprocess, "run", lambda command, **_: runs.append(command) or ended)
    if status == 0:
        _main(environment, monkeypatch, "--venv", str(tmp_path / "env"))
        assert recorded
    else:
        with pytest.raises(SystemExit, match=r"has no pip.*remove it or name another VENV="):
            _main(environment, monkeypatch, "--venv", str(tmp_path / "env"))
        assert not recorded
    assert [command[1:3] for command in runs] == [["-m", "ensurepip"]]


@pytest.mark.parametrize(
    "versions, kept",
    [
        ({"torch": "2.15.0+cpu", "torchvision": "0.30.0"}, True),
        ({"torch": "2.8.0", "torchvision": "0.23.0"}, False),
        ({"torch": "2.15.0"}, False),
        ({}, False),
    ],
    ids=str,
)
def test_torch_and_torchvision_are_kept_together_or_not_at_all(environment, monkeypatch, versions, kept):
    def version(name):
        if name not in versions:
            raise environment.importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(environment.importlib.metadata, "version", version)
    monkeypatch.setattr(sys, "path", [*sys.path, "/somewhere/site-packages"])
    assert ("/somewhere/site-packages" in environment.own_packages()) is kept


def test_every_dependency_has_a_lower_bound():
    """`make test-oldest` would else take whatever was released first."""
    project = tomllib.loads((SCRIPTS.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    texts = [*project["dependencies"], *(text for extra in project["optional-dependencies"].values() for text in extra)]
    exempt = ("vheatir[", "scipy<", "setuptools")  # bounds from above for others' sake; `vheatir` is the package itself
    assert [text for text in texts if not re.search(r"[>=]=", text) and not text.startswith(exempt)] == []


def test_the_oldest_versions_are_the_stated_minimums(monkeypatch, tmp_path, capsys):
    oldest = _script("oldest")
    stated = oldest.minimums()
    assert stated["torch"] == "2.9" and stated["opencv-python"] == "4.11.0.86" and len(stated) > 30
    pins = "".join(f"{name}=={version}.0\n    # via vheatir\n" for name, version in stated.items())
    pins = pins.replace("torch==2.9.0", "torch==2.9.0+cpu")
    monkeypatch.setattr(oldest, "PINS", tmp_path / "pins.txt")
    monkeypatch.setattr(oldest, "OLDEST", sys.version_info[:2])
    calls = []
    monkeypatch.setattr(oldest, "uv", lambda *words: calls.append(words) or oldest.PINS.write_text(pins))
    oldest.resolve()
    assert {"lowest-direct", "--extra", "backbone"} <= set(calls[0])
    assert "tested 4.11.0.86" in capsys.readouterr().out
    pins = pins.replace("numpy==2.0", "numpy==2.1")
    with pytest.raises(SystemExit, match=r"cannot be installed together: numpy$"):
        oldest.resolve()


def test_what_the_sources_lack_for_an_upload_is_named_until_it_is_there(tmp_path):
    """The project has no public address, and nothing may invent one; `make dist` says so."""
    packages = _script("build_packages")
    for name in ("pyproject.toml", "CHANGELOG.md", "CITATION.cff"):
        shutil.copy(SCRIPTS.parent / name, tmp_path)
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "vheatir"\n')
    assert "pyproject.toml: no [project.urls]" in packages.open_points(tmp_path)
    (tmp_path / "pyproject.toml").write_text('[project.urls]\nRepository = "https://example.org/vheatir"\n')
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## 0.2.0, 1 December 2026\n")
    (tmp_path / "CITATION.cff").write_text('repository-code: "https://example.org/vheatir"\n')
    assert packages.open_points(tmp_path) == []


def test_the_workflow_tests_every_python_that_is_stated():
    root = SCRIPTS.parent
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    stated = [match[1] for text in project["classifiers"] if (match := re.search(r"Python :: (3\.\d+)$", text))]
    jobs = yaml.safe_load((root / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8"))["jobs"]
    assert jobs["tests"]["strategy"]["matrix"]["python"] == stated
    assert project["requires-python"] == f">={stated[0]}"
    commands = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    targets = {target for command in commands for target in re.findall(r"make ([\w-]+)", command)}
    rules = set(re.findall(r"^([\w-]+):", (root / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert {"test", "test-oldest", "dist"} <= targets <= rules


@pytest.mark.parametrize("page", ["docs/contributing.md", "scripts/environment.py", "scripts/preflight.py"])
def test_a_second_index_is_added_and_replaces_none(page):
    """PIP_ARGS are of every installation, and PyTorch's index has few of the other packages."""
    text = (SCRIPTS.parent / page).read_text(encoding="utf-8")
    assert re.findall(r"PIP_ARGS='(--\S+)", text) and not re.search(r"PIP_ARGS='--index-url", text)


@pytest.mark.parametrize("old", [False, True], ids=["this Python", "Python 3.11.2"])
def test_the_source_archive_is_unpacked_by_every_release_of_python(monkeypatch, tmp_path, old):
    """Python has filters of archives since 3.11.4; Debian 12 has 3.11.2."""
    packages = _script("build_packages")
    (tmp_path / "vheatir-1").mkdir()
    (tmp_path / "vheatir-1" / "setup.py").touch()
    archive = shutil.make_archive(str(tmp_path / "vheatir-1"), "gztar", tmp_path, "vheatir-1")
    real = tarfile.TarFile.extractall
    if old:
        monkeypatch.delattr(tarfile, "data_filter")
        monkeypatch.setattr(tarfile.TarFile, "extractall", lambda file, path: real(file, path))
        monkeypatch.setattr(shutil, "unpack_archive", lambda filename, extract_dir=None, format=None: None)
    packages._unpack(Path(archive), tmp_path / "source")
    assert (tmp_path / "source" / "vheatir-1" / "setup.py").is_file()
