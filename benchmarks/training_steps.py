"""Processor time of training steps of a recipe, in two versions of this project beside each other.

    python benchmarks/training_steps.py options/denoise_light.yml --other ../former --json results/training_steps.json

Each version runs in processes of its own, in turn, round after round: it draws the batch, feeds it and learns from it,
one thread, as `vheatir train` does. `ratio` is the median over the rounds of the other version's time divided by this
one's.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from vheatir.cli import run
from vheatir.utils.run_metadata import prepare_output, run_metadata, write_json

ROOT = Path(__file__).resolve().parent.parent
# Runs in both versions, so it uses only what both have.
STEPS = """
import json, sys, time
from pathlib import Path
import torch
try:
    from vheatir.utils.heap import keep_heap
except ImportError:
    pass
else:
    keep_heap()
from vheatir.train.build import build_datasets, build_model, complete_options
from vheatir.train.options import read_options
from vheatir.train.registry import register_all
from vheatir.train.task import RestorationTask
register_all()
path, count = Path(sys.argv[1]), int(sys.argv[2])
options = complete_options(path, read_options(path, sys.argv[3:]), is_train=True)
torch.set_num_threads(1)
torch.set_flush_denormal(True)
train_set = build_datasets(path, options)["train"]
for index in range(len(train_set)):  # an image is decoded once, and a run uses it many times
    train_set[index]
model = build_model(path, options)
model.net_g.train()
batches = iter(RestorationTask(model, train_set, {}, options, 1 << 40).batches(0))
times = []
for number in range(1, count + 6):
    begun = time.process_time()
    model.feed_data(next(batches))
    model.optimize_parameters(number)
    times.append(time.process_time() - begun)
print(json.dumps(sorted(times[5:])[count // 2]))
"""


def median_step(root: Path, recipe: Path, steps: int, overrides: list[str]) -> float:
    """Seconds of processor time; SystemExit where the version fails."""
    command = [sys.executable, "-c", STEPS, str(recipe), str(steps), *overrides]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{root}: the training steps failed\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main(argv: list[str]) -> None:
    """Entry."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--other", type=Path, required=True, metavar="FOLDER", help="checkout of the other version")
    parser.add_argument("--data", type=Path, default=ROOT / "datasets" / "BSD432", metavar="FOLDER")
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parser.add_argument("--steps", type=int, default=20, metavar="N", help="measured steps of each process")
    parser.add_argument("--json", type=Path, required=True, metavar="FILE")
    options = parser.parse_args(argv)
    prepare_output(options.json)
    overrides = [f"datasets.{phase}.dataroot_gt={options.data.resolve()}" for phase in ("train", "val")] + ["num_gpu=0"]
    versions = {"this": ROOT, "other": options.other.resolve()}
    times: dict[str, list[float]] = {name: [] for name in versions}
    load = os.getloadavg()
    for _ in range(options.rounds):
        for name, root in versions.items():
            recipe = root / options.recipe if not options.recipe.is_absolute() else options.recipe
            times[name].append(median_step(root, recipe, options.steps, overrides))
    ratios = [other / this for this, other in zip(times["this"], times["other"], strict=True)]
    results = {
        "recipe": str(options.recipe),
        "steps": options.steps,
        "seconds": {name: {"median": statistics.median(all_), "rounds": all_} for name, all_ in times.items()},
        "ratio": {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)},
    }
    metadata = run_metadata(["python", "benchmarks/training_steps.py", *argv])
    metadata |= {"load_before": load, "load_after": os.getloadavg()}
    write_json(options.json, {"metadata": metadata, "results": results})
    sys.stdout.write(json.dumps(results["seconds"] | {"ratio": results["ratio"]}, indent=2) + "\n")


if __name__ == "__main__":
    raise SystemExit(run(main))
