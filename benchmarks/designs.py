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
from vheatir.train.command import main as train

BASE = Path(__file__).resolve().parent.parent / "options" / "denoise_light.yml"
_HEAT, _MEAN, _NONE = "heat", "mean", "none"
DESIGNS: dict[str, dict[str, Any]] = {
    "heat": {},
    "no_attention": {"network_g": {"attention": [_NONE] * 4}},
    "mean": {"network_g": {"attention": [_MEAN] * 4}},
    "heat_coarse": {"network_g": {"attention": [_NONE, _NONE, _HEAT, _HEAT]}},
    "heat_fine": {"network_g": {"attention": [_HEAT, _HEAT, _NONE, _NONE]}},
    "heat_fine_mean_coarse": {"network_g": {"attention": [_HEAT, _HEAT, _MEAN, _MEAN]}},
    "short_reach": {"network_g": {"reach": [0.5, 4.0]}},
    "long_reach": {"network_g": {"reach": [0.7, 48.0]}},
    "narrow": {"network_g": {"dim": 24, "middle": 3}},
    "two_levels": {"network_g": {"dim": 48, "encoder": [2, 2], "decoder": [1, 1], "attention": [_HEAT] * 3}},
    "flat": {
        "network_g": {
            "type": "VHeatIR",
            "dim": 80,
            "depths": [6, 6],
            "embed_size": 32,
            "downscale": 2,
            "reach": [0.5, 24],
        }
    },
    "l1_loss": {"train": {"pixel_opt": {"type": "L1Loss", "loss_weight": 1.0, "reduction": "mean"}}},
    "fast": {"train": {"optim_g": {"type": "AdamW", "lr": 2.0e-3, "weight_decay": 1.0e-4, "betas": [0.9, 0.99]}}},
}


def recipe(name: str) -> dict[str, Any]:
    """The base recipe with one design's changes; a section that names a type replaces the old one."""
    options = copy.deepcopy(yaml.safe_load(BASE.read_text(encoding="utf-8")))
    options["datasets"]["train"].pop("progressive", None)  # stages count iterations, of which each design makes another
    for section, changes in DESIGNS[name].items():
        options[section] = changes if "type" in changes else options[section] | changes
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
    return train(given + ["--resume"] * arguments.resume)


if __name__ == "__main__":
    raise SystemExit(run(main))
