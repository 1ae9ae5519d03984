"""What bfloat16 products change in the PSNR of the shipped weights, and how much faster they are here.

Each of the weights restores the sets of its task by the protocol of `vheatir evaluate`, once in float32 and once in
bf16; `change_db` is the largest difference of the mean PSNR over sets and levels. `speedup` is the median over the
rounds of the time in float32 divided by that in bf16, in turn in one process, by processor time of one thread. Weights
for clips restore the middle frame of clips of every motion of `video.py`, with noise of sigma 15, 25 and 50, made of
the first 8 of the images of `--video` that are held back.
Color weights leave out gray sets where the task has gray weights, which restore those by default.
With `--record`, whole sets go into vheatir/weights/bf16.json, by which `--precision auto` chooses.

    python benchmarks/precision.py --denoise datasets/test/CBSD68 datasets/test/Set12 --jpeg datasets/test/Classic5 \\
        --photo datasets/test/CC15 --video datasets/BSD432 --json results/precision.json --record
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from video import MOTIONS, noisy_frames

from vheatir import evaluate, weights
from vheatir.cli import run
from vheatir.data.moving_clips import MovingClipsDataset
from vheatir.image_io import read_image, to_uint8
from vheatir.metrics.fidelity import psnr
from vheatir.restore.precision import instructions, records
from vheatir.restore.restorer import Restorer
from vheatir.utils import timing
from vheatir.utils.files import sha256
from vheatir.utils.heap import keep_heap
from vheatir.utils.run_metadata import prepare_output, run_metadata, write_json

CPU = torch.device("cpu")
PRECISIONS = ("float32", "bf16")
SIGMAS = (15, 25, 50)  # of noise in clips
HELD_BACK = ["38*.jpg"]  # images of BSD432 that options/video_light.yml does not train on
CLIPS = 8  # of each motion


def own_sets(name: str, task: str, data: list[Path]) -> list[Path]:
    """The sets that these weights restore by default."""
    names = weights.DEFAULTS[task]
    if names["gray"] == names["color"] or name != names["color"]:
        return data
    return [folder for folder in data if read_image(min(folder.iterdir())).pixels.ndim == 3]


def psnr_of(name: str, task: str, gray: bool, data: list[Path], limit: int | None) -> list[dict[str, Any]]:
    """Mean PSNR of each set and level in both precisions."""
    found = {
        kind: evaluate(data, task, gray=gray, weights=name, device="cpu", precision=kind, limit=limit)
        for kind in PRECISIONS
    }
    rows = []
    for exact, near in zip(*found.values(), strict=True):
        before = exact["restored"]["psnr"]
        after = near["restored"]["psnr"]
        about = {name: exact[name] for name in ("data", "color", "level", "images")}
        rows.append({**about, "float32_db": round(before, 4), "bf16_db": round(after, 4), "change_db": after - before})
    return rows


def psnr_of_clips(name: str, task: str, data: list[Path], frames: int, limit: int | None) -> list[dict[str, Any]]:
    """Mean PSNR of the middle frames of moving images in both precisions, for each folder, motion and sigma."""
    restorers = {kind: Restorer(task, name, "cpu", precision=kind) for kind in PRECISIONS}
    rows = []
    for folder in data:
        for motion, options in MOTIONS.items():
            dataset = MovingClipsDataset(
                {"phase": "val", "dataroot_gt": str(folder), "include": HELD_BACK, "sigma": 0, **options}
            )
            clips = [dataset.clip(key, frames) for key in dataset.keys[: limit or CLIPS]]
            for sigma in SIGMAS:
                found: dict[str, list[float]] = {kind: [] for kind in PRECISIONS}
                for seed, clip in enumerate(clips):
                    noisy = noisy_frames(clip, sigma, seed)
                    for kind, restorer in restorers.items():
                        restored = to_uint8(restorer.restore_clip(noisy))
                        found[kind].append(psnr(restored, clip[frames // 2]))
                before, after = (float(np.mean(found[kind])) for kind in PRECISIONS)
                about = {"data": folder.name, "motion": motion, "level": sigma, "images": len(clips)}
                rows.append(
                    {**about, "float32_db": round(before, 4), "bf16_db": round(after, 4), "change_db": after - before}
                )
    return rows


def speed_of(name: str, task: str, planes: int, size: tuple[int, int], rounds: int) -> dict[str, Any]:
    """Milliseconds of the network on one image, or one window of a clip, in both precisions, and their ratio."""
    image = torch.rand(1, planes, *size)
    calls = {}
    for kind in PRECISIONS:
        restorer = Restorer(task, name, "cpu", precision=kind)
        calls[kind] = lambda restorer=restorer: restorer._forward(image, [None])
    found = timing.interleave(calls, CPU, rounds=rounds, clock="cpu")
    milliseconds = {f"{kind}_ms": round(one.median_us / 1e3, 1) for kind, one in found.items()}
    spread = {f"{kind}_iqr_ms": round(one.iqr_us / 1e3, 1) for kind, one in found.items()}
    return {
        **milliseconds,
        **spread,
        "rounds": rounds,
        "speedup": round(found["bf16"].speedup_over(found["float32"]), 3),
    }


def measured(name: str, sets: dict[str, list[Path]], options: argparse.Namespace) -> dict[str, Any]:
    """All of one file of weights."""
    path = weights.find(name)
    _, metadata = weights.read(name)
    task = metadata["task"]
    gray = metadata["color"] == "gray"
    frames = Restorer(task, name, "cpu").frames
    if frames > 1:
        rows = psnr_of_clips(name, task, sets["video"], frames, options.limit)
    else:
        data = own_sets(name, task, sets[task])
        rows = psnr_of(name, task, gray, data, options.limit) if data else []
    speed = speed_of(name, task, frames * (1 if gray else 3), (321, 481), options.rounds)
    change = max((abs(row["change_db"]) for row in rows), default=None)
    return {"name": name, "sha256": sha256(path), "change_db": change, "sets": rows, "size": "321x481", **speed}


def record(results: list[dict[str, Any]], able: str) -> None:
    """Keep what was found beside the weights; what is known of other shipped files and instructions stays."""
    known = records()
    shipped = {sha256(weights.find(name)) for name in weights.available()}
    kept = {digest: one for digest, one in known.items() if digest in shipped}
    for one in results:
        speedup = known.get(one["sha256"], {}).get("speedup", {}) | {able: one["speedup"]}
        kept[one["sha256"]] = {"name": one["name"], "change_db": round(one["change_db"], 5), "speedup": speedup}
    path = weights.FOLDER / "bf16.json"
    path.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")


def main(argv: list[str]) -> None:
    """Entry."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    for task in ("denoise", "jpeg", "photo"):
        parser.add_argument(f"--{task}", nargs="+", type=Path, default=[], metavar="DIR", help="sets of this task")
    parser.add_argument("--video", nargs="+", type=Path, default=[], metavar="DIR", help="images to make clips of")
    parser.add_argument(
        "--weights", nargs="+", default=weights.available(), metavar="NAME", help="default: all shipped"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N images of each set; never recorded")
    parser.add_argument("--rounds", type=int, default=11, metavar="N", help="of the timing (default: %(default)s)")
    parser.add_argument("--json", type=Path, required=True, metavar="FILE")
    parser.add_argument("--record", action="store_true", help="write vheatir/weights/bf16.json")
    options = parser.parse_args(argv)
    able = instructions(CPU)
    if able is None:
        parser.error("this processor has no instructions for bfloat16")
    if options.record and options.limit is not None:
        parser.error("--record needs whole sets; leave --limit out")
    prepare_output(options.json)
    keep_heap()
    torch.set_num_threads(1)
    load = os.getloadavg()
    sets = {task: getattr(options, task) for task in ("denoise", "jpeg", "photo", "video")}
    results = []
    for name in options.weights:
        results.append(one := measured(name, sets, options))
        sys.stdout.write(f"{name:<22} {one['change_db']} dB, {one['speedup']} times as fast\n")
        sys.stdout.flush()
    metadata = run_metadata(["python", "benchmarks/precision.py", *argv])
    metadata |= {"instructions": able, "threads": 1, "clock": "cpu", "limit": options.limit}
    metadata |= {"load_before": load, "load_after": os.getloadavg()}
    write_json(options.json, {"metadata": metadata, "results": results})
    if options.record:
        if any(one["change_db"] is None for one in results):
            raise SystemExit("nothing recorded: some weights had no set to restore")
        record(results, able)


if __name__ == "__main__":
    raise SystemExit(run(main))
