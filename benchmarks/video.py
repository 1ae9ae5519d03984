"""A video network against an image network frame by frame, on clips made of still images that were held back.

    python benchmarks/video.py VIDEO.safetensors --data datasets/BSD432 --include "38*.jpg" --json OUT.json

Each image becomes a clip for each kind of motion; noise is drawn for each frame. Frames at both ends have mirrored
neighbors, as in `vheatir restore`. PSNR is the mean over all frames, of 8-bit RGB. Flicker is the mean absolute
difference from frame to frame of (restored - clean), in levels of 8 bits: what seems to boil where a clip is watched.
Seconds are processor time of one thread for a frame, of frames done in turn by all methods. `--ensemble` adds the image
network's mean over eight flips and rotations, for about eight times its time. `--clip` restores a real clip instead:
with `--sigma` noise is added and the clip itself is the target; `--sheet` writes the same crop of a frame in all forms.

`moving_psnr` is of the pixels that differ by 16 levels or more from the frame before or after. `ghost` is the share of
those frames that the result holds there: the slope of (restored - clean) against (clean neighbor - clean), 0 where
nothing of them is seen and 0.5 where the result lies halfway. A smoothed edge has some of it without any neighbor, so
what counts is the difference from frame by frame.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import cv2
import numpy as np
import torch

from vheatir import weights
from vheatir.archs.base import RestorationNetwork
from vheatir.backbone import freeze
from vheatir.cli import run
from vheatir.data.degradations import add_gaussian_noise
from vheatir.data.moving_clips import MovingClipsDataset
from vheatir.errors import UserError
from vheatir.image_io import to_float, to_uint8
from vheatir.image_io.write import save_png
from vheatir.metrics.fidelity import psnr
from vheatir.restore.self_ensemble import self_ensemble
from vheatir.restore.video.one_clip import windows
from vheatir.restore.video.reading import Clip
from vheatir.utils.run_metadata import prepare_output, run_metadata, write_json

_STILL = {"speed": 0, "shake": 0, "turn": 0, "zoom": 0, "parallax_probability": 0}
MOTIONS = {
    "still": {**_STILL, "still_probability": 1},
    "pan": {**_STILL, "speed": {"min": 1, "max": 4}},
    "shaken pan": {**_STILL, "speed": {"min": 0, "max": 4}, "shake": 0.5},
    "turn and zoom": {**_STILL, "speed": {"min": 0, "max": 2}, "turn": {"min": 0.2, "max": 0.6}, "zoom": 0.8},
    "two layers": {**_STILL, "speed": {"min": 1, "max": 4}, "parallax_probability": 1},
    "fast pan": {**_STILL, "speed": {"min": 6, "max": 10}},
}
MOVED = 16  # levels by which a pixel differs from a neighboring frame
Method = Callable[[list[np.ndarray]], np.ndarray]


def planes(frames: list[np.ndarray]) -> torch.Tensor:
    """(1, T * 3, H, W) of float32 frames (H, W, 3)."""
    return torch.from_numpy(np.ascontiguousarray(np.concatenate(frames, 2).transpose(2, 0, 1)))[None]


def method(network: RestorationNetwork, ensemble: bool = False) -> Method:
    """Restores the middle frame of as many as the network takes."""
    width = network.config.get("frames", 1)

    def run(window: list[np.ndarray]) -> np.ndarray:
        half = len(window) // 2 - width // 2
        image = planes(window[half : half + width])
        with torch.inference_mode():
            restored = self_ensemble(network, image) if ensemble else network(image)
        return to_uint8(restored[0].permute(1, 2, 0).clamp(0, 1).numpy())

    return run


def measure(clean: np.ndarray, noisy: list[np.ndarray], methods: dict[str, Method]) -> dict[str, dict[str, float]]:
    """PSNR, flicker and seconds per frame of each method on one clip; clean is uint8 (T, H, W, 3)."""
    found: dict[str, list[np.ndarray]] = {name: [] for name in methods}
    seconds = dict.fromkeys(methods, 0.0)
    for window in windows(iter(noisy), 7):
        for name, method in methods.items():
            begun = time.process_time()
            found[name].append(method(window))
            seconds[name] += time.process_time() - begun
    return {name: scores(clean, frames) | {"seconds": seconds[name] / len(clean)} for name, frames in found.items()}


def scores(clean: np.ndarray, frames: list[np.ndarray]) -> dict[str, float]:
    """PSNR in dB and flicker in levels; where the clip moves, also PSNR and ghosts there."""
    residual = np.stack(frames).astype(np.float32) - clean
    return {
        "psnr": float(np.mean([psnr(one, other) for one, other in zip(frames, clean, strict=True)])),
        "flicker": float(np.abs(np.diff(residual, axis=0)).mean()),
        **where_it_moves(clean, residual),
    }


def where_it_moves(clean: np.ndarray, residual: np.ndarray) -> dict[str, float]:
    """`moving_psnr` and `ghost` of all frames but the ends; nothing where no pixel moves."""
    exact = clean.astype(np.float32)
    steps = [exact[:-2] - exact[1:-1], exact[2:] - exact[1:-1]]
    wrong = residual[1:-1]
    moved = [np.abs(step).max(-1) >= MOVED for step in steps]
    if not (moved[0] | moved[1]).any():
        return {}
    there = wrong[moved[0] | moved[1]]
    products = [(wrong[mask] * step[mask]).sum(dtype=np.float64) for mask, step in zip(moved, steps, strict=True)]
    squares = [np.square(step[mask]).sum(dtype=np.float64) for mask, step in zip(moved, steps, strict=True)]
    return {
        "moving_psnr": float(10 * np.log10(255**2 / np.square(there).mean(dtype=np.float64))),
        "ghost": float(sum(products) / sum(squares)),
        "moving_share": float((moved[0] | moved[1]).mean()),
    }


def noisy_frames(clean: np.ndarray, sigma: float, seed: int) -> list[np.ndarray]:
    """float32 frames with white noise of their own."""
    rng = np.random.default_rng(seed)
    return [add_gaussian_noise(to_float(frame), sigma, rng) for frame in clean]


def synthetic(arguments: argparse.Namespace, motion: dict) -> Iterator[np.ndarray]:
    """Clean clips, uint8, cropped to a square."""
    dataset = MovingClipsDataset(
        {"phase": "val", "dataroot_gt": str(arguments.data), "include": arguments.include, "sigma": 0, **motion}
    )
    for key in dataset.keys[: arguments.images]:
        clip = dataset.clip(key, arguments.frames)
        if clip.ndim == 4:
            top, left = ((side - arguments.side) // 2 for side in clip.shape[1:3])
            yield clip[:, max(top, 0) :, max(left, 0) :][:, : arguments.side, : arguments.side]


def on_synthetic(arguments: argparse.Namespace, methods: dict[str, Method]) -> list[dict]:
    rows = []
    for name, motion in MOTIONS.items():
        if not any(fnmatchcase(name, pattern) for pattern in arguments.only):
            continue
        results = []
        for seed, clean in enumerate(synthetic(arguments, motion)):
            results.append(measure(clean, noisy_frames(clean, arguments.sigma, seed), methods))
        for one in methods:
            shared = set.intersection(*(set(result[one]) for result in results))
            means = {key: float(np.mean([result[one][key] for result in results])) for key in sorted(shared)}
            rows.append({"motion": name, "method": one, "clips": len(results), **means})
            print(f"{name:14} {one:28} {means['psnr']:6.2f} dB, flicker {means['flicker']:5.2f}", flush=True)
    return rows


def on_clip(arguments: argparse.Namespace, methods: dict[str, Method]) -> list[dict]:
    """A real clip; its frames, with noise added, against themselves."""
    clip = Clip(arguments.clip, 10**9)
    frames = []
    for number, frame in enumerate(clip.frames()):
        if number >= arguments.start and len(frames) < arguments.frames:
            size = tuple(side // arguments.shrink for side in frame.pixels.shape[1::-1])
            frames.append(to_uint8(cv2.resize(frame.pixels, size, interpolation=cv2.INTER_AREA)))
        if len(frames) == arguments.frames:
            break
    if len(frames) < 7:
        raise UserError(f"{arguments.clip}: {len(frames)} frames from {arguments.start} on, expected 7 or more")
    clean = np.stack(frames)
    noisy = noisy_frames(clean, arguments.sigma, 0)
    results = measure(clean, noisy, methods)
    if arguments.sheet:
        sheet(arguments, clean, noisy, methods)
    return [{"clip": arguments.clip.name, "method": name, **result} for name, result in results.items()]


def sheet(
    arguments: argparse.Namespace, clean: np.ndarray, noisy: list[np.ndarray], methods: dict[str, Method]
) -> None:
    """A crop of three frames (rows): clean, noisy, then what each method makes of it."""
    top, left, side = arguments.crop
    middle = len(clean) // 2
    around = list(windows(iter(noisy), 7))
    rows = []
    for number in (middle - 1, middle, middle + 1):
        shown = [
            clean[number],
            to_uint8(noisy[number].clip(0, 1)),
            *(method(around[number]) for method in methods.values()),
        ]
        parts = [image[top : top + side, left : left + side].repeat(2, 0).repeat(2, 1) for image in shown]
        rows.append(np.concatenate(parts, 1))
    save_png(arguments.sheet, np.concatenate(rows))


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = found.add_argument
    add("video", help="weights of a video network")
    add("--image", nargs="+", default=["denoise_color_blind"], help="weights of image networks (%(default)s)")
    add("--data", type=Path, default=Path("datasets/BSD432"))
    add("--include", nargs="+", default=["38*.jpg"])
    add("--images", type=int, default=12, help="at most so many")
    add("--only", nargs="+", default=["*"], help=f"kinds of motion: {', '.join(MOTIONS)}")
    add("--frames", type=int, default=7, help="of a clip, an odd number (%(default)s)")
    add("--side", type=int, default=224, help="of the frames, pixels (%(default)s)")
    add("--sigma", type=float, default=25)
    add("--ensemble", action="store_true")
    add("--clip", type=Path, help="a real clip")
    add("--start", type=int, default=0, help="its first frame that is taken")
    add("--shrink", type=int, default=1, help="its frames are shrunk by this factor")
    add("--crop", nargs=3, type=int, default=[0, 0, 160], metavar=("TOP", "LEFT", "SIDE"))
    add("--sheet", type=Path, help="PNG to look at")
    add("--json", type=Path, required=True)
    return found


def main(argv: list[str]) -> int:
    arguments = parser().parse_args(argv)
    prepare_output(arguments.json)
    torch.set_num_threads(1)
    first, *others = (freeze(weights.load(name)[0]) for name in arguments.image)
    methods = {"frame by frame": method(first)}
    for name, network in zip(arguments.image[1:], others, strict=True):
        methods[f"frame by frame, {Path(name).stem}"] = method(network)
    if arguments.ensemble:
        methods["frame by frame, ensemble of 8"] = method(first, ensemble=True)
    methods["video network"] = method(freeze(weights.load(arguments.video)[0]))
    rows = on_clip(arguments, methods) if arguments.clip else on_synthetic(arguments, methods)
    about = run_metadata(["python", "benchmarks/video.py", *argv])
    write_json(arguments.json, {"metadata": about, "sigma": arguments.sigma, "results": rows})
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
