"""Several recipes trained one after the other on the same data, for the same time: `vheatir train --compare`.

Every recipe gets the same minutes of training on the same machine, sees the same samples in the same order, and is
validated on the same images at the same moments; validation is not counted. Each keeps its own network, optimizer,
learning rate and precision. A recipe's schedule over iterations would end too early or too late, since every network
makes another number of them, so the rate follows the used share of the budget instead.
"""

import json
import math
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vheatir.backbone.layers.freezing import frozen
from vheatir.backbone.training.loop import Loop, LoopSettings
from vheatir.backbone.training.until import Seconds, TrainingClock
from vheatir.compat import require_matplotlib
from vheatir.errors import UserError
from vheatir.runs.checkpoints import load_latest, save_checkpoint
from vheatir.train.build import build_datasets, build_model, complete_options, completed, try_samples, try_validation
from vheatir.train.equal_time_report import plot, table
from vheatir.train.options import read_options
from vheatir.train.registry import load_plugins, register_all
from vheatir.train.task import RestorationTask
from vheatir.utils.files import atomic_open
from vheatir.utils.lock import Lock
from vheatir.utils.recipes import find_options
from vheatir.utils.run_metadata import run_metadata, write_json
from vheatir.utils.timing import interleave, peak_mib

_WARMUP = 0.03
_LAST_RATE = 1e-3  # share of the budget; share of the recipe's learning rate
_IMAGE = (321, 481)  # height and width of the BSD images, at which inference is timed
_ENDLESS = 2**62
RESULT = "comparison.json"


def rate_at(share: float) -> float:
    """The learning rate, as a share of the recipe's, when `share` (0 to 1) of the budget is used.

    Linear from a tenth to one over the first 3 %, then a cosine down to a thousandth.
    """
    if share < _WARMUP:
        return 0.1 + 0.9 * share / _WARMUP
    progress = min(1.0, (share - _WARMUP) / (1 - _WARMUP))
    return _LAST_RATE + (1 - _LAST_RATE) * 0.5 * (1 + math.cos(math.pi * progress))


class TimedTask(RestorationTask):
    """Restoration against the clock: the rate follows the used share of the time, validation adds to `points`.

    Args:
        *arguments: those of `RestorationTask`.
        clock: of the training time.
        seconds: training time in all.
    """

    def __init__(self, *arguments: Any, clock: TrainingClock, seconds: float):
        super().__init__(*arguments)
        self.clock = clock
        self.seconds = seconds
        self.points: list[dict[str, Any]] = []

    def set_lr(self, step: int) -> None:
        self.iteration = step + 1
        rate = self.options["train"]["optim_g"]["lr"] * rate_at(self.clock.used / self.seconds)
        for optimizer in self.model.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate

    def evaluate(self, network: nn.Module) -> dict[str, float]:
        """Score every validation set and add the point to the curve; no weights are best, the last ones count."""
        minutes = {"minutes": self.clock.used / 60, "wall_minutes": self.clock.wall / 60}
        point: dict[str, Any] = {**minutes, "iteration": self.iteration}
        for phase, dataset in self.validation_sets.items():
            result = self.model.validate(dataset)
            point[phase] = {"images": result["images"], **{side: result[side] for side in ("input", "restored")}}
        self.points.append(point)
        return {}

    def state(self) -> dict[str, Any]:
        return {"points": self.points}

    def load_state(self, state: Any) -> None:
        self.points = state["points"]


class Contestant:
    """One recipe under the budget, and the loop's logger of it: checkpoints lie in `folder`.

    Args:
        path: the recipe's file.
        options: its options, checked and complete.
        datasets: by phase, the same for all recipes.
        folder: for checkpoints and weights.
        seconds: of training.
        every: seconds between validations.
        on_save: called with the points of the curve after each checkpoint.
    """

    def __init__(
        self,
        path: Path,
        options: dict[str, Any],
        datasets: dict[str, Any],
        folder: Path,
        seconds: float,
        every: float,
        on_save: Callable[[list[dict[str, Any]]], None],
    ):
        torch.manual_seed(options["manual_seed"])
        if options.get("threads"):
            torch.set_num_threads(options["threads"])
        self.options = options
        self.folder = folder
        self.on_save = on_save
        validation_sets = dict(datasets)
        self.train_set = validation_sets.pop("train")
        self.model = build_model(path, options)
        clock = TrainingClock(self.model.device)
        self.task = TimedTask(
            self.model, self.train_set, validation_sets, options, _ENDLESS, clock=clock, seconds=seconds
        )
        settings = LoopSettings(options["manual_seed"], None, "iteration", options["name"])
        self.loop = Loop(self.task, self.model.update, Seconds(seconds, every, clock), settings, self)

    def resume(self) -> None:
        """Go on from the newest whole checkpoint, where there is one."""
        state = load_latest(self.folder)
        if state is not None:
            self.loop.restore(state)

    def log_scalars(self, iteration: int, scalars: dict[str, float]) -> None:
        """Nothing: the curve is in the result."""

    def save(self, iteration: int, state: dict[str, Any], best: int | None) -> None:
        """Write a checkpoint.

        Args:
            iteration: of the state.
            state: what the run goes on from.
            best: iteration of the best weights; not kept here.
        """
        save_checkpoint(self.folder, iteration, state, keep=2)
        self.on_save(self.task.points)

    def save_weights(self, name: str, network: nn.Module, step: int) -> None:
        """Nothing: the checkpoint has them, and `finish` writes the last ones.

        Args:
            name: of the file.
            network: whose weights they are.
            step: of them.
        """

    def save_failure(self, name: str, state: dict[str, Any]) -> None:
        """Write what a step that failed was given."""
        with atomic_open(self.folder / name) as file:
            torch.save(state, file)

    def info(self, text: str) -> None:
        """A line on stderr."""
        sys.stderr.write(f"{self.options['name']}: {text}\n")

    def train(self) -> bool:
        """Train until the budget is used up; False when a signal stopped it.

        Raises:
            UserError: the training failed; names the recipe.
        """
        try:
            return self.loop.run()
        except UserError as error:
            raise UserError(f"{self.options['name']}: {error}") from error

    def cost(self) -> dict[str, Any]:
        """Parameters, pace, peak memory in MiB and seconds for an image of 481x321, measured after the training."""
        batch = next(iter(self.task.batches(self.loop.step)))
        network = self.model.network_for_test()
        device = self.model.device
        image = torch.rand(1, self.train_set.in_chans, *_IMAGE, device=device)
        inputs = (image,) if "level" not in batch else (image, torch.full((1,), 0.1, device=device))
        with frozen(network), torch.no_grad():
            clock = "wall" if device.type == "cuda" else "cpu"
            timing = interleave({"": lambda: network(*inputs)}, device, rounds=3, warmup=1, clock=clock)[""]
            inference_mib = peak_mib(lambda: network(*inputs), device)
        last = self.task.points[-1]
        return {
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
            "iterations_per_s": last["iteration"] / (60 * last["minutes"]),
            "training_peak_mib": peak_mib(lambda: self._step(batch), device),
            "inference_peak_mib": inference_mib,
            "inference_s": statistics.median(timing.microseconds) / 1e6,
        }

    def _step(self, batch: dict[str, Any]) -> None:
        self.model.feed_data(batch)
        self.model.optimize_parameters(self.loop.step + 1)

    def save_result(self) -> None:
        """The trained network as BasicSR's .pth beside the checkpoints."""
        with atomic_open(self.folder / f"{self.options['name']}.pth") as file:
            torch.save({"params": self.model.network_for_test().state_dict()}, file)


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
        "schedule": f"linear to {_WARMUP:.0%} of the budget, then cosine to {_LAST_RATE} of the recipe's rate",
    }
    runs = {
        options["name"]: {"file": path.name, "options": options, "points": [], "cost": None}
        for path, options in recipes.items()
    }
    if not resume:
        if file.exists():
            raise UserError(f"{file} exists; go on with --resume, or choose another --out")
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
    out: str | Path = "experiments/comparison",
    overrides: Sequence[str] = (),
    plugins: Sequence[str | Path] = (),
    resume: bool = False,
    argv: Sequence[str] = (),
) -> bool:
    """Train several recipes one after the other for the same time and compare PSNR over time.

    Args:
        files: options files, or names of recipes; two or more with different names.
        minutes: training time of each recipe; processor time on a CPU.
        validate_every: minutes of training between validations; by default a tenth of `minutes`.
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
    out.mkdir(parents=True, exist_ok=True)
    what = f"the comparison in {out}"
    advice = "wait for it, stop that process, or choose another --out"
    lock = Lock(out / ".comparison.lock", what, advice)
    try:
        result = _start(recipes, minutes, validate_every or minutes / 10, out / RESULT, resume, argv)
        return _train_each(result, recipes, out, resume)
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


def _train_each(result: dict[str, Any], recipes: dict[Path, dict[str, Any]], out: Path, resume: bool) -> bool:
    seconds = result["budget_minutes"] * 60
    every = result["validate_every_minutes"] * 60
    waiting = {path: options for path, options in recipes.items() if result["recipes"][options["name"]]["cost"] is None}
    datasets = _try_all(waiting) if waiting else {}
    for path, options in waiting.items():
        run = result["recipes"][options["name"]]

        def write(points: list[dict[str, Any]], run: dict[str, Any] = run) -> None:
            run["points"] = points
            write_json(out / RESULT, result)

        contestant = Contestant(path, options, datasets, out / options["name"], seconds, every, write)
        contestant.folder.mkdir(parents=True, exist_ok=True)
        if resume:
            contestant.resume()
        else:
            write_json(out / RESULT, result)
        if not contestant.train():
            return False
        contestant.save_result()
        run["cost"] = contestant.cost()
        write(contestant.task.points)
        plot(result, out)
    sys.stdout.write(f"{table(result)}\nwritten: {out}\n")
    return True
