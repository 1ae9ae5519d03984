"""Designs of the light denoiser at equal time, one change to `options/denoise_light.yml` each.

    python benchmarks/designs.py --minutes 4 --out results/designs --set threads=1

Writes one recipe for each design and hands them to `vheatir train --compare`, which trains them on the same samples for
the same time. `--only` takes some of them. A trial of minutes ranks how fast designs learn, not where they end.
"""

import argparse
import copy
from pathlib import Path
from typing import Any

import yaml

from vheatir.cli import run
from vheatir.train.equal_time import main as compare

BASE = Path(__file__).resolve().parent.parent / "options" / "denoise_light.yml"
DESIGNS: dict[str, dict[str, Any]] = {
    "light": {},
    "full_resolution": {"network_g": {"downscale": 1, "embed_size": 64, "dim": 48, "depths": [4, 4]}},
    "wide_short": {"network_g": {"dim": 104, "depths": [4, 3]}},
    "narrow_deep": {"network_g": {"dim": 64, "depths": [6, 6, 6]}},
    "published_start": {"network_g": {"reach": None}},
    "short_reach": {"network_g": {"reach": [0.5, 4.0]}},
    "no_heat": {"network_g": {"learned_k": False, "fixed_k": 0.0, "reach": None}},
    "no_gate": {"network_g": {"gate": False}},
    "mlp_dwconv": {"network_g": {"mlp_dwconv": True}},
    "l1_loss": {"train": {"pixel_opt": {"type": "L1Loss", "loss_weight": 1.0, "reduction": "mean"}}},
    "mse_loss": {"train": {"pixel_opt": {"type": "MSELoss", "loss_weight": 1.0, "reduction": "mean"}}},
}


def recipe(name: str) -> dict[str, Any]:
    """The base recipe with one design's changes; a section that names a type replaces the old one."""
    options = copy.deepcopy(yaml.safe_load(BASE.read_text(encoding="utf-8")))
    for section, changes in DESIGNS[name].items():
        options[section] |= changes
    return options | {"name": name}


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=4.0, help="training time of each design (default 4)")
    parser.add_argument("--out", type=Path, required=True, help="folder for recipes, weights, JSON and plot")
    parser.add_argument(
        "--only", nargs="+", choices=DESIGNS, default=list(DESIGNS), metavar="NAME", help="some of them"
    )
    parser.add_argument("--set", action="append", default=[], metavar="A.B=VALUE", help="change an option in all")
    parser.add_argument("--resume", action="store_true", help="go on where a stopped run stood")
    arguments = parser.parse_args(argv)
    folder = arguments.out / "recipes"
    folder.mkdir(parents=True, exist_ok=True)
    for name in arguments.only:
        (folder / f"{name}.yml").write_text(yaml.safe_dump(recipe(name), sort_keys=False), encoding="utf-8")
    given = ["--compare", *(str(folder / f"{name}.yml") for name in arguments.only)]
    given += ["--minutes", str(arguments.minutes), "--validate-every", str(arguments.minutes / 2)]
    given += ["--out", str(arguments.out), *(text for item in arguments.set for text in ("--set", item))]
    return compare(given + ["--resume"] * arguments.resume)


if __name__ == "__main__":
    raise SystemExit(run(main))
