"""`vheatir test`: scores of a trained network on the test sets of a YAML file in BasicSR's layout."""

import argparse
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from vheatir import weights
from vheatir.errors import UserError
from vheatir.train.build import build_datasets, build_model, complete_options, try_validation
from vheatir.train.options import read_options
from vheatir.train.registry import load_plugins, register_all
from vheatir.utils.recipes import find_options
from vheatir.utils.run_metadata import prepare_output, run_metadata, write_json


def _row(name: str, scores: dict[str, float]) -> str:
    return f"  {name:<10}" + "".join(f"{metric} {value:8.4f}  " for metric, value in scores.items())


def _left_by(path: Path) -> str:
    """How to name the weights beside the options file of a run; empty for other files."""
    found = [file for name in ("best", "latest") for file in sorted(path.parent.glob(f"models/{name}.*"))]
    return f"; for those of this run add --set path.pretrain_network_g={found[0]}" if found else ""


def evaluate_options(path: Path, options: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """Scores of every test set of checked options; images go below `folder` where `val.save_img` is set.

    Args:
        path: the options file, for messages.
        options: checked, with `datasets`.
        folder: for the images.
    """
    options = {**options, "datasets": {k: v for k, v in options["datasets"].items() if k != "train"}}
    if not options["datasets"]:
        raise UserError(f"{path}: datasets has no test or val section to score")
    names = [table.get("name", phase) for phase, table in options["datasets"].items()]
    twice = sorted({str(name) for name in names if names.count(name) > 1})
    if twice and options["val"].get("save_img"):
        raise UserError(
            f"{path}: two data sets are called {twice[0]}, so the images of one would replace those of the other; give "
            "each its own name"
        )
    source = options["path"].get("pretrain_network_g")
    if source is None:
        raise UserError(
            f"{path}: path.pretrain_network_g is missing: the weights to test, a file or a shipped name{_left_by(path)}"
        )
    options["network_g"] = weights.configured(options["network_g"], source)
    datasets = build_datasets(path, options)
    model = build_model(path, options)
    try_validation(path, model, datasets)
    results = []
    for phase, dataset in datasets.items():
        table = options["datasets"][phase]
        name = table.get("name", phase)
        with tqdm(total=len(dataset), desc=name, unit="image", disable=None, file=sys.stderr) as bar:

            def advance(done: int, total: int, bar: tqdm = bar) -> None:
                bar.total = total
                bar.update()

            images = folder / name if options["val"].get("save_img") else None
            ending = f"_{suffix}" if (suffix := options["val"].get("suffix")) else ""
            scores = model.validate(dataset, images, advance, f"{{name}}{ending}.png")
        level = table.get("sigma", table.get("quality"))
        results.append({"data": name, "type": table["type"], "level": level, **scores})
    return results


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("vheatir test", description="Score a network on the test sets of a YAML file.")
    parser.add_argument("-opt", "--opt", required=True, metavar="FILE", help="options file, or name of a recipe")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=VALUE", help="change one option; repeatable")
    parser.add_argument("--plugin", action="append", default=[], metavar="FILE", help="Python file with own classes")
    parser.add_argument("-o", "--out", type=Path, default=Path("results"), help="results go to OUT/NAME (results)")
    return parser


def main(argv: list[str]) -> int:
    arguments = _parser().parse_args(argv)
    register_all()
    load_plugins(arguments.plugin)
    path = find_options(arguments.opt)
    options = complete_options(path, read_options(path, arguments.set), is_train=False)
    folder = arguments.out / options["name"]
    prepare_output(folder / "results.json")
    chosen = any(text.startswith("path.pretrain_network_g=") for text in arguments.set)
    results = evaluate_options(path, options, folder)
    source = options["path"]["pretrain_network_g"]
    if "train" in options["datasets"] and not chosen:
        sys.stderr.write(
            f"note: {path} is of a training, which begins from the weights {source}; for those that it left add --set "
            "path.pretrain_network_g=FILE, such as its run's models/best.safetensors\n"
        )
    sys.stdout.write(f"weights: {source}\n")
    for result in results:
        sys.stdout.write(f"{result['data']}: {result['images']} images\n")
        sys.stdout.write(f"{_row('input', result['input'])}\n{_row('restored', result['restored'])}\n")
    metadata = {**run_metadata(["vheatir", "test", *argv]), "weights": source}
    write_json(folder / "results.json", {"results": results, "metadata": metadata})
    sys.stdout.write(f"written: {folder / 'results.json'}\n")
    return 0
