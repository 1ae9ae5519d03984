"""The options that docs/restoration.md names are those of the command."""

import re
from pathlib import Path

import pytest

from vheatir.cli import main as vheatir_main

GUIDE = (Path(__file__).resolve().parents[2] / "docs" / "restoration.md").read_text(encoding="utf-8")


def test_exit_statuses_and_defaults_are_those_of_the_help(capsys):
    with pytest.raises(SystemExit):
        vheatir_main(["restore", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for option in re.findall(r"`(--[a-z-]+)", GUIDE):
        assert option in text, option
