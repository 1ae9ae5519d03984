"""Turn a training checkpoint into weights to ship: NAME.safetensors (float16) and its card NAME.md.

Publish once, evaluate the file, publish again with the same arguments and --evaluation: the card then holds the
figures, and figures that were measured with other weights are refused. Of several checkpoints, such as runs that go on
from one state with other seeds, the mean is published (arXiv 2203.05482).

  python scripts/publish_weights.py experiments/denoise_light/models/best.safetensors --name denoise_color_blind \\
      --task denoise --levels "sigma 0-55" --data "BSD432" --recipe options/denoise_light.yml \\
      --command "vheatir train -opt options/denoise_light.yml" --hardware "2 CPU cores" --time "1.5 hours" \\
      --license bsds500
  vheatir evaluate --task denoise --color --data CBSD68 --weights denoise_color_blind --json cbsd68.json
  python scripts/publish_weights.py ... --evaluation cbsd68.json
"""

import argparse
import json
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # this checkout, installed or not

from vheatir import weights
from vheatir.archs.networks import build, config_from_state_dict, name_of
from vheatir.cli import run
from vheatir.errors import UserError
from vheatir.utils.files import TEMPORARY_PREFIX, atomic_open, sha256
from vheatir.utils.recipes import find_options, load_table
from vheatir.utils.run_metadata import prepare_folder, run_metadata

LICENSES = {  # short names of licenses of this project's own weights
    "bsds500": "non-commercial research and education only: trained on BSDS500 (see LICENSE-WEIGHTS); the code is "
    "Apache-2.0",
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "checkpoint",
        type=Path,
        nargs="+",
        help="weights of a run (.safetensors), or a BasicSR checkpoint or state dict (.pth); of several, their mean",
    )
    add("--name", required=True, help="name of the weights, such as denoise_color_blind")
    tasks = sorted({*weights.DEFAULTS, weights.PAIRED})
    add("--task", required=True, choices=tasks, help="paired: of pairs, or of a degradation of your own")
    add("--levels", required=True, help="what it was trained for, such as 'sigma 0-55' or 'quality 5-95'")
    add("--options", type=Path, help="options file of the training; its network_g overrides what the shapes tell")
    add("--data", required=True, help="training data")
    add("--recipe", required=True, help="options file of the training, as the card shall name it")
    add("--command", required=True, help="command of the training")
    add("--commit", help="commit of the training (default: of this checkout)")
    add("--hardware", required=True)
    add("--time", required=True, help="how long the training took")
    add(
        "--license",
        required=True,
        metavar="TEXT",
        help="of these weights, which the training data may limit; bsds500 stands for the text of weights trained on "
        "BSDS500",
    )
    add("--evaluation", type=Path, nargs="*", default=[], metavar="JSON", help="files of vheatir evaluate --json")
    add("--folder", type=Path, default=weights.FOLDER, help="where to write (default: %(default)s)")
    return parser


def build_config(state: dict, options: Path | None) -> tuple[str, dict]:
    """The network's name and constructor arguments, proven by building it and loading the state."""
    arch, config = config_from_state_dict(state)
    if options is not None:
        path = find_options(options)
        network_g = load_table(path).get("network_g")
        if not isinstance(network_g, dict):
            raise UserError(f"{path}: holds no table network_g; give the options file of the training to --options")
        config |= {key: value for key, value in network_g.items() if key != "type"}
    network = build(arch, config)
    network.load_state_dict(state)
    return arch, network.config


def read_results(files: list[Path], digest: str, task: str) -> list[dict]:
    """The rows of evaluation files; UserError when they were measured with other weights, or with an ensemble."""
    rows = []
    for file in files:
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            measured = (content["metadata"].get("weights") or {}).get("sha256")
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise UserError(f"{file}: not what `vheatir evaluate --json` writes: {error!r}") from error
        if measured != digest:
            raise UserError(f"{file}: measured with weights {measured}, these are {digest}; evaluate these")
        if content["metadata"].get("ensemble"):
            raise UserError(f"{file}: measured with --ensemble, which a card does not say; evaluate without")
        wrong = [row for row in content["results"] if row["task"] != task or row["restored"] is None]
        if wrong:
            raise UserError(f"{file}: holds results of another task or without restored images")
        rows += content["results"]
    return rows


@dataclass(frozen=True)
class _Trained:
    state: dict[str, Tensor]
    key: str  # what of the file it is
    arch: str
    config: dict


def _read(checkpoint: Path, options: Path | None) -> _Trained:
    try:
        if checkpoint.suffix == weights.SUFFIX:
            network, _ = weights.load(checkpoint)
            return _Trained(network.state_dict(), "a run's weights", name_of(network), network.config)
        state, key = weights.load_checkpoint(checkpoint)
        return _Trained(state, key, *build_config(state, options))
    except (ValueError, TypeError, RuntimeError, OSError, KeyError) as error:
        raise UserError(f"{checkpoint}: no network of these options: {error}") from error


def _mean(files: list[Path], found: list[_Trained]) -> dict[str, Tensor]:
    """Each tensor's mean over the checkpoints, in float64; UserError when these are of different networks."""
    first = found[0]
    for file, other in zip(files, found, strict=True):
        if (other.arch, other.config) != (first.arch, first.config):
            raise UserError(f"no mean of two networks: {file}: {other.arch} {other.config}; {files[0]}: {first.config}")
    if len(found) == 1:
        return first.state
    return {
        name: torch.stack([one.state[name].double() for one in found]).mean(0).to(value.dtype)
        for name, value in first.state.items()
    }


def main(argv: list[str]) -> int:
    options = _parser().parse_args(argv)
    found = [_read(checkpoint, options.options) for checkpoint in options.checkpoint]
    state = _mean(options.checkpoint, found)
    first = found[0]
    metadata = {
        "arch": first.arch,
        "config": json.dumps(first.config),
        "task": options.task,
        "color": "color" if first.config["in_chans"] == 3 else "gray",
        "levels": options.levels,
        "license": LICENSES.get(options.license, options.license),
        "name": options.name,
        "data": options.data,
    }
    path = options.folder / f"{options.name}{weights.SUFFIX}"
    facts = {name: getattr(options, name) for name in ("data", "recipe", "command", "commit", "hardware", "time")}
    facts["commit"] = facts["commit"] or run_metadata([])["commit"] or "not known"
    prepare_folder(options.folder)
    # What is there stays until all is known to fit: a card must never stand beside other weights.
    with tempfile.TemporaryDirectory(prefix=TEMPORARY_PREFIX, dir=options.folder) as folder:
        made = Path(folder, path.name)
        try:
            weights.save(made, state, metadata)
        except ValueError as error:
            raise UserError(f"{options.checkpoint[0]}: {error}") from error
        weights.load(made)
        rows = read_results(options.evaluation, sha256(made), options.task)
        text = weights.card(options.name, made, metadata, facts, rows)
        os.replace(made, path)
    with atomic_open(path.with_suffix(".md")) as file:
        file.write(text.encode())
    source = first.key if len(found) == 1 else f"the mean of {len(found)} checkpoints"
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB from {source}, SHA-256 {sha256(path)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
