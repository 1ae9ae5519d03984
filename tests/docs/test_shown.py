"""Every command and every Python block that a page shows is run as shown, in a work place with small images.

Arguments that make a command small are appended to it: the last one counts. A command that stands on several pages runs
on the first of them. What cannot be run is excused, with a reason, in tests/docs/shown_tables.py.
"""

import contextlib
import glob
import os
import re
import runpy
import subprocess
import sys
import tomllib
import types
from collections.abc import Iterator

import pytest
import torch

from tests.docs import shown, shown_place, shown_tables
from tests.docs.shown import ROOT, Command
from vheatir.cli import main as vheatir_main

SHOWN = [command for page in shown.PAGES if page.name != "CHANGELOG.md" for command in shown.commands(page)]
FIRST = {command.text: command for command in reversed(SHOWN)}.values()


def is_excused(command: Command) -> bool:
    return command.text.startswith(tuple(shown_tables.EXCUSED))


def commands_to_run(page: str) -> list[Command]:
    return [command for command in SHOWN if command.page == page and command in FIRST and not is_excused(command)]


ADDED = "docs/contributing.md"  # its blocks are files to add; test_contributing.py adds them
BLOCKS = {page: [] if page == ADDED else shown.python_blocks(page) for page in map(shown.name_of, shown.PAGES)}
RUN = {page: commands_to_run(page) for page in BLOCKS}
PAGES = [page for page in BLOCKS if RUN[page] or BLOCKS[page]]


def test_the_tables_are_about_what_the_pages_show():
    tables, texts = shown_tables, [command.text for commands in RUN.values() for command in commands]
    assert [start for start in tables.EXCUSED if not any(one.text.startswith(start) for one in SHOWN)] == []
    patterns = [pattern for pattern, _ in (*tables.MORE, *tables.PROMISED, *tables.SAID)]
    assert [pattern for pattern in patterns if not any(re.search(pattern, text) for text in texts)] == []
    assert {*tables.NEEDS, *tables.SMALLER, *tables.GIVEN} <= set(PAGES)
    assert set(tables.HOLDS) == {(page, number) for page in BLOCKS for number in range(len(BLOCKS[page]))}


def test_of_every_command_that_runs_something_is_expected():
    texts = [command.text for page in PAGES for command in RUN[page] if not promised(command)]
    assert [text for text in texts if not said(text)] == []
    assert len(SHOWN) > 100 and sum(map(len, RUN.values())) > 70


def arguments(command: Command) -> Iterator[str]:
    """The words of a command with patterns replaced as a shell does, and what makes it small."""
    for word in command.words:
        yield from (sorted(glob.glob(word)) or [word]) if "*" in word else [word]
    for pattern, words in shown_tables.MORE:
        if re.search(pattern, command.text):
            yield from words


def run(words: list[str], monkeypatch) -> int:
    """Run a command, in this process unless it starts several; returns its exit status."""
    while re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        monkeypatch.setenv(*words.pop(0).split("=", 1))
    program, *rest = words
    if program == "vheatir":
        return vheatir_main(rest)
    if program == "torchrun":
        rest = [re.sub(r"(--nproc.per.node=)\d+", r"\g<1>2", word) for word in rest]
        started = [sys.executable, "-m", "torch.distributed.run", "--standalone", *rest]
        paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        return subprocess.run(started, env=os.environ | {"PYTHONPATH": paths}, check=False).returncode
    if rest[0] == "-c":
        _, code, _, file = rest
        with open(file, "w") as out, contextlib.redirect_stdout(out):
            exec(code, {})
        return 0
    monkeypatch.setattr(sys, "argv", rest)
    monkeypatch.setattr(sys, "path", [str((ROOT / rest[0]).parent), *sys.path])
    try:
        runpy.run_path(str(ROOT / rest[0]), run_name="__main__")
    except SystemExit as ended:
        return ended.code or 0
    return 0


def promised(command: Command) -> list[str]:
    """Files and folders that the command's options and the page promise."""
    found = [path for pattern, paths in shown_tables.PROMISED if re.search(pattern, command.text) for path in paths]
    option = None
    for word in command.words:
        option = word if word.startswith("-") else option
        if option in shown_tables.WRITES and word != option:
            found.append(word)
    return found


def said(text: str) -> list[str]:
    return [words for pattern, words in shown_tables.SAID if re.search(pattern, text)]


@pytest.fixture
def place(tmp_path, monkeypatch):
    shown_place.make_place(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("VHEATIR_BENCH_HEAP", "set")  # bench would start itself anew
    # it measures the machine for seconds
    monkeypatch.setattr("vheatir.utils.timing.roofline", lambda *_: {"copy_gb_s": 1.0, "gemm_gflop_s": 1.0})
    yield tmp_path
    for name in ("salt", "mean"):
        sys.modules.pop(name, None)
    if "basicsr" in sys.modules:
        from basicsr.utils.registry import DATASET_REGISTRY

        DATASET_REGISTRY._obj_map.pop("SaltAndPepper", None)
    if "vheatir.backbone.mixers" in sys.modules:
        sys.modules["vheatir.backbone.mixers"].MIXERS.pop("mean", None)


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_shows_does_what_it_says(page, place, monkeypatch, capsys):
    packages, builders = shown_tables.NEEDS.get(page, ((), ()))
    for package in ("basicsr",) if page.startswith("vheatir/weights/") else packages:
        pytest.importorskip(package, reason=f"{page} needs it; docs/install.md has the extras")
    for build in builders:
        build(place)
    for name, value in shown_tables.SMALLER.get(page, ()):
        monkeypatch.setattr(name, value)
    if (place / "denoise_color_blind.safetensors").exists():
        monkeypatch.setattr("vheatir.weights.store.FOLDER", place)
    for command in RUN[page]:
        status, output = run(list(arguments(command)), monkeypatch), capsys.readouterr()
        assert status == 0, f"{command.text}\n{output.err[-2000:]}"
        missing = [path for path in promised(command) if not (place / path).exists()]
        assert missing == [], f"{command.text} has not written them"
        assert [words for words in said(command.text) if words not in output.out + output.err] == [], command.text
    torch._dynamo.reset()
    module = types.ModuleType("shown_page")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    names = vars(module)
    names |= shown_tables.GIVEN.get(page, dict)()
    for number, block in enumerate(BLOCKS[page]):
        exec(compile(block, f"{page}, block {number}", "exec"), names)
        assert shown_tables.HOLDS[page, number](names), block


def test_extras_of_the_pages_exist():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    text = "\n".join(page.read_text(encoding="utf-8") for page in shown.PAGES)
    named = {name for names in re.findall(r"(?:vheatir|\"\.|'\.)\[([\w,]+)\]", text) for name in names.split(",")}
    assert len(named) > 8 and named <= set(project["optional-dependencies"])


def test_make_knows_the_targets_of_the_pages():
    text = "\n".join(page.read_text(encoding="utf-8") for page in shown.PAGES)
    targets = set(re.findall(r"(?:`|^)make (\w+)", text, re.MULTILINE))
    assert {"demo", "test", "gpu"} <= targets
    for target in sorted(targets):
        done = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0 and "python" in done.stdout, done.stderr
