"""`vheatir train`: training from a YAML file in BasicSR's layout.

BasicSR's registries, model and options are used; its loop is replaced, because on today's stack it repeats noise every
epoch, cannot resume on a CPU, and loses its place. Here each batch is a function of (seed, iteration), and one
checkpoint holds all that a resumed run needs, so that it goes on as if it had not stopped. Several processes train
together under torchrun or SLURM; the first one writes.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from vheatir import weights
from vheatir.archs.networks import name_of
from vheatir.backbone.training.processes import LAUNCHERS, TIMEOUT, Processes, started
from vheatir.backbone.training.signals import ignore_signals, stop_on_signal
from vheatir.cli import run as run_command
from vheatir.data.progressive import DEFAULT_BATCH
from vheatir.data.sampling import IterationSampler
from vheatir.errors import UserError
from vheatir.runs.checkpoints import has_checkpoint, save_checkpoint
from vheatir.runs.folder import Run, logger
from vheatir.train import equal_time
from vheatir.train.build import TASKS, build_datasets, build_model, complete_options, try_samples
from vheatir.train.options import find_options, read_options
from vheatir.train.registry import load_plugins, register_all
from vheatir.train.validation import DIVERGED, score_table
from vheatir.utils.files import atomic_open

_LICENSE = "depends on the training data; not stated"


class Trainer:
    """One run of the training loop."""

    def __init__(
        self,
        path: Path,
        options: dict[str, Any],
        run: Run | None,
        processes: Processes | None = None,
        resumed: dict[str, Any] | None = None,
    ):
        """Build everything from the options of the file `path`.

        `run` is None in processes that do not write; `resumed` is the checkpoint to go on from.
        """
        self.options, self.run, self.processes = options, run, processes or Processes()
        torch.manual_seed(options["manual_seed"])
        if options.get("threads"):
            torch.set_num_threads(options["threads"])
        datasets = build_datasets(path, options)
        self.train_set = datasets.pop("train")
        self.validation_sets = datasets
        self.model = build_model(path, options)
        self.total = options["train"]["total_iter"]
        self.iteration, self.best = 0, None
        try_samples(path, self.model, self.train_set)
        if resumed is not None:
            self._restore(resumed)
        world, batch = self.processes.world, options["datasets"]["train"].get("batch_size_per_gpu") or DEFAULT_BATCH
        self.sampler = IterationSampler(
            batch * world,
            self.total,
            self.iteration,
            self.processes.rank,
            world,
            stages=self.train_set.stages,
            first_sample=None if resumed is None else resumed.get("samples"),
        )

    def _restore(self, state: dict[str, Any]) -> None:
        seed = self.options["manual_seed"]
        try:
            if state["random"].get("seed", seed) != seed:
                raise ValueError(f"manual_seed was {state['random']['seed']}, is now {seed}")
            self.model.load_state(state["model"])
        except (KeyError, RuntimeError, ValueError) as error:
            raise UserError(
                f"--resume: the checkpoint does not fit these options ({error}); resume with the options of the run, "
                "or start a new one from its weights with path.pretrain_network_g"
            ) from error
        self.iteration, self.best = state["iteration"], state["best"]

    def save(self) -> None:
        """Write the current weights and, after them, a checkpoint; neither when they are of no use."""
        for name, value in self.model.network_for_test().state_dict().items():
            if value.is_floating_point() and not torch.isfinite(value).all():
                raise UserError(f"iteration {self.iteration}: NaN or infinity in {name}, nothing written; {DIVERGED}")
        if self.run is None:
            return
        self.save_weights("latest")
        state = {
            "iteration": self.iteration,
            "samples": self.sampler.position(self.iteration),
            "best": self.best,
            "random": {"seed": self.options["manual_seed"]},  # with iteration and samples: see _seed, and the datasets
            "model": self.model.state(),
        }
        keep = self.options["logger"].get("keep_checkpoints") or 2
        best = self.best["iteration"] if self.best else None
        save_checkpoint(self.run.checkpoints, self.iteration, state, keep, best)

    def save_weights(self, name: str) -> None:
        """Write the validated network: safetensors for networks of ours, BasicSR's .pth for others."""
        self.run.models.mkdir(exist_ok=True)
        network = self.model.network_for_test()
        if (arch := name_of(network)) is None:
            with atomic_open(self.run.models / f"{name}.pth") as file:
                torch.save({"params": network.state_dict()}, file)
            return
        table = self.options["datasets"]["train"]
        task = TASKS.get(table["type"], "paired")
        level = table.get("sigma", table.get("quality", "as in the pairs")) if task != "photo" else "as cameras have it"
        metadata = {
            "arch": arch,
            "config": json.dumps(network.config),
            "task": task,
            "color": "gray" if network.config["in_chans"] == 1 else "color",
            "levels": json.dumps(level),
            "license": _LICENSE,
            "iteration": str(self.iteration),
        }
        try:
            weights.save(self.run.models / f"{name}{weights.SUFFIX}", network.state_dict(), metadata)
        except ValueError as error:
            raise UserError(f"iteration {self.iteration}: {error}; {DIVERGED}") from error

    def validate(self) -> bool:
        """Score all validation sets, log them, keep the weights of the best mean; whether this is the best."""
        scores, results, key = {}, {}, self.options["val"].get("best") or "psnr"
        for phase, dataset in self.validation_sets.items():
            folder = self.run.pictures / f"{self.iteration:08d}" / phase if self.run else Path()
            results[phase] = self.model.validate(dataset, folder if self.options["val"].get("save_img") else None)
            scores |= {f"{phase}/{name}": value for name, value in results[phase]["restored"].items()}
            scores |= {f"{phase}/input_{name}": value for name, value in results[phase]["input"].items()}
        if not scores:
            return False
        logger.info("iteration %d, restored (input):\n%s", self.iteration, score_table(results))
        chosen = [value for name, value in scores.items() if name.endswith(f"/{key}")]
        mean = sum(chosen) / len(chosen)
        self.last_score = mean
        is_best = self.best is None or mean > self.best["value"]
        if is_best:
            self.best = {"metric": key, "value": mean, "iteration": self.iteration}
        if self.run is not None:
            self.run.log_scalars(self.iteration, scores)
            if is_best:
                self.save_weights("best")
        return is_best

    def loader(self) -> DataLoader:
        """This process's batches from the current iteration to the last; workers live as long as the run."""
        return DataLoader(
            self.train_set,
            batch_sampler=self.sampler,
            num_workers=self.options["datasets"]["train"].get("num_worker_per_gpu") or 0,
            pin_memory=self.model.device.type == "cuda",
            generator=torch.Generator(),  # a loader would draw its seed from the generator of the network
            worker_init_fn=ignore_signals,
        )

    def train(self) -> bool:
        """Run to the last iteration; False when stopped by a signal (a checkpoint is written)."""
        options = self.options
        print_every = options["logger"].get("print_freq") or 100
        save_every = options["logger"].get("save_checkpoint_freq") or 5000
        validate_every = options["val"].get("val_freq") or 5000
        warmup = options["train"].get("warmup_iter") or -1
        self.model.distribute(self.processes)
        self.last_score = self.best["value"] if self.best else None
        started, start_iteration = time.perf_counter(), self.iteration
        silent = None if self.processes.writes else True  # None: where stderr is no terminal
        bar = tqdm(total=self.total, initial=self.iteration, unit="it", disable=silent, file=sys.stderr, smoothing=0.05)
        self.processes.ignore_sigterm()  # again when the loop, which heeds it, is left
        with stop_on_signal() as stop, bar:
            batches = iter(self.loader())
            while self.iteration < self.total:
                if self.processes.any(bool(stop)):
                    self.save()
                    logger.info("stopped at iteration %d; go on with --resume", self.iteration)
                    return False
                batch = self.processes.agree(partial(_fetched, batches))
                self.iteration += 1
                self.model.update_learning_rate(self.iteration, warmup_iter=warmup)
                self._seed()
                self.model.feed_data(batch)
                self._step(batch)
                bar.update()
                last = self.iteration == self.total
                if self.iteration % print_every == 0 or last:
                    self._log(bar, started, start_iteration)
                is_best = (self.iteration % validate_every == 0 or last) and self.validate()
                if self.iteration % save_every == 0 or last or is_best:
                    self.save()
        return True

    def _seed(self) -> None:
        """What the network itself draws (stochastic depth) is a function of seed, iteration and process."""
        entropy = [self.options["manual_seed"], self.iteration, self.processes.rank]
        torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]))

    def _step(self, batch: dict[str, Any]) -> None:
        try:
            self.model.optimize_parameters(self.iteration)
        except FloatingPointError as error:  # alike in all processes
            parts = self.processes.gather(batch)
            images = ", ".join(path for part in parts for path in part["lq_path"])
            name = f"nonfinite_{self.iteration:08d}.pt"
            if self.run is not None:
                state = {"iteration": self.iteration, "batches": parts, "model": self.model.state()}
                with atomic_open(self.run.folder / name) as file:
                    torch.save(state, file)
            raise UserError(
                f"{error}, images {images}; batch and weights are in {name} of the run; {DIVERGED}"
            ) from error

    def _log(self, bar: tqdm, started: float, start_iteration: int) -> None:
        scalars = {f"train/{name}": float(value) for name, value in self.model.get_current_log().items()}
        parts = self.processes.gather(self.model.batch_scores())
        scalars |= {f"train/{name}": sum(part[name] for part in parts) / len(parts) for name in parts[0]}
        scalars["train/lr"] = self.model.get_current_learning_rate()[0]
        if self.run is None:
            return
        self.run.log_scalars(self.iteration, scalars)
        seconds = (time.perf_counter() - started) / (self.iteration - start_iteration)
        remaining = timedelta(seconds=round(seconds * (self.total - self.iteration)))
        text = " ".join(f"{name.split('/')[1]} {value:.4g}" for name, value in scalars.items())
        score = "" if self.last_score is None else f" psnr {self.last_score:.2f}"
        bar.set_postfix_str(text + score)
        if bar.disable:
            logger.info("%d/%d %s%s %.2f s/it, %s left", self.iteration, self.total, text, score, seconds, remaining)


def _fetched(batches: Iterator[dict[str, Any]]) -> dict[str, Any]:
    """The next batch; what a worker says of a picture without the worker's traceback around it."""
    try:
        return next(batches)
    except UserError as error:
        raise UserError(str(error).rpartition(f"{UserError.__name__}: ")[2].strip()) from error


def _parser() -> argparse.ArgumentParser:
    about = (
        "Train a restoration network from a YAML file. `--compare FILE FILE ...` compares several: --compare --help."
    )
    parser = argparse.ArgumentParser("vheatir train", description=about)
    parser.add_argument("-opt", "--opt", required=True, metavar="FILE", help="options file, or name of a recipe")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=VALUE", help="change one option; repeatable")
    parser.add_argument("--plugin", action="append", default=[], metavar="FILE", help="Python file with own classes")
    parser.add_argument("--resume", action="store_true", help="go on from the run's newest whole checkpoint")
    parser.add_argument(
        "--auto-resume", "--auto_resume", action="store_true", help="go on where there is a checkpoint, else start"
    )
    parser.add_argument(
        "--launcher", choices=LAUNCHERS, help="what started the processes; by default pytorch under torchrun, else none"
    )
    parser.add_argument(
        "--timeout", type=float, default=TIMEOUT, metavar="SECONDS", help="how long processes wait for each other"
    )
    # torch.distributed.launch adds it; the environment says the same
    parser.add_argument("--local-rank", "--local_rank", type=int, help=argparse.SUPPRESS)
    return parser


def _options(arguments: argparse.Namespace, processes: Processes) -> tuple[Path, dict[str, Any]]:
    register_all()
    load_plugins(arguments.plugin)
    path = find_options(arguments.opt)
    options = read_options(path, arguments.set)
    if not options["train"]:
        raise UserError(f"{path}: has no train section; `vheatir test` evaluates such a file")
    return path, complete_options(path, options, is_train=True, processes=processes)


def _find_run(arguments: argparse.Namespace, options: dict[str, Any]) -> Run:
    root = Path(options["path"].get("experiments_root") or "experiments")
    again = arguments.auto_resume or os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    resume = arguments.resume or (again and has_checkpoint(root / options["name"] / "checkpoints"))
    return Run(root, options["name"], resume)


def _train(arguments: argparse.Namespace, argv: list[str], processes: Processes) -> int:
    path, options = processes.agree(lambda: _options(arguments, processes))
    run = processes.agree(lambda: _find_run(arguments, options) if processes.writes else None)
    resumed = processes.from_first(lambda: run.resumed)
    # All that can be wrong is found before a folder is made or moved.
    trainer = processes.agree(lambda: Trainer(path, options, run, processes, resumed))
    processes.agree(lambda: run and run.open(path, options, argv))
    try:
        count = sum(parameter.numel() for parameter in trainer.model.net_g.parameters())
        together = f"{processes.world} processes, " if processes.world > 1 else ""
        images = f"{together}{len(trainer.train_set)} images"
        narrow = trainer.model.amp_dtype
        device = f"{trainer.model.device}" + (f" in {narrow}".replace("torch.", "") if narrow else "")
        logger.info("%s on %s, %s", f"{count:,} parameters", device, images)
        if resumed is not None:
            logger.info("resumed at iteration %d", trainer.iteration)
        with processes.watched():
            finished = trainer.train()
        if finished and trainer.best:
            logger.info("best %(metric)s %(value).4f at iteration %(iteration)d", trainer.best)
        if finished and run is not None:
            logger.info("weights: %s", run.models)
        return 0 if finished else 130
    except UserError as error:
        logger.error("%s", error)
        raise
    except OSError as error:
        raise UserError(f"{error}; what is written is whole, --resume goes on from the last checkpoint") from error
    finally:
        if run is not None:
            run.close()


def main(argv: list[str]) -> int:
    if "--compare" in argv:
        return equal_time.main(argv)
    arguments = _parser().parse_args(argv)
    with started(arguments.launcher, arguments.timeout) as processes:
        return _train(arguments, argv, processes)


if __name__ == "__main__":
    raise SystemExit(run_command(main))
