"""The code in docs/operator.md runs as it stands there, from top to bottom."""

import json
import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "operator.md"


def test_the_code_of_the_operators_page_runs():
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 3
    torch._dynamo.reset()
    names: dict[str, object] = {"__name__": "operator_page"}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)


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
