"""Training samples per second from a folder, an LMDB and memory, without and with loader processes, side by side.

    python benchmarks/reading.py --data datasets/BSD432 --lmdb BSD432.lmdb --json OUT.json

The LMDB, of PNGs, is made where it does not exist yet. A sample is a crop with noise of sigma 25, read, cut,
flipped and collated in batches as training does it; nothing consumes the batches. All kinds take turns, in as many
rounds; the first batches of each turn, in which processes start and files are opened, are not timed. Processor time
counts all processes: on a busy machine it says what reading costs, where seconds would measure the others' work.
"""

import argparse
import multiprocessing
import os
import time
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader

from vheatir.cli import run
from vheatir.data.datasets import GaussianNoiseDataset
from vheatir.data.sampling import IterationSampler
from vheatir.prepare.patches import make_lmdb
from vheatir.utils.run_metadata import prepare_output, run_metadata, write_json

ENDLESS = 10**9  # iterations


def _processor_seconds() -> float:
    """Time on a processor so far, of this process and its loader processes (Linux)."""
    total = time.process_time()
    for child in multiprocessing.active_children():
        fields = Path(f"/proc/{child.pid}/stat").read_text().rsplit(")", 1)[1].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def rates(dataset: GaussianNoiseDataset, workers: int, batch: int, seconds: float, start: int) -> tuple[float, float]:
    """Samples per second, and per second of processor time of all processes, from iteration `start` on."""
    sampler = IterationSampler(batch, ENDLESS, start)
    batches = iter(DataLoader(dataset, batch_sampler=sampler, num_workers=workers))
    for _ in range(4 + 4 * workers):  # what the workers have made ahead is among them
        next(batches)
    begun, worked, count = time.perf_counter(), _processor_seconds(), 0
    while (elapsed := time.perf_counter() - begun) < seconds:
        count += len(next(batches)["gt"])
    return count / elapsed, count / (_processor_seconds() - worked)


def measure(sets: dict[str, GaussianNoiseDataset], arguments: argparse.Namespace) -> list[dict]:
    """Medians and quartiles' distances over the rounds for each kind of reading and number of workers."""
    found: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for turn in range(arguments.rounds):
        for name, dataset in sets.items():
            for workers in arguments.workers:
                pair = rates(dataset, workers, arguments.batch, arguments.seconds, turn * 10_000)
                found.setdefault((name, workers), []).append(pair)
    rows = []
    for (name, workers), pairs in found.items():
        row = {"reading": name, "workers": workers}
        for key, values in zip(("samples_per_s", "samples_per_processor_s"), zip(*pairs)):
            low, median, high = np.percentile(values, [25, 50, 75])
            row |= {f"median_{key}": median, f"iqr_{key}": high - low}
        rows.append(row)
        print("  ".join(f"{key} {value:.0f}" if isinstance(value, float) else f"{value}" for key, value in row.items()))
    return rows


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path, help="folder of images")
    parser.add_argument("--lmdb", required=True, type=Path, help="the same as an LMDB; made if missing")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result here")
    parser.add_argument("--crop", type=int, default=64, help="pixels (64)")
    parser.add_argument("--batch", type=int, default=8, help="samples (8)")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2], help="loader processes (0 2)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each kind (5)")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of a turn (2)")
    arguments = parser.parse_args(argv)
    if arguments.json:
        prepare_output(arguments.json)
    torch.set_num_threads(1)
    if not arguments.lmdb.exists():
        print(f"{make_lmdb(arguments.data, arguments.lmdb)} images packed")
    common = {"phase": "train", "sigma": 25, "gt_size": arguments.crop}
    sets = {
        "folder": GaussianNoiseDataset({**common, "dataroot_gt": str(arguments.data)}),
        "lmdb": GaussianNoiseDataset({**common, "dataroot_gt": str(arguments.lmdb), "io_backend": {"type": "lmdb"}}),
        "memory": GaussianNoiseDataset({**common, "dataroot_gt": str(arguments.data), "cache": "memory"}),
    }
    sets["memory"].check()  # fills the cache, which forked workers share
    before = os.getloadavg()[0]
    results = measure(sets, arguments)
    load = {"load_before": before, "load_after": os.getloadavg()[0]}
    if arguments.json:
        protocol = {"crop": arguments.crop, "batch": arguments.batch, "images": len(sets["folder"])}
        metadata = {**run_metadata(["python", "benchmarks/reading.py", *argv]), **protocol, **load}
        write_json(arguments.json, {"results": results, "metadata": metadata})
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
