"""`vheatir train --compare`: several recipes trained one after the other on the same data, for the same time.

Every recipe gets the same minutes of training on the same machine, sees the same samples in the same order, and is
validated on the same pictures at the same moments; validation is not counted. Each keeps its own network, optimiser,
learning rate and precision. A recipe's schedule over iterations would end too early or too late, since every network
makes another number of them, so the rate follows the used share of the budget instead.
"""

import argparse
import json
import math
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from vheatir.backbone.layers.freezing import frozen
from vheatir.backbone.training.signals import stop_on_signal
from vheatir.compat import require_matplotlib
from vheatir.data.sampling import IterationSampler
from vheatir.errors import UserError
from vheatir.runs.checkpoints import load_latest, save_checkpoint
from vheatir.train.build import build_datasets, build_model, complete_options, try_samples
from vheatir.train.equal_time_report import plot, table
from vheatir.train.options import find_options, read_options
from vheatir.train.registry import load_plugins, register_all
from vheatir.train.validation import DIVERGED
from vheatir.utils.files import atomic_open
from vheatir.utils.lock import Lock
from vheatir.utils.run_metadata import run_metadata, write_json
from vheatir.utils.timing import interleave, peak_mib

_WARMUP, _LAST_RATE = 0.03, 1e-3  # share of the budget; share of the recipe's learning rate
_PICTURE = (321, 481)  # height and width of the BSD pictures, at which inference is timed
_ENDLESS = 2**62
_RESULT = "comparison.json"


class TrainingClock:
    """Seconds spent in `with clock:` blocks.

    On a CPU `used` counts the processor time of this process, all its threads, so that a busy machine or a pause costs
    no network anything; on a GPU it is wall time with the device's queue drained. `wall` always counts wall time.
    """

    def __init__(self, device: torch.device, used: float = 0.0, wall: float = 0.0):
        self.used, self.wall, self._cuda = used, wall, device.type == "cuda"

    def _now(self) -> tuple[float, float]:
        if self._cuda:
            torch.cuda.synchronize()
        wall = time.perf_counter()
        return (wall if self._cuda else time.process_time()), wall

    def __enter__(self) -> "TrainingClock":
        self._started = self._now()
        return self

    def __exit__(self, *exception) -> None:
        used, wall = self._now()
        self.used += used - self._started[0]
        self.wall += wall - self._started[1]


def rate_at(share: float) -> float:
    """The learning rate, as a share of the recipe's, when `share` (0 to 1) of the budget is used.

    Linear from a tenth to one over the first 3 %, then a cosine down to a thousandth.
    """
    if share < _WARMUP:
        return 0.1 + 0.9 * share / _WARMUP
    progress = min(1.0, (share - _WARMUP) / (1 - _WARMUP))
    return _LAST_RATE + (1 - _LAST_RATE) * 0.5 * (1 + math.cos(math.pi * progress))


class Contestant:
    """One recipe under the budget; its checkpoints lie in `folder`, its results in `points`."""

    def __init__(self, path: Path, options: dict[str, Any], folder: Path, seconds: float, every: float):
        torch.manual_seed(options["manual_seed"])
        if options.get("threads"):
            torch.set_num_threads(options["threads"])
        self.options, self.folder, self.seconds, self.every = options, folder, seconds, every
        datasets = build_datasets(path, options)
        self.train_set = datasets.pop("train")
        self.validation_sets = datasets
        self.model = build_model(path, options)
        try_samples(path, self.model, self.train_set)
        self.clock = TrainingClock(self.model.device)
        self.iteration, self.points = 0, []

    def resume(self) -> None:
        """Go on from the newest whole checkpoint, where there is one."""
        state = load_latest(self.folder)
        if state is None:
            return
        self.model.load_state(state["model"])
        self.clock = TrainingClock(self.model.device, state["used_s"], state["wall_s"])
        self.iteration, self.points = state["iteration"], state["points"]

    def save(self) -> None:
        state = {"iteration": self.iteration, "used_s": self.clock.used, "wall_s": self.clock.wall}
        state |= {"points": self.points, "model": self.model.state()}
        save_checkpoint(self.folder, self.iteration, state, keep=2)

    def _loader(self) -> DataLoader:
        table = self.options["datasets"]["train"]
        return DataLoader(
            self.train_set,
            batch_sampler=IterationSampler(table.get("batch_size_per_gpu") or 8, _ENDLESS, self.iteration),
            num_workers=table.get("num_worker_per_gpu") or 0,
            pin_memory=self.model.device.type == "cuda",
        )

    def step(self, batch: dict[str, Any]) -> None:
        """One iteration of training at the rate that the clock gives."""
        self.iteration += 1
        rate = self.options["train"]["optim_g"]["lr"] * rate_at(self.clock.used / self.seconds)
        for optimizer in self.model.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        self.model.feed_data(batch)
        try:
            self.model.optimize_parameters(self.iteration)
        except FloatingPointError as error:
            raise UserError(f"{self.options['name']}: {error}; {DIVERGED}") from error

    def train(self, on_point) -> bool:
        """Train until the budget is used up; False when a signal stopped it. `on_point()` follows each validation."""
        batches = iter(self._loader())
        bar = tqdm(total=round(self.seconds), initial=round(self.clock.used), unit="s", disable=None, file=sys.stderr)
        with stop_on_signal() as stop, bar:
            while self.clock.used < self.seconds and not stop:
                with self.clock:
                    self.step(next(batches))
                bar.n = round(self.clock.used)
                bar.set_postfix_str(self.options["name"])
                # a last validation closer than half a step to the end would only repeat the end's
                due = min(self.seconds, self.every * (len(self.points) + 1))
                due = self.seconds if self.seconds - due < self.every / 2 else due
                if self.clock.used >= due:
                    self.validate()
                    self.save()
                    on_point()
            if stop:
                self.save()
        return self.clock.used >= self.seconds

    def validate(self) -> None:
        """Score every validation set and add the point to the curve."""
        point = {"minutes": self.clock.used / 60, "wall_minutes": self.clock.wall / 60, "iteration": self.iteration}
        for phase, dataset in self.validation_sets.items():
            result = self.model.validate(dataset)
            point[phase] = {"images": result["images"], **{side: result[side] for side in ("input", "restored")}}
        self.points.append(point)

    def cost(self) -> dict[str, Any]:
        """Parameters, pace, peak memory in MiB and seconds for a picture of 481x321, measured after the training."""
        batch = next(iter(self._loader()))
        network, device = self.model.network_for_test(), self.model.device
        picture = torch.rand(1, self.train_set.in_chans, *_PICTURE, device=device)
        inputs = (picture,) if "level" not in batch else (picture, torch.full((1,), 0.1, device=device))
        with frozen(network), torch.no_grad():
            clock = "wall" if device.type == "cuda" else "cpu"
            timing = interleave({"": lambda: network(*inputs)}, device, rounds=3, warmup=1, clock=clock)[""]
            inference_mib = peak_mib(lambda: network(*inputs), device)
        self.model.optimizer_g.zero_grad(set_to_none=True)  # or freeing the old gradients would hide the new ones
        return {
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
            "iterations_per_s": self.points[-1]["iteration"] / (60 * self.points[-1]["minutes"]),
            "training_peak_mib": peak_mib(lambda: self.step(batch), device),
            "inference_peak_mib": inference_mib,
            "inference_s": statistics.median(timing.microseconds) / 1e6,
        }

    def save_weights(self) -> None:
        """The trained network as BasicSR's .pth beside the checkpoints."""
        with atomic_open(self.folder / f"{self.options['name']}.pth") as file:
            torch.save({"params": self.model.network_for_test().state_dict()}, file)


def read_recipes(files: list[str], overrides: list[str]) -> dict[Path, dict[str, Any]]:
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
    return table | {f"val.{key}": options["val"].get(key) for key in ("metrics", "max_images", "tile", "best")}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "vheatir train --compare",
        description="Train several recipes one after the other for the same time and compare PSNR over time. Writes "
        f"{_RESULT}, psnr_over_time.png and .svg, and the weights. On a CPU the time is processor time.",
    )
    parser.add_argument("--compare", nargs="*", required=True, metavar="FILE", help="options files, or recipes' names")
    parser.add_argument("--minutes", type=float, default=20.0, help="training time of each recipe (default 20)")
    parser.add_argument("--validate-every", type=float, metavar="MINUTES", help="default: a tenth of --minutes")
    parser.add_argument("--out", type=Path, default=Path("experiments/comparison"), help="folder (default %(default)s)")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=VALUE", help="change an option in all files")
    parser.add_argument("--plugin", action="append", default=[], metavar="FILE", help="Python file with own classes")
    parser.add_argument("--resume", action="store_true", help="go on with the comparison in --out")
    return parser


def _start(arguments: argparse.Namespace, recipes: dict[Path, dict[str, Any]], argv: list[str]) -> dict[str, Any]:
    """The result to fill: a new one, or with --resume the one in --out, which must be of the same comparison."""
    file, every = arguments.out / _RESULT, arguments.validate_every or arguments.minutes / 10
    gpu = next(iter(recipes.values()))["num_gpu"]
    settings = {
        "budget_minutes": arguments.minutes,
        "validate_every_minutes": min(every, arguments.minutes),
        "clock": "wall time on a GPU" if gpu else "processor time",
        "schedule": f"linear to {_WARMUP:.0%} of the budget, then cosine to {_LAST_RATE} of the recipe's rate",
    }
    runs = {
        options["name"]: {"file": path.name, "options": options, "points": [], "cost": None}
        for path, options in recipes.items()
    }
    if not arguments.resume:
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


def main(argv: list[str]) -> int:
    arguments = _parser().parse_args(argv)
    require_matplotlib()
    register_all()
    load_plugins(arguments.plugin)
    recipes = read_recipes(arguments.compare, arguments.set)
    for name, value in (("--minutes", arguments.minutes), ("--validate-every", arguments.validate_every)):
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"{name} must be a positive number, got {value}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    what, advice = f"the comparison in {arguments.out}", "wait for it, stop that process, or choose another --out"
    lock = Lock(arguments.out / ".comparison.lock", what, advice)
    try:
        return _compare(arguments, recipes, argv)
    finally:
        lock.release()


def _compare(arguments: argparse.Namespace, recipes: dict[Path, dict[str, Any]], argv: list[str]) -> int:
    result = _start(arguments, recipes, argv)
    seconds, every = result["budget_minutes"] * 60, result["validate_every_minutes"] * 60
    for path, options in recipes.items():
        run = result["recipes"][options["name"]]
        if run["cost"] is not None:
            continue
        contestant = Contestant(path, options, arguments.out / options["name"], seconds, every)
        contestant.folder.mkdir(parents=True, exist_ok=True)

        def write(run=run, contestant=contestant):
            run["points"] = contestant.points
            write_json(arguments.out / _RESULT, result)

        if arguments.resume:
            contestant.resume()
        else:
            write_json(arguments.out / _RESULT, result)
        if not contestant.train(write):
            sys.stderr.write(f"stopped at iteration {contestant.iteration} of {options['name']}; --resume goes on\n")
            return 130
        contestant.save_weights()
        run["cost"] = contestant.cost()
        write()
        plot(result, arguments.out)
    sys.stdout.write(f"{table(result)}\nwritten: {arguments.out}\n")
    return 0
