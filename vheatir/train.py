"""`vheatir train`: training from a YAML file in BasicSR's layout.

BasicSR's registries, model and options are used; its loop is replaced, because on today's stack it repeats noise every
epoch, cannot resume on a CPU, and loses its place. Here each batch is a function of (seed, iteration), and one
checkpoint holds all that a resumed run needs, so that it goes on as if it had not stopped.
"""

import argparse
import json
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from vheatir import compare_training, weights
from vheatir.building import TASKS, build_datasets, build_model, complete_options
from vheatir.checkpoint import save_checkpoint
from vheatir.cli import run as run_command
from vheatir.data.sampler import IterationSampler
from vheatir.errors import UserError
from vheatir.files import atomic_open
from vheatir.options import find_options, read_options
from vheatir.registry import register_all
from vheatir.runs import Run, logger, stop_on_signal
from vheatir.validation import DIVERGED

_LICENSE = "depends on the training data; not stated"


class Trainer:
    """One run of the training loop."""

    def __init__(self, path: Path, options: dict[str, Any], run: Run):
        self.options, self.run = options, run
        torch.manual_seed(options["manual_seed"])
        if options.get("threads"):
            torch.set_num_threads(options["threads"])
        datasets = build_datasets(path, options)
        self.train_set = datasets.pop("train")
        self.validation_sets = datasets
        self.model = build_model(path, options)
        self.total = options["train"]["total_iter"]
        self.iteration, self.best = 0, None
        self._try_one_sample(path)
        if run.resumed is not None:
            self._restore(run.resumed)

    def _try_one_sample(self, path: Path) -> None:
        """A forward pass before anything is written: does the network take what the dataset gives?"""
        sample = self.train_set[0]
        network = self.model.get_bare_model(self.model.net_g)
        inputs = [sample[key][None].to(self.model.device) for key in ("lq", "level") if key in sample]
        try:
            with torch.no_grad():
                shape = network.eval()(*inputs).shape[1:]
            if shape != sample["gt"].shape:
                raise ValueError(f"it gives {tuple(shape)}")
        except (RuntimeError, ValueError, TypeError) as error:
            raise UserError(
                f"{path}: network_g does not fit datasets.train, whose samples are {tuple(sample['lq'].shape)}"
                f"{' with a level' if 'level' in sample else ''}: {error}; look at in_chans, gt_size and level_map"
            ) from error
        finally:
            network.train()

    def _restore(self, state: dict[str, Any]) -> None:
        try:
            self.model.load_state(state["model"])
        except (KeyError, RuntimeError, ValueError) as error:
            raise UserError(
                f"--resume: the checkpoint in {self.run.checkpoints} does not fit these options ({error}); resume with "
                "the options of the run, or start a new one from its weights with path.pretrain_network_g"
            ) from error
        self.iteration, self.best = state["iteration"], state["best"]
        torch.set_rng_state(state["random"]["torch"])
        if self.model.device.type == "cuda" and state["random"]["cuda"]:
            torch.cuda.set_rng_state_all(state["random"]["cuda"])

    def save(self) -> None:
        """Write the current weights and, after them, a checkpoint; neither when they are of no use."""
        for name, value in self.model.network_for_test().state_dict().items():
            if value.is_floating_point() and not torch.isfinite(value).all():
                raise UserError(f"iteration {self.iteration}: NaN or infinity in {name}, nothing written; {DIVERGED}")
        self.save_weights("latest")
        cuda = torch.cuda.get_rng_state_all() if self.model.device.type == "cuda" else []
        state = {
            "iteration": self.iteration,
            "best": self.best,
            "random": {"torch": torch.get_rng_state(), "cuda": cuda},
            "model": self.model.state(),
        }
        save_checkpoint(
            self.run.checkpoints, self.iteration, state, self.options["logger"].get("keep_checkpoints") or 2
        )

    def save_weights(self, name: str) -> None:
        """Write the validated network: safetensors for VHeatIR, BasicSR's .pth for other networks."""
        self.run.models.mkdir(exist_ok=True)
        network = self.model.network_for_test()
        if self.options["network_g"]["type"] != "VHeatIR":
            with atomic_open(self.run.models / f"{name}.pth") as file:
                torch.save({"params": network.state_dict()}, file)
            return
        table = self.options["datasets"]["train"]
        level = table.get("sigma", table.get("quality", "as in the pairs"))
        metadata = {
            "config": json.dumps(network.config),
            "task": TASKS.get(table["type"], "paired"),
            "color": "gray" if network.config["in_chans"] == 1 else "color",
            "levels": json.dumps(level),
            "license": _LICENSE,
            "iteration": str(self.iteration),
        }
        try:
            weights.save(self.run.models / f"{name}{weights.SUFFIX}", network.state_dict(), metadata)
        except ValueError as error:
            raise UserError(f"iteration {self.iteration}: {error}; {DIVERGED}") from error

    def validate(self) -> None:
        """Score all validation sets, log them, keep the weights of the best mean."""
        scores, key = {}, self.options["val"].get("best") or "psnr"
        for phase, dataset in self.validation_sets.items():
            folder = self.run.pictures / f"{self.iteration:08d}" / phase
            result = self.model.validate(dataset, folder if self.options["val"].get("save_img") else None)
            text = ", ".join(
                f"{name} {value:.4f} (input {result['input'].get(name, float('nan')):.4f})"
                for name, value in result["restored"].items()
            )
            logger.info("iteration %d, %s: %s", self.iteration, phase, text)
            scores |= {f"{phase}/{name}": value for name, value in result["restored"].items()}
            scores |= {f"{phase}/input_{name}": value for name, value in result["input"].items()}
        if not scores:
            return
        self.run.log_scalars(self.iteration, scores)
        chosen = [value for name, value in scores.items() if name.endswith(f"/{key}")]
        mean = sum(chosen) / len(chosen)
        self.last_score = mean
        if self.best is None or mean > self.best["value"]:
            self.best = {"metric": key, "value": mean, "iteration": self.iteration}
            self.save_weights("best")

    def loader(self) -> DataLoader:
        """Batches from the current iteration to the last; workers live as long as the run."""
        table = self.options["datasets"]["train"]
        batch = table.get("batch_size_per_gpu") or 8
        sampler = IterationSampler(batch, self.total, self.iteration)
        return DataLoader(
            self.train_set,
            batch_sampler=sampler,
            num_workers=table.get("num_worker_per_gpu") or 0,
            pin_memory=self.model.device.type == "cuda",
            generator=torch.Generator(),  # a loader draws when it starts; a resumed run starts one more of them
        )

    def train(self) -> bool:
        """Run to the last iteration; False when stopped by a signal (a checkpoint is written)."""
        options = self.options
        print_every = options["logger"].get("print_freq") or 100
        save_every = options["logger"].get("save_checkpoint_freq") or 5000
        validate_every = options["val"].get("val_freq") or 5000
        warmup = options["train"].get("warmup_iter") or -1
        self.last_score = self.best["value"] if self.best else None
        started, start_iteration = time.perf_counter(), self.iteration
        bar = tqdm(total=self.total, initial=self.iteration, unit="it", disable=None, file=sys.stderr, smoothing=0.05)
        with stop_on_signal() as stop, bar:
            for batch in self.loader():
                self.iteration += 1
                self.model.update_learning_rate(self.iteration, warmup_iter=warmup)
                self.model.feed_data(batch)
                self._step(batch)
                bar.update()
                if self.iteration % print_every == 0 or self.iteration == self.total:
                    self._log(bar, started, start_iteration)
                last = self.iteration == self.total
                if self.iteration % validate_every == 0 or last:
                    self.validate()
                if self.iteration % save_every == 0 or last or stop:
                    self.save()
                if stop and not last:
                    logger.info("stopped at iteration %d; go on with --resume", self.iteration)
                    return False
        return True

    def _step(self, batch: dict[str, Any]) -> None:
        before = torch.get_rng_state()
        try:
            self.model.optimize_parameters(self.iteration)
        except FloatingPointError as error:
            path = self.run.folder / f"nonfinite_{self.iteration:08d}.pt"
            with atomic_open(path) as file:
                torch.save({"batch": batch, "model": self.model.state(), "random": before}, file)
            images = ", ".join(batch["lq_path"])
            raise UserError(f"{error}, images {images}; batch and weights are in {path}; {DIVERGED}") from error

    def _log(self, bar: tqdm, started: float, start_iteration: int) -> None:
        scalars = {f"train/{name}": float(value) for name, value in self.model.get_current_log().items()}
        scalars |= {f"train/{name}": value for name, value in self.model.batch_scores().items()}
        scalars["train/lr"] = self.model.get_current_learning_rate()[0]
        self.run.log_scalars(self.iteration, scalars)
        seconds = (time.perf_counter() - started) / (self.iteration - start_iteration)
        remaining = timedelta(seconds=round(seconds * (self.total - self.iteration)))
        text = " ".join(f"{name.split('/')[1]} {value:.4g}" for name, value in scalars.items())
        score = "" if self.last_score is None else f" psnr {self.last_score:.2f}"
        bar.set_postfix_str(text + score)
        if bar.disable:
            logger.info("%d/%d %s%s %.2f s/it, %s left", self.iteration, self.total, text, score, seconds, remaining)


def _parser() -> argparse.ArgumentParser:
    about = "Train a restoration network from a YAML file. `--compare --help`: several of them at equal time."
    parser = argparse.ArgumentParser("vheatir train", description=about)
    parser.add_argument("-opt", "--opt", required=True, metavar="FILE", help="options file, or name of a recipe")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=VALUE", help="change one option; repeatable")
    parser.add_argument("--resume", action="store_true", help="go on from the run's newest whole checkpoint")
    return parser


def main(argv: list[str]) -> int:
    if "--compare" in argv:
        return compare_training.main(argv)
    arguments = _parser().parse_args(argv)
    register_all()
    path = find_options(arguments.opt)
    options = read_options(path, arguments.set)
    if not options["train"]:
        raise UserError(f"{path}: has no train section; `vheatir test` evaluates such a file")
    options = complete_options(path, options, is_train=True)
    root = Path(options["path"].get("experiments_root") or "experiments")
    run = Run(root, options["name"], arguments.resume)
    trainer = Trainer(path, options, run)  # all that can be wrong is found before a folder is made or moved
    run.open(path, options, argv)
    try:
        count = sum(parameter.numel() for parameter in trainer.model.net_g.parameters())
        logger.info("%s on %s, %s", f"{count:,} parameters", trainer.model.device, f"{len(trainer.train_set)} images")
        if run.resumed is not None:
            logger.info("resumed at iteration %d", trainer.iteration)
        finished = trainer.train()
        if finished and trainer.best:
            logger.info("best %(metric)s %(value).4f at iteration %(iteration)d", trainer.best)
            logger.info("weights: %s", run.models)
        return 0 if finished else 130
    except UserError as error:
        logger.error("%s", error)
        raise
    finally:
        run.close()


if __name__ == "__main__":
    raise SystemExit(run_command(main))
