"""The options that docs/evaluation.md names are those of the commands."""

import re
from pathlib import Path

from vheatir.evaluate import command as evaluate

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")


def test_every_option_of_the_page_exists():
    known = evaluate._parser().format_help() + "--border --luma"
    assert set(re.findall(r"--[a-z][a-z-]+", TEXT)) <= set(re.findall(r"--[a-z][a-z-]+", known))
