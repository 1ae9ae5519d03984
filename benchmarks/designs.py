"""Designs of the light networks at equal processor time, one change to the same start each.

    python benchmarks/designs.py --minutes 8 --out results/designs
    python benchmarks/designs.py --minutes 8 --task jpeg --only heat grid_fine --out results/designs_jpeg
    python benchmarks/designs.py --minutes 30 --only heat no_attention --set manual_seed=1 --out results/designs_seed_1

The start is the light recipe with `COMMON`: heat attention at every stage, Charbonnier loss, crops of 64.

First the training steps of all designs are timed in one process, in turn, by processor time. Each design then trains
for budget / step iterations, with a cosine schedule of its own over them, on the same samples in the same order, and is
scored on the validation images at three strengths. `--resume` goes on where a stopped run stood; steps of designs that
`--only` adds are timed beside those of the table and brought to its speed. A trial of minutes ranks how fast designs
learn, not where they end.
"""

import argparse
import copy
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from vheatir import weights
from vheatir.backbone.layers.freezing import frozen
from vheatir.cli import run
from vheatir.errors import UserError
from vheatir.train.build import build_datasets, build_model, complete_options
from vheatir.train.options import read_options
from vheatir.train.registry import register_all
from vheatir.train.task import RestorationTask
from vheatir.train.trainer import train
from vheatir.train.validation import validate
from vheatir.utils.heap import keep_heap
from vheatir.utils.run_metadata import run_metadata, write_json
from vheatir.utils.timing import Timing, interleave

OPTIONS = Path(__file__).resolve().parent.parent / "options"
BASES = {"denoise": "denoise_light.yml", "jpeg": "jpeg_light.yml"}
STRENGTHS = {"denoise": ("sigma", (15, 25, 50)), "jpeg": ("quality", (10, 20, 40))}
_WARMUP = 100
_HEAT, _MEAN, _NONE = "heat", "mean", "none"
_FAST = {"type": "AdamW", "lr": 2.0e-3, "weight_decay": 1.0e-4, "betas": [0.9, 0.99]}
# What every design changes, written out so that tables stay comparable when the recipes move on.
COMMON: dict[str, dict[str, Any]] = {
    "network_g": {"encoder": [1, 1, 2], "middle": 2, "decoder": [1, 1, 1], "attention": [_HEAT] * 4},
    "train": {"pixel_opt": {"type": "CharbonnierLoss", "loss_weight": 1.0, "reduction": "mean", "eps": 1.0e-6}},
    "datasets": {"train": {"gt_size": 64, "batch_size_per_gpu": 8}},
}
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
    "quarter": {"network_g": {"attention": ["quarter"] * 4}},
    "pooled": {"network_g": {"attention": ["pooled"] * 4}},
    "pooled_fine": {"network_g": {"attention": ["pooled", "pooled", _HEAT, _HEAT]}},
    "frequency": {"network_g": {"attention": ["frequency"] * 4}},
    "adaptive": {"network_g": {"attention": ["adaptive"] * 4}},
    "gate": {"network_g": {"attention": ["gate"] * 4}},
    "grid_fine": {"network_g": {"attention": ["grid", _HEAT, _HEAT, _HEAT]}},
    "grid": {"network_g": {"attention": ["grid", "grid", "grid", _HEAT]}},
    "deep": {"network_g": {"attention": [_NONE, _NONE, _HEAT, _HEAT], "encoder": [1, 1, 3], "decoder": [1, 2, 2]}},
    "psnr_loss": {"train": {"pixel_opt": {"type": "PSNRLoss", "loss_weight": 0.01}}},
    "l1_loss": {"train": {"pixel_opt": {"type": "L1Loss", "loss_weight": 1.0, "reduction": "mean"}}},
    "fast": {"train": {"optim_g": _FAST}},
    "fast_none": {"network_g": {"attention": [_NONE] * 4}, "train": {"optim_g": _FAST}},
    "fast_coarse": {"network_g": {"attention": [_NONE, _NONE, _HEAT, _HEAT]}, "train": {"optim_g": _FAST}},
    "crop_96": {"datasets": {"train": {"gt_size": 96, "batch_size_per_gpu": 4}}},
}


def recipe(name: str, task: str) -> dict[str, Any]:
    """The light recipe of a task with one design's changes; a section that names a type replaces the old one."""
    options = copy.deepcopy(yaml.safe_load((OPTIONS / BASES[task]).read_text(encoding="utf-8")))
    options["datasets"]["train"].pop("progressive", None)  # stages count iterations, of which each design makes another
    options.pop("path", None)  # every design from scratch
    for section, changes in (*COMMON.items(), *DESIGNS[name].items()):
        if section == "datasets":
            changes = {phase: options[section][phase] | more for phase, more in changes.items()}
        options[section] = changes if "type" in changes else options[section] | changes
    key, strengths = STRENGTHS[task]
    (validation,) = (table for phase, table in options["datasets"].items() if phase.startswith("val"))
    options["datasets"] = {"train": options["datasets"]["train"]}
    options["datasets"] |= {f"val_{value}": validation | {key: value} for value in strengths}
    return options | {"name": name, "threads": 1}


def write_recipes(folder: Path, names: list[str], task: str) -> dict[str, Path]:
    """One options file for each design."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {name: folder / f"{name}.yml" for name in names}
    for name, file in files.items():
        file.write_text(yaml.safe_dump(recipe(name, task), sort_keys=False), encoding="utf-8")
    return files


class Steps:
    """Training steps of one design, to time: a batch is drawn, fed and learned from.

    Args:
        path: the design's recipe.
        overrides: options that are changed in all.
        train_sets: training sets by their options, which designs with the same data share.
    """

    def __init__(self, path: Path, overrides: list[str], train_sets: dict[str, Any]):
        options = complete_options(path, read_options(path, overrides), is_train=True)
        torch.manual_seed(options["manual_seed"])
        key = json.dumps(options["datasets"]["train"], sort_keys=True)
        if key not in train_sets:
            train_sets[key] = build_datasets(path, options)["train"]
            for index in range(len(train_sets[key])):  # an image is decoded once, and a run uses it many times
                train_sets[key][index]
        self.model = build_model(path, options)
        self.batches = iter(RestorationTask(self.model, train_sets[key], {}, options, 1 << 40).batches(0))

    def __call__(self) -> None:
        self.model.feed_data(next(self.batches))
        self.model.optimize_parameters(1)


def step_times(files: dict[str, Path], overrides: list[str], rounds: int) -> dict[str, Timing]:
    """Processor time of a training step of each design, in turn."""
    steps, train_sets = {}, {}
    for name, path in files.items():
        steps[name] = Steps(path, overrides, train_sets)
        torch.set_num_threads(1)
    for step in steps.values():
        step.model.net_g.train()
    return interleave(steps, torch.device("cpu"), rounds=rounds, warmup=2, seconds=1e9, clock="cpu")


def trained(path: Path, overrides: list[str], iterations: int, out: Path, resume: bool) -> tuple[bool, float]:
    """Train one design: whether to the end, which a signal may prevent, and the processor time of this part."""
    given = {
        "path.experiments_root": str(out / "runs"),
        "train.total_iter": iterations,
        "train.scheduler": {
            "type": "CosineAnnealingRestartLR",
            "periods": [iterations],
            "restart_weights": [1],
            "eta_min": 1e-6,
        },
        "train.warmup_iter": min(_WARMUP, iterations // 10) or -1,
        "val.val_freq": iterations,
        "val.max_images": 1,  # all images are scored afterwards
        "logger.save_checkpoint_freq": max(1, iterations // 8),
        "logger.print_freq": max(1, iterations // 20),
        "logger.use_tb_logger": False,
    }
    texts = [f"{key}={json.dumps(value)}" for key, value in given.items()]
    before = time.process_time()
    done = train(path, overrides=[*overrides, *texts], auto_resume=resume)
    return done, time.process_time() - before


def scores(path: Path, overrides: list[str], out: Path) -> dict[str, Any]:
    """PSNR of the trained network and its input at each strength, and the cost of the network."""
    options = complete_options(path, read_options(path, overrides), is_train=False)
    state, _ = weights.read(str(out / "runs" / options["name"] / "models" / "latest.safetensors"))
    from basicsr.archs import build_network

    network: nn.Module = build_network(options["network_g"])
    network.load_state_dict(state)
    datasets = build_datasets(path, options)
    metrics = {"psnr": build_model(path, options).metrics["psnr"]}
    result: dict[str, Any] = {"parameters": sum(parameter.numel() for parameter in network.parameters())}
    with frozen(network):
        for phase, dataset in datasets.items():
            if phase != "train":
                scored = validate(network, dataset, metrics, device=torch.device("cpu"))
                result[phase] = {"images": scored["images"], "psnr": scored["restored"]["psnr"]}
                result[phase]["input_psnr"] = scored["input"]["psnr"]
        image = torch.rand(1, options["network_g"].get("in_chans", 3), 320, 480)
        with torch.inference_mode():
            timing = interleave({"": lambda: network(image)}, torch.device("cpu"), rounds=5, warmup=1, clock="cpu")[""]
    return result | {"inference_s": timing.median_us / 1e6}


def table(result: dict[str, Any]) -> str:
    """The designs that are done, best first, in Markdown."""
    phases = [f"val_{value}" for value in STRENGTHS[result["task"]][1]]
    done = {name: one for name, one in result["designs"].items() if "scores" in one}
    middle = phases[len(phases) // 2]
    rows = sorted(done.items(), key=lambda item: -item[1]["scores"][middle]["psnr"])
    key = STRENGTHS[result["task"]][0]
    heads = " | ".join(f"{key} {phase[4:]}" for phase in phases)
    lines = [f"| design | parameters | s/step | iterations | {heads} | s/image |"]
    lines.append("|---" * (len(phases) + 5) + "|")
    for name, one in rows:
        psnr = " | ".join(f"{one['scores'][phase]['psnr']:.2f}" for phase in phases)
        start = f"| {name} | {one['scores']['parameters']:,} | {one['step_s']:.3f} | {one['iterations']}"
        lines.append(f"{start} | {psnr} | {one['scores']['inference_s']:.2f} |")
    return "\n".join(lines)


def _slowdown(known: dict[str, Any], found: dict[str, Timing]) -> float:
    """How much longer the steps of designs in the table take now than when it was begun; 1 where it is new.

    The steps of designs that are added are divided by it: the machine may be another or busier one, and their time
    would not be equal to that of the others.
    """
    ratios = [found[name].median_us / 1e6 / one["step_s"] for name, one in known.items() if name in found]
    return statistics.median(ratios) if ratios else 1.0


def started(arguments: argparse.Namespace, argv: list[str]) -> tuple[dict[str, Any], dict[str, Path]]:
    """The result to fill and the recipe of each of its designs; steps of designs that are new in it are timed."""
    file = arguments.out / "designs.json"
    settings = {"task": arguments.task, "budget_minutes": arguments.minutes, "overrides": arguments.set}
    result: dict[str, Any] = {"metadata": run_metadata(["python", "benchmarks/designs.py", *argv]), **settings}
    result["designs"] = {}
    if file.exists() and not arguments.resume:
        raise UserError(f"{file} exists; go on with --resume, or choose another --out")
    if arguments.resume and file.exists():
        result = json.loads(file.read_text(encoding="utf-8"))
        if changed := [key for key, value in settings.items() if result[key] != value]:
            raise UserError(f"--resume: {file} was made with other settings ({', '.join(changed)}); repeat them")
    names = [*dict.fromkeys([*result["designs"], *arguments.only])]
    files = write_recipes(arguments.out / "recipes", names, arguments.task)
    if any(name not in result["designs"] for name in files):
        # Beside each other, or a busy minute would decide; those that are done keep their iterations.
        found = step_times(files, arguments.set, arguments.rounds)
        slower = _slowdown(result["designs"], found)
        for name, timing in found.items():
            step = timing.median_us / 1e6 / slower
            spread = timing.iqr_us / 1e6 / slower
            sys.stderr.write(f"{name}: {step:.4f} s of processor time a step (quartiles {spread:.4f} apart)\n")
            if name not in result["designs"]:
                iterations = max(1, round(arguments.minutes * 60 / step))
                result["designs"][name] = {"step_s": step, "step_iqr_s": spread, "iterations": iterations}
                result["designs"][name]["changes"] = DESIGNS[name]
        write_json(file, result)
    return result, files


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=4.0, help="processor time of each design (default 4)")
    parser.add_argument("--out", type=Path, required=True, help="folder for recipes, runs and JSON")
    parser.add_argument("--task", choices=BASES, default="denoise", help="the recipe that is changed (default denoise)")
    parser.add_argument(
        "--only", nargs="+", choices=DESIGNS, default=list(DESIGNS), metavar="NAME", help="some of them"
    )
    parser.add_argument("--rounds", type=int, default=9, help="timed steps of each design (default 9)")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=VALUE", help="change an option in all")
    parser.add_argument("--resume", action="store_true", help="go on where a stopped run stood; --only may add designs")
    arguments = parser.parse_args(argv)
    keep_heap()  # as `vheatir train` does
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    register_all()
    result, files = started(arguments, argv)
    for name, path in files.items():
        one = result["designs"][name]
        if "scores" in one:
            continue
        done, used = trained(path, arguments.set, one["iterations"], arguments.out, arguments.resume)
        one["processor_s"] = one.get("processor_s", 0.0) + used
        if not done:
            write_json(arguments.out / "designs.json", result)
            return 1
        one["scores"] = scores(path, arguments.set, arguments.out)
        write_json(arguments.out / "designs.json", result)
        sys.stderr.write(f"{name}: {json.dumps(one['scores'])}\n")
    sys.stdout.write(f"{table(result)}\nwritten: {arguments.out}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
