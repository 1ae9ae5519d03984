"""The table of `benchmarks/cifar_mixers.py`: rows of one table are of one setting."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[3] / "benchmarks" / "cifar_mixers.py"


@pytest.fixture
def table(tmp_path, monkeypatch):
    """`table(*arguments)`: the JSON after a call, in which training only notes that it took place."""
    spec = importlib.util.spec_from_file_location("cifar_mixers", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setattr(script, "trained", lambda network, args: {"network": network, "raw_top1": 1, "ema_top1": 1})
    file = tmp_path / "table.json"

    def call(*arguments: str) -> dict:
        common = ["--root", str(tmp_path), "--runs", str(tmp_path / "runs"), "--json", str(file), "--skip-speed"]
        monkeypatch.setattr(sys, "argv", ["cifar_mixers.py", *common, *arguments])
        assert script.main() == 0
        return json.loads(file.read_text(encoding="utf-8"))

    return call


def test_networks_are_added_to_a_table_of_the_same_settings_alone(table):
    table("--epochs", "8", "--networks", "vheat")
    both = table("--epochs", "8", "--networks", "vheat", "swin")
    assert [row["network"] for row in both["results"]] == ["vheat", "swin"]
    with pytest.raises(SystemExit, match=r"epochs.*8.*not with.*12"):  # would say 12 of those that had 8
        table("--networks", "vheat", "swin")
    with pytest.raises(SystemExit, match="batch_size"):
        table("--epochs", "8", "--set", "data.batch_size=32")
