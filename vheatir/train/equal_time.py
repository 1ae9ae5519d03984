"""Several recipes trained on the same data, for the same time: `vheatir train --compare`.

Every recipe gets the same minutes of training on the same machine, sees the same samples in the same order, and is
validated on the same images at the same moments; validation is not counted. Each keeps its own network, optimizer,
learning rate and precision. A recipe's schedule over iterations would end too early or too late, since every network
makes another number of them, so the rate follows the used share of the budget instead.
"""

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vheatir.compat import require_matplotlib
from vheatir.errors import UserError
from vheatir.train.build import build_datasets, build_model, complete_options, completed, try_samples, try_validation
from vheatir.train.contestant import LAST_RATE, WARMUP, Entry, train_entry
from vheatir.train.equal_time_report import plot, table
from vheatir.train.options import read_options
from vheatir.train.registry import load_plugins, register_all
from vheatir.train.side_by_side import train_side_by_side
from vheatir.utils.files import writing
from vheatir.utils.lock import Lock
from vheatir.utils.recipes import find_options
from vheatir.utils.run_metadata import run_metadata, write_json

RESULT = "comparison.json"


def read_recipes(files: Sequence[str | Path], overrides: Sequence[str]) -> dict[Path, dict[str, Any]]:
    """Options of each recipe.

    Raises:
        UserError: fewer than two, one name twice, or recipes that differ in data, validation, seed or hardware.
    """
    paths = [find_options(file) for file in files]
    recipes = {path: complete_options(path, read_options(path, overrides), is_train=True) for path in paths}
    names = [options["name"] for options in recipes.values()]
    if len(files) < 2 or len(set(names)) < len(files):
        raise UserError(f"--compare: expected at least two recipes with different names, got {', '.join(names)}")
    (first, expected), *others = ((path, _common(path, options)) for path, options in recipes.items())
    differences = [
        f"{key}: {expected.get(key, 'missing')!r} in {first.name}, {got.get(key, 'missing')!r} in {path.name}"
        for path, got in others
        for key in sorted(expected.keys() | got.keys())
        if expected.get(key) != got.get(key)
    ]
    if differences:
        lines = "\n  ".join(differences)
        raise UserError(f"--compare: the recipes must agree in data, validation and hardware:\n  {lines}")
    return recipes


def _common(path: Path, options: dict[str, Any]) -> dict[str, Any]:
    """What must be equal in all recipes, by full key."""
    if not options["train"] or len(options["datasets"]) < 2:
        raise UserError(f"{path}: a comparison needs datasets.train, a validation set and a train section")
    if options["datasets"].get("train", {}).get("progressive"):
        raise UserError(
            f"{path}: datasets.train.progressive has stages by iteration, of which each network makes another "
            "number in the same time; leave it out of a comparison"
        )
    if "psnr" not in options["val"]["metrics"]:
        raise UserError(
            f"{path}: a comparison shows PSNR over time, but val.metrics has {', '.join(options['val']['metrics'])}; "
            "add psnr: {type: vheatir_psnr}"
        )
    table = {key: options.get(key) for key in ("manual_seed", "threads", "num_gpu")}
    for phase, dataset in options["datasets"].items():
        table |= {f"datasets.{phase}.{key}": value for key, value in dataset.items()}
        table[f"datasets.{phase}.in_chans"] = completed(dataset, options)["in_chans"]
    validation = ("metrics", "max_images", "tile", "self_ensemble", "best")
    return table | {f"val.{key}": options["val"].get(key) for key in validation}


def _start(
    recipes: dict[Path, dict[str, Any]], minutes: float, every: float, file: Path, resume: bool, argv: Sequence[str]
) -> dict[str, Any]:
    """The result to fill: a new one, or to resume the one in `file`, which must be of the same comparison."""
    gpu = next(iter(recipes.values()))["num_gpu"]
    settings = {
        "budget_minutes": minutes,
        "validate_every_minutes": min(every, minutes),
        "clock": "wall time on a GPU" if gpu else "processor time",
        "schedule": f"linear to {WARMUP:.0%} of the budget, then cosine to {LAST_RATE} of the recipe's rate",
    }
    runs = {
        options["name"]: {"file": path.name, "options": options, "points": [], "cost": None}
        for path, options in recipes.items()
    }
    if not resume:
        if file.exists():
            raise UserError(f"{file} exists; go on with --resume, or choose another --out")
        for name in runs:  # of a former comparison, whose result was removed: --resume would take them for this one's
            for checkpoint in (file.parent / name).glob("iter_*.pt"):
                checkpoint.unlink()
        return {"metadata": run_metadata(["vheatir", "train", *argv]), **settings, "recipes": runs}
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"--resume: {file} cannot be read ({error}); start without --resume") from error
    kept = {name: run.get("options") for name, run in result.get("recipes", {}).items()}
    wanted = json.loads(json.dumps({name: run["options"] for name, run in runs.items()}))
    changed = [key for key, value in settings.items() if result.get(key) != value]
    changed += [name for name in kept.keys() | wanted.keys() if kept.get(name) != wanted.get(name)]
    if changed:
        raise UserError(f"--resume: {file} was made with other settings ({', '.join(sorted(changed))}); repeat them")
    result.setdefault("resumed", []).append(run_metadata(["vheatir", "train", *argv]))
    return result


def compare(
    files: Sequence[str | Path],
    *,
    minutes: float = 20.0,
    validate_every: float | None = None,
    jobs: int = 1,
    out: str | Path = "experiments/comparison",
    overrides: Sequence[str] = (),
    plugins: Sequence[str | Path] = (),
    resume: bool = False,
    argv: Sequence[str] = (),
) -> bool:
    """Train several recipes for the same time and compare PSNR over time.

    Args:
        files: options files, or names of recipes; two or more with different names.
        minutes: training time of each recipe; processor time on a CPU.
        validate_every: minutes of training between validations; by default a tenth of `minutes`.
        jobs: recipes trained at the same time, each in a process of its own; on a GPU only 1.
        out: folder for the result, the figure and the weights.
        overrides: `a.b=value` each, in YAML, for all recipes.
        plugins: Python files with own networks, losses, datasets.
        resume: go on with the comparison in `out`.
        argv: what the command line said, for the record.

    Returns:
        Whether all recipes had their time; False where a signal stopped it, after a checkpoint.

    Raises:
        UserError: recipes that cannot be compared, a comparison that is there already, or a training that failed.
    """
    require_matplotlib()
    register_all()
    load_plugins(plugins)
    recipes, out = read_recipes(files, overrides), Path(out)
    for name, value in (("--minutes", minutes), ("--validate-every", validate_every)):
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"{name} must be a positive number, got {value}")
    if jobs < 1:
        raise UserError(f"--jobs must be at least 1, got {jobs}")
    if jobs > 1 and any(options["num_gpu"] for options in recipes.values()):
        raise UserError("--jobs: trainings beside each other would share the GPU; leave it out, or --set num_gpu=0")
    with writing(out, "choose another --out"):
        out.mkdir(parents=True, exist_ok=True)
    what = f"the comparison in {out}"
    advice = "wait for it, stop that process, or choose another --out"
    lock = Lock(out / ".comparison.lock", what, advice)
    try:
        result = _start(recipes, minutes, validate_every or minutes / 10, out / RESULT, resume, argv)
        return _train_all(result, recipes, out, resume, min(jobs, len(recipes)), plugins)
    finally:
        lock.release()


def _try_all(recipes: dict[Path, dict[str, Any]]) -> dict[str, Any]:
    """The data sets by phase, with which every network was tried: the last recipe's mistakes show before all training.

    A mended recipe is another one, so that the comparison could not be resumed with it.
    """
    datasets = build_datasets(*next(iter(recipes.items())))
    validation_sets = {phase: dataset for phase, dataset in datasets.items() if phase != "train"}
    for path, options in recipes.items():
        model = build_model(path, options)
        try_samples(path, model, datasets["train"])
        try_validation(path, model, validation_sets)
    return datasets


def _train_all(
    result: dict[str, Any],
    recipes: dict[Path, dict[str, Any]],
    out: Path,
    resume: bool,
    jobs: int,
    plugins: Sequence[str | Path],
) -> bool:
    seconds = result["budget_minutes"] * 60
    every = result["validate_every_minutes"] * 60
    waiting = {path: options for path, options in recipes.items() if result["recipes"][options["name"]]["cost"] is None}
    entries = [
        Entry(path, options, out / options["name"], seconds, every, resume, alone=jobs == 1)
        for path, options in waiting.items()
    ]
    datasets = _try_all(waiting) if waiting else {}

    def note(name: str, points: list[dict[str, Any]], cost: dict[str, Any] | None) -> None:
        result["recipes"][name] |= {"points": points, "cost": cost}
        write_json(out / RESULT, result)
        if cost:
            plot(result, out)

    result["jobs"] = jobs
    write_json(out / RESULT, result)
    if jobs > 1:
        finished = train_side_by_side(entries, jobs, plugins, note)
    else:
        finished = all(train_entry(entry, datasets, note) for entry in entries)
    if finished:
        sys.stdout.write(f"{table(result)}\nwritten: {out}\n")
    return finished
