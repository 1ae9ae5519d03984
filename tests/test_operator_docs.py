"""The code in docs/operator.md runs as it stands there, from top to bottom."""

import re
from pathlib import Path

import torch

PAGE = Path(__file__).resolve().parent.parent / "docs" / "operator.md"


def test_the_code_of_the_operators_page_runs():
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 3
    torch._dynamo.reset()
    names: dict[str, object] = {"__name__": "operator_page"}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
