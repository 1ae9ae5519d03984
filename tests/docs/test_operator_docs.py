"""The speed-ups of the operator on the pages are those of the files that the pages name."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
_TABLE = re.compile(r"(?:^\|.*\n)+", re.MULTILINE)
_ROW = re.compile(r"^\| (\d+x\d+x\d+x\d+) \| [\d.]+ \| ([\d.]+)× \| ([\d.]+)× \| ([\d.]+)× \|", re.MULTILINE)


def _tables(section: str) -> list[tuple[str, list[Path]]]:
    """The tables of a section, each with the files that are named between it and the table before."""
    found, start = [], 0
    for table in _TABLE.finditer(section):
        names = re.findall(r"\(\S*?(cpu-amd-epyc/\S+?\.json)\)", section[start : table.start()])
        found.append((table.group(), [ROOT / "benchmarks" / "results" / name for name in names]))
        start = table.end()
    return found


@pytest.mark.parametrize(
    "page, title, count, ours",
    [
        ("docs/operator.md", "Speed of the paths in PyTorch", 1, "torch"),
        ("docs/performance.md", "Operator", 2, "cpu_kernel"),
        ("benchmarks/results/README.md", "Operator", 2, "cpu_kernel"),
    ],
)
def test_the_figures_of_a_page_are_those_of_the_files(page, title, count, ours):
    section = (ROOT / page).read_text(encoding="utf-8").split(f"\n## {title}\n")[1].split("\n## ")[0].split("\n### ")[0]
    tables = _tables(section)
    assert len(tables) == count
    for table, files in tables:
        results = [result for file in files for result in json.loads(file.read_text(encoding="utf-8"))["results"]]
        speedups = {(result["case"], result["backend"]): result["speedup"] for result in results}
        rows = _ROW.findall(table)
        assert len(rows) == len({result["case"] for result in results if " fwd " in result["case"]}) > 0
        for shape, raw, prepared, backward in rows:
            forward = f"hco fwd {shape} float32"
            keys = [(forward, ours), (forward, f"{ours} prepared"), (f"hco fwd+bwd {shape} float32", ours)]
            assert [raw, prepared, backward] == [f"{speedups[key]:.2f}" for key in keys], (page, shape)
