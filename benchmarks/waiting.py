"""How long training steps wait for their samples: drawing of a batch beside learning from it.

    python benchmarks/waiting.py options/photo_light.yml --set datasets.train.dataroot_gt=DIR --json OUT.json

For each crop size of a recipe (`progressive`) a batch is drawn and learned from in turn, on one thread. With 0 loader
processes, where each step waits for all of its drawing, processor time is counted, so that other work on the machine
does not matter; the share is what a run without loader processes loses. With loader processes the wait is what is left
of it by the clock, which other work does disturb; the load is in the file.
"""

import argparse
import os
from pathlib import Path
from typing import Any

import torch

from vheatir.cli import run
from vheatir.train.build import build_datasets, build_model, complete_options
from vheatir.train.options import read_options
from vheatir.train.registry import register_all
from vheatir.train.task import RestorationTask
from vheatir.utils.run_metadata import prepare_output, run_metadata, write_json
from vheatir.utils.timing import interleave


class Halves:
    """The two halves of a training step: a batch is drawn; the network learns from the batch drawn last."""

    def __init__(self, path: Path, overrides: list[str]):
        options = complete_options(path, read_options(path, overrides), is_train=True)
        torch.manual_seed(options["manual_seed"])
        self.train_set = build_datasets(path, options)["train"]
        self.model = build_model(path, options)
        self.model.net_g.train()
        self.task = RestorationTask(self.model, self.train_set, {}, options, 1 << 40)

    def begin(self, iteration: int) -> None:
        """Go to the crop size of an iteration."""
        self.task.resume_at(iteration, {"samples": None})
        self.batches = iter(self.task.batches(iteration))

    def draw(self) -> None:
        self.batch = next(self.batches)

    def learn(self) -> None:
        self.model.feed_data(self.batch)
        self.model.optimize_parameters(1)


def measure(halves: Halves, workers: int, rounds: int) -> list[dict[str, Any]]:
    """A row for each crop size: median seconds of both halves, and the share of the step that is waiting."""
    rows = []
    for stage in halves.train_set.stages:
        halves.begin(stage.start)
        torch.set_num_threads(1)
        both = {"draw": halves.draw, "learn": halves.learn}
        clock = "wall" if workers else "cpu"
        times = interleave(both, torch.device("cpu"), rounds=rounds, warmup=3, seconds=1e9, clock=clock)
        draw, learn = (times[name].median_us / 1e6 for name in both)
        rows.append({"crop": stage.gt_size, "batch": stage.batch, "workers": workers, "clock": clock})
        rows[-1] |= {"wait_s": draw, "learn_s": learn, "share": draw / (draw + learn)}
        print(
            "  ".join(
                f"{key} {value:.4f}" if isinstance(value, float) else f"{key} {value}"
                for key, value in rows[-1].items()
            )
        )
    return rows


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path, help="options file of a training")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="other values of its options")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1], help="loader processes (0 1)")
    parser.add_argument("--rounds", type=int, default=15, help="batches of each kind (15)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result here")
    arguments = parser.parse_args(argv)
    if arguments.json:
        prepare_output(arguments.json)
    register_all()
    before = os.getloadavg()[0]
    results = []
    for workers in arguments.workers:
        overrides = [*arguments.set, f"datasets.train.num_worker_per_gpu={workers}"]
        results += measure(Halves(arguments.recipe, overrides), workers, arguments.rounds)
    if arguments.json:
        load = {"load_before": before, "load_after": os.getloadavg()[0]}
        metadata = {**run_metadata(["python", "benchmarks/waiting.py", *argv]), "rounds": arguments.rounds, **load}
        write_json(arguments.json, {"results": results, "metadata": metadata})
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
