"""The documentation: links lead somewhere, commands take the arguments shown, the site has every page and is built."""

import argparse
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from vheatir.cli import main as vheatir_main

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("*/README.md"), *ROOT.glob("vheatir/**/*.md")])
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
    assert sorted(_names(settings["nav"])) == sorted(path.name for path in ROOT.glob("docs/*.md"))


def test_the_site_is_built_and_fetches_nothing(tmp_path):
    pytest.importorskip("material", reason="pip install 'vheatir[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    start = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    assert "heat" in start
    assert not re.search(r"<(?:script|link|img)[^>]+(?:src|href)=\"?https?://", start)


class _Parsed(Exception):
    """Raised once a command's own parser has accepted its arguments, so that nothing of it runs."""


def _commands() -> list:
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        for line in re.findall(r"^(?: {4,}|\$ |)((?:vheatir|torchrun|srun|python3?) .*)$", text, re.MULTILINE):
            words = shlex.split(line, comments=True)
            if "vheatir" in words:
                arguments = words[words.index("vheatir") + 1 :]
            elif "vheatir.train" in words:
                arguments = ["train", *words[words.index("vheatir.train") + 1 :]]
            elif words[0].startswith("python") and words[1].startswith(("scripts/", "benchmarks/")):
                arguments = words[1:]
            else:
                continue
            name = f"{page.relative_to(ROOT)}: {' '.join(words)}"
            found.append(pytest.param([text for text in arguments if text not in ("[...]", "...")], id=name[:120]))
    return found


@pytest.mark.parametrize("arguments", _commands())
def test_shown_commands_take_these_arguments(arguments, monkeypatch):
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
        if arguments[0].endswith(".py"):
            monkeypatch.setattr(sys, "argv", arguments)
            monkeypatch.setattr(sys, "path", [str((ROOT / arguments[0]).parent), *sys.path])
            runpy.run_path(str(ROOT / arguments[0]), run_name="__main__")
        else:
            vheatir_main(arguments)
