"""The table of docs/backbone.md holds the counted figures."""

import re
from pathlib import Path

import pytest
import torch

pytest.importorskip("timm", reason="the backbones need the extra `backbone`")

from vheatir.backbone.analysis.cost import count_macs, count_parameters
from vheatir.backbone.models.create import create_model, list_models

GUIDE = (Path(__file__).resolve().parent.parent.parent / "docs" / "backbone.md").read_text(encoding="utf-8")
ROW = re.compile(r"\| ((?:vheat|unified)_\w+) \| ([\d.]+) M[^|]*\| ([\d.]+)")


def test_the_table_holds_every_model_with_its_figures():
    rows = {name: (float(millions), float(giga)) for name, millions, giga in ROW.findall(GUIDE)}
    assert set(rows) == set(list_models())
    for name in ("vheat_base", "unified_pvt_base", "unified_heat_micro", "unified_heat_tiny", "unified_heat_base"):
        with torch.device("meta"):
            model = create_model(name)
        counted = (count_parameters(model)["total"] / 1e6, count_macs(model)["total"] / 1e9)
        assert rows[name] == (round(counted[0], 1), round(counted[1], 2)), name
