#!/usr/bin/env python3
"""Six token mixers and a small vHeat on small images: accuracy, speed and memory at equal size and schedule.

    python benchmarks/cifar_mixers.py --root datasets/cifar10_subset --json benchmarks/results/cifar_mixers.json

Trains options/classification/cifar10_subset.yml once for each network, each in a process of its own, one after the
other, and writes the table after each: a run that is stopped goes on where it was when started again with the same
settings. Speed comes last, all networks in turn in one process, in processor time; `--skip-speed` leaves it for a later
call, when the machine is quiet. `--set` changes the recipe for all of them, e.g. `--set data.batch_size=32`. Take
OMP_NUM_THREADS=1.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

# 2.9 to 3.0 million parameters each, with equal widths, heads of 16 channels, and equal depths but for convnext, whose
# block is smaller and which therefore, as in its published sizes, has more of them. Maps have sides of 8, 4, 2 and 1:
# halo's blocks are no larger than these, as swin's windows are by themselves, or padding would double its work.
_HEADS = "num_heads: [2, 4, 8, 16]"
_UNIFIED = ["model.dims=32", "model.depths=[2, 2, 4, 2]", "model.layer_scale=0.1"]
NETWORKS = {
    "vheat": [],
    "heat": ["model.name=unified_heat_micro", *_UNIFIED, "model.mixer_args={reach: [0.5, 4.0]}"],
    "halo": [
        "model.name=unified_halo_micro",
        *_UNIFIED,
        f"model.mixer_args={{{_HEADS}, block_size: [4, 4, 2, 1], halo_size: 1, pos_embed_type: query_related}}",
    ],
    "pvt": [
        "model.name=unified_pvt_micro",
        *_UNIFIED,
        f"model.mixer_args={{{_HEADS}, sr_ratio: [2, 2, 1, 1], mlp_ratio: [4, 4, 4, 4]}}",
    ],
    "swin": ["model.name=unified_swin_micro", *_UNIFIED, f"model.mixer_args={{{_HEADS}, window_size: 4}}"],
    "convnext": ["model.name=unified_convnext_micro", *_UNIFIED, "model.depths=[2, 2, 6, 2]"],
    "dcn_v3": ["model.name=unified_dcn_v3_micro", *_UNIFIED, f"model.mixer_args={{{_HEADS}}}"],
}


def changes(network: str, args: argparse.Namespace) -> list[str]:
    """What `--set` gets for a network."""
    own = [f"name={network}", f"data.root={args.root}", f"path.experiments_root={args.runs}"]
    return [*NETWORKS[network], *own, f"train.epochs={args.epochs}", *args.set]


def recipe_for(network: str, args: argparse.Namespace) -> Path:
    """The recipe with a network's model, as a file of its own."""
    import yaml

    from vheatir.utils.recipes import find_options, load_table

    table = load_table(find_options("classification/cifar10_subset"))
    if network != "vheat":
        table["model"].pop("reach")  # an argument of vHeat alone
    args.runs.mkdir(parents=True, exist_ok=True)
    path = args.runs / f"{network}.yml"
    path.write_text(yaml.safe_dump(table, sort_keys=False), encoding="utf-8")
    return path


def call(*arguments) -> dict:
    """Run `vheatir pretrain`; returns the processor time that it took and the MiB that it held at most."""
    from vheatir.utils.run_metadata import resident_mib

    process = subprocess.Popen([sys.executable, "-m", "vheatir", "pretrain", *map(str, arguments)], cwd=ROOT)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"vheatir pretrain ended with {process.returncode}; its message is above")
    return {"training_cpu_s": used.ru_utime + used.ru_stime, "training_peak_rss_mib": resident_mib(used)}


def trained(network: str, args: argparse.Namespace) -> dict:
    """Train, then evaluate a network; accuracies are those of the last epoch, not of the best."""
    recipe = recipe_for(network, args)
    common = ["-opt", recipe, *(part for change in changes(network, args) for part in ("--set", change))]
    run = args.runs / network
    had = any((run / "checkpoints").glob("iter_*.pt"))
    used = call(*common, *(["--resume"] if had else []))
    row = {"network": network, **used}
    if had:
        row["training_cpu_s"] = None  # that of a part only
    for kind, name in (("raw", "latest"), ("ema", "latest_ema")):
        out = args.runs / f"{network}_{kind}.json"
        call(*common, "--eval", "--weights", run / "models" / f"{name}.safetensors", "--json", out)
        found = json.loads(out.read_text(encoding="utf-8"))
        row |= {f"{kind}_{key}": found["scores"][key] for key in ("top1", "top5", "loss")}
    row["parameters"] = {form: cost["parameters"]["total"] for form, cost in found["cost"].items()}
    row["macs"] = {form: cost["macs"]["total"] for form, cost in found["cost"].items()}
    return row


def speeds(networks: list[str], args: argparse.Namespace, rounds: int = 15, batch: int = 64) -> dict[str, dict]:
    """Of a training step and of a pass of the folded form: images per second of processor time, and peak memory."""
    import torch
    import torch.nn.functional as F

    from vheatir.backbone.classification.cost import folded_copy
    from vheatir.backbone.classification.recipe import read_recipe
    from vheatir.backbone.classification.task import build_classifier
    from vheatir.backbone.layers.freezing import freeze
    from vheatir.pretrain import SECTIONS
    from vheatir.utils.recipes import load_table
    from vheatir.utils.timing import interleave, peak_mib

    device = torch.device("cpu")
    images, labels = torch.randn(batch, 3, 32, 32), torch.randint(0, 10, (batch,))
    acts, found = {}, {}
    for network in networks:
        torch.manual_seed(0)
        recipe = read_recipe(load_table(recipe_for(network, args), changes(network, args), SECTIONS))
        model = build_classifier(recipe).train()
        folded = freeze(folded_copy(model) or build_classifier(recipe))

        def step(model=model):
            model.zero_grad(set_to_none=True)
            F.cross_entropy(model(images), labels).backward()

        def forward(model=folded):
            with torch.no_grad():
                model(images)

        acts |= {(network, "training"): step, (network, "inference"): forward}
        found[network] = {
            f"{kind}_peak_mib": peak_mib(acts[network, kind], device) for kind in ("training", "inference")
        }
    for (network, kind), timing in interleave(acts, device, rounds=rounds, warmup=1, clock="cpu").items():
        found[network][f"{kind}_images_per_cpu_s"] = batch / timing.median_us * 1e6
    return found


def settings(args: argparse.Namespace) -> dict:
    """What all rows of a table must have in common."""
    return {"epochs": args.epochs, "set": args.set}


def finished(args: argparse.Namespace) -> dict[str, dict]:
    """The rows of the table so far by network; SystemExit where they were trained with other settings."""
    if not args.json.is_file():
        return {}
    table = json.loads(args.json.read_text(encoding="utf-8"))
    before = {name: table["metadata"].get(name) for name in settings(args)}
    if before != settings(args):
        raise SystemExit(
            f"{args.json} was made with {before}, not with {settings(args)}; repeat those, or choose another --json "
            "and --runs"
        )
    return {row["network"]: row for row in table["results"]}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--root", type=lambda text: Path(text).resolve(), required=True, help="folder with train/, val/"
    )
    parser.add_argument("--json", type=lambda text: Path(text).resolve(), required=True, help="table to write")
    parser.add_argument("--runs", type=lambda text: Path(text).resolve(), default=Path("experiments/cifar_mixers"))
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--skip-speed", action="store_true", help="train and evaluate only")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=VALUE", help="change the recipe for all")
    return parser.parse_args()


def main() -> int:
    from vheatir.utils.run_metadata import run_metadata, write_json

    args = parse()
    args.runs = args.runs.resolve()
    done = finished(args)

    def write() -> None:
        metadata = {**run_metadata(["python", *sys.argv]), **settings(args)}
        write_json(args.json, {"metadata": metadata, "results": list(done.values())})

    for network in args.networks:
        if network not in done:
            done[network] = trained(network, args)
            write()
    if not args.skip_speed:
        for network, speed in speeds(list(done), args).items():
            done[network] |= speed
        write()
    for row in done.values():
        print("{network:10} top-1 {raw_top1:6.2f} (average of the weights {ema_top1:6.2f})".format(**row))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
