"""The figures in docs/operator.md are those of the files that it names."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = ROOT / "docs" / "operator.md"


@pytest.mark.parametrize(
    "section, ours", [("Speed of the paths in PyTorch", "torch"), ("The CPU kernel", "cpu_kernel")]
)
def test_the_figures_of_the_page_are_those_of_the_file(section, ours):
    text = PAGE.read_text(encoding="utf-8").split(f"\n## {section}\n")[1].split("\n## ")[0]
    (name,) = set(re.findall(r"benchmarks/results/\S+\.json", text))
    results = json.loads((ROOT / name).read_text(encoding="utf-8"))["results"]
    speedups = {(result["case"], result["backend"]): result["speedup"] for result in results}
    rows = re.findall(r"^\| (\d+x\d+x\d+x\d+) \| [\d.]+ \| ([\d.]+)× \| ([\d.]+)× \| ([\d.]+)× \|", text, re.MULTILINE)
    assert len(rows) == len({result["case"].split()[2] for result in results if " fwd " in result["case"]})
    for shape, raw, prepared, backward in rows:
        forward = f"hco fwd {shape} float32"
        keys = [(forward, ours), (forward, f"{ours} prepared"), (f"hco fwd+bwd {shape} float32", ours)]
        assert [raw, prepared, backward] == [f"{speedups[key]:.2f}" for key in keys], shape
