"""The documentation: links lead somewhere, commands take the arguments shown, the site has every page and is built."""

import argparse
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

from tests.docs import shown
from tests.docs.shown import PAGES, ROOT
from tests.docs.shown_tables import EXCUSED, MENTION
from vheatir.cli import main as vheatir_main

_CODE = re.compile(r"```.*?```|`[^`\n]*`|^(?: {4}|\t).*$", re.DOTALL | re.MULTILINE)


def _anchors(page: Path) -> set[str]:
    """The anchors that GitHub and MkDocs give the headings of a page."""
    titles = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = _CODE.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), f"{page.name} links to {target}"
        if anchor and file.suffix == ".md":
            assert anchor in _anchors(file), f"{page.name} links to {target}"


def _names(entries) -> list[str]:
    found = []
    for entry in entries:
        for value in entry.values():
            found += _names(value) if isinstance(value, list) else [value]
    return found


def test_every_page_is_in_the_site():
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    pages = [path.relative_to(ROOT / "docs").as_posix() for path in ROOT.glob("docs/**/*.md")]
    assert sorted(_names(settings["nav"])) == sorted(pages)


def test_the_site_is_built_and_fetches_nothing(tmp_path):
    pytest.importorskip("material", reason="pip install 'vheatir[docs]'")
    pytest.importorskip("mkdocstrings", reason="pip install 'vheatir[docs]'")
    # As `make docs`: with --quiet, --strict would count no warnings
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    start = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    assert "heat" in start
    assert not re.search(r"<(?:script|link|img)[^>]+(?:src|href)=\"?https?://", start)
    reference = (tmp_path / "site" / "reference" / "operator.html").read_text(encoding="utf-8")
    assert (
        "channels-last; float64, float32, bfloat16 or float16; any strides" in reference
    )  # from the docstring of heat_conduction


class _Parsed(Exception):
    """Raised once a command's own parser has accepted its arguments, so that nothing of it runs."""


def _commands() -> list:
    """The whole commands that tests/docs/test_shown.py does not run: their arguments, from `vheatir` on."""
    found = []
    for page in PAGES:
        for command in shown.commands(page):
            reasons = [reason for start, reason in EXCUSED.items() if command.text.startswith(start)]
            words = command.words
            if not reasons or MENTION in reasons:
                continue
            if "vheatir.train" in words:
                words[words.index("vheatir.train")] = "train"
                arguments = words[words.index("train") :]
            elif "vheatir" in words:
                arguments = words[words.index("vheatir") + 1 :]
            else:
                continue
            if arguments:
                found.append(pytest.param(arguments, id=f"{command.page}: {command.text}"[:120]))
    return found


@pytest.mark.parametrize("arguments", _commands())
def test_commands_that_are_not_run_take_these_arguments(arguments, monkeypatch):
    real = argparse.ArgumentParser.parse_known_args

    def parse(parser, args=None, namespace=None):
        parsed = real(parser, args, namespace)
        if parser.prog == "vheatir":  # the table of commands; the command's own parser follows
            return parsed
        if parsed[1]:
            parser.error(f"unrecognized arguments: {' '.join(parsed[1])}")
        raise _Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", parse)
    with pytest.raises(_Parsed):
        vheatir_main(arguments)


def test_the_drawings_are_those_that_the_script_makes(tmp_path):
    command = [sys.executable, str(ROOT / "scripts" / "draw_networks.py"), "--out", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True)
    drawn = {path.name: path.read_text(encoding="utf-8") for path in tmp_path.glob("*.svg")}
    assert set(drawn) == {"operator.svg", "vheatir.svg", "vheatunet.svg"}
    for name, text in drawn.items():
        assert (ROOT / "docs" / "images" / name).read_text(encoding="utf-8") == text
        ElementTree.fromstring(text)
