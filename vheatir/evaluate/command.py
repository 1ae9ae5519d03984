"""`vheatir evaluate`: PSNR, SSIM and PSNR-B on folders of clean images, by the protocol of the published tables.

docs/evaluation.md describes the protocol. Validation during training uses the same pieces: `degrade`, `evaluate_image`.
"""

import argparse
import math
import operator
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from vheatir.data.degradations import add_gaussian_noise, jpeg_roundtrip, luma_bt601, to_float, to_uint8
from vheatir.data.sources import ImageSource
from vheatir.errors import UserError
from vheatir.evaluate.methods import Method, open_method
from vheatir.metrics.fidelity import WINDOW, scores, scores_of_degraded
from vheatir.metrics.perceptual import NAMES, Perceptual
from vheatir.utils.files import atomic_open
from vheatir.utils.run_metadata import prepare_output, run_metadata, write_json

Further = Callable[[np.ndarray, np.ndarray], dict[str, float]]  # (uint8 image, clean one) -> further figures

NOISE_SEED = 0  # of every image, so that a picture's noise depends on its size alone
LEVELS = {"denoise": (15, 25, 50), "jpeg": (10, 20, 30, 40)}
LEVEL_NAMES = {"denoise": "sigma", "jpeg": "quality"}
FIGURES = ("psnr", "ssim", "psnrb")
WEIGHTS_NONE = "none"  # --weights none: measure the degraded input only
PROTOCOL = {
    "denoise": "white Gaussian noise, numpy RandomState(0) for each image, drawn on HWC RGB (or HW) in [0, 1], neither "
    "clipped nor rounded, also where the input is measured; gray: OpenCV's gray read",
    "jpeg": "OpenCV JPEG, colour in 4:2:0; gray: BT.601 luma rounded to uint8 (gray files as they are), one plane",
}
COMMON_PROTOCOL = "restored image clamped, times 255, rounded to uint8; border 0; mean of the images' figures"


def read_clean(source: ImageSource, key: str, task: str, gray: bool) -> np.ndarray:
    """A clean test image as the protocol of `task` reads it: uint8, HWC RGB or, when `gray`, HW.

    Gray of a colour file is what OpenCV's gray read gives for denoising, and rounded BT.601 luma for JPEG.
    """
    image = source.read_native(key)
    if not gray:
        return image if image.ndim == 3 else np.repeat(image[:, :, None], 3, axis=2)
    if image.ndim == 2:
        return image
    if task == "jpeg":
        return luma_bt601(image)
    return source.read_opencv_gray(key)


def degrade(clean: np.ndarray, task: str, level: float) -> np.ndarray:
    """The test input for a clean uint8 image: float32 of the same shape, noise not clipped, JPEG in steps of 1/255."""
    if task == "denoise":
        return add_gaussian_noise(to_float(clean), level, np.random.RandomState(NOISE_SEED))
    if task == "jpeg":
        return to_float(jpeg_roundtrip(clean, level))
    raise ValueError(f"unknown task {task!r}; known: {', '.join(LEVELS)}")


def evaluate_image(
    clean: np.ndarray, task: str, level: float, method: Method | None, further: Further | None = None
) -> tuple[dict[str, Any], np.ndarray | None]:
    """Degrade, restore and score one clean uint8 image; `method` None measures the input only.

    `further` figures of a noisy input are those of the 8-bit image that a viewer shows: clipped and rounded.
    Returns ({"input": figures, "restored": figures or None, "seconds": time of the method}, restored uint8 or None).
    """
    degraded = degrade(clean, task, level)
    before = scores_of_degraded(degraded, clean) if task == "denoise" else scores(to_uint8(degraded), clean)
    further = further or (lambda image, target: {})
    before = {**before, **further(to_uint8(degraded), clean)}
    if method is None:
        return {"input": before, "restored": None, "seconds": 0.0}, None
    start = time.perf_counter()
    output = method(degraded, level)
    seconds = time.perf_counter() - start
    if output.shape != clean.shape:
        raise ValueError(f"the method returned shape {output.shape} for an image of {clean.shape}, expected the same")
    restored = to_uint8(output)
    after = {**scores(restored, clean), **further(restored, clean)}
    return {"input": before, "restored": after, "seconds": seconds}, restored


def mean_scores(items: Sequence[dict[str, float]]) -> dict[str, float]:
    """The mean of each figure over images; infinite where one image's is."""
    return {name: math.fsum(item[name] for item in items) / len(items) for name in items[0]}


def evaluate(
    data: Sequence[str | Path],
    task: str,
    levels: Sequence[float] | None = None,
    *,
    gray: bool,
    method: Method | None = None,
    save_images: str | Path | None = None,
    limit: int | None = None,
    progress: bool = False,
    further: Further | None = None,
) -> list[dict[str, Any]]:
    """One result for each folder of clean images and each level, in that order.

    Args:
        data: folders of clean images, searched recursively.
        task: "denoise" (levels are sigma on the 0-255 scale) or "jpeg" (levels are qualities).
        levels: None takes those of the published tables.
        gray: the gray protocol instead of the colour one.
        method: what restores; None measures the degraded input only.
        save_images: restored images go to this folder as data/levelname+level/name.png.
        limit: use only the first images of each folder.
        progress: show a progress line on a terminal.
        further: figures beside the three, such as `vheatir.metrics.perceptual.Perceptual(["lpips"])`.

    Returns:
        [{"data", "task", "color", "level", "images", "input", "restored", "per_image"}]; figures are by name, and
        "restored" is None where nothing restores.
    """
    levels = _checked_levels(task, levels)
    if limit is not None and limit < 1:
        raise UserError(f"limit must be at least 1 image, got {limit}")
    if save_images is not None and method is None:
        raise UserError(
            "nothing is restored, so there are no images to save; choose weights or leave --save-images out"
        )
    sources = _open_sources(data, check_stems=save_images is not None)
    total = sum(len(source.keys[:limit]) for source in sources.values()) * len(levels)
    results = []
    with tqdm(total=total, unit="image", disable=None if progress else True, file=sys.stderr) as bar:
        for name, source in sources.items():
            for level in levels:
                bar.set_description(f"{name} {LEVEL_NAMES[task]} {level:g}")
                folder = Path(save_images, name, f"{LEVEL_NAMES[task]}{level:g}") if save_images is not None else None
                records = []
                for key in source.keys[:limit]:
                    records.append(_evaluate_file(source, key, task, level, gray, method, folder, further))
                    bar.update()
                results.append(_summary(name, task, gray, level, records))
    return results


def _checked_levels(task: str, levels: Sequence[float] | None) -> list[float]:
    if task not in LEVELS:
        raise UserError(f"unknown task {task!r}; known: {', '.join(LEVELS)}")
    levels = list(LEVELS[task] if levels is None else levels)
    for level in levels:
        if task == "jpeg" and not 1 <= operator.index(level) <= 100:
            raise UserError(f"quality {level}: expected integers from 1 to 100")
        if task == "denoise" and not 0 <= level < math.inf:
            raise UserError(f"sigma {level}: expected numbers >= 0 on the 0-255 scale")
    if not levels or len(set(levels)) < len(levels):
        raise UserError(f"levels {levels}: expected at least one, each only once")
    return [int(level) if level == int(level) else float(level) for level in levels]


def _open_sources(data: Sequence[str | Path], check_stems: bool) -> dict[str, ImageSource]:
    sources: dict[str, ImageSource] = {}
    for folder in data:
        path = Path(folder).expanduser()
        if not path.is_dir():
            raise UserError(f"{folder}: no such folder, expected one with clean images; check --data")
        name = path.resolve().name
        if name in sources:
            raise UserError(f"two data folders are called {name}; evaluate them in two runs")
        sources[name] = ImageSource(path, backend="disk")
        if check_stems:
            sources[name].by_stem()  # refuses two files that would be saved under one name
    return sources


def _evaluate_file(
    source: ImageSource,
    key: str,
    task: str,
    level: float,
    gray: bool,
    method: Method | None,
    folder: Path | None,
    further: Further | None,
) -> dict[str, Any]:
    clean = read_clean(source, key, task, gray)
    if min(clean.shape[:2]) < WINDOW:
        raise UserError(
            f"{source.describe(key)}: {clean.shape[0]}x{clean.shape[1]} pixels; SSIM needs 11x11, remove it"
        )
    try:
        record, restored = evaluate_image(clean, task, level, method, further)
    except ValueError as error:
        raise UserError(f"{source.describe(key)}: {error}") from error
    if folder is not None and restored is not None:
        save_png(folder / PurePosixPath(key).with_suffix(".png"), restored)
    return {"image": key, "height": clean.shape[0], "width": clean.shape[1], **record}


def _summary(name: str, task: str, gray: bool, level: float, records: list[dict[str, Any]]) -> dict[str, Any]:
    restored = [record["restored"] for record in records if record["restored"] is not None]
    return {
        "data": name,
        "task": task,
        "color": "gray" if gray else "color",
        "level": level,
        "images": len(records),
        "input": mean_scores([record["input"] for record in records]),
        "restored": mean_scores(restored) if restored else None,
        "per_image": records,
    }


def save_png(path: Path, image_u8: np.ndarray) -> None:
    """Write a uint8 image (HWC RGB or HW) as PNG, atomically; folders are made as needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    done, data = cv2.imencode(".png", image_u8 if image_u8.ndim == 2 else image_u8[:, :, ::-1])
    if not done:
        raise RuntimeError(f"OpenCV could not encode {path}")
    with atomic_open(path) as file:
        file.write(data.tobytes())


def table(results: Sequence[dict[str, Any]]) -> str:
    """The results as aligned text: one line for each folder and level."""
    sides = ["input", "restored"] if any(result["restored"] for result in results) else ["input"]
    further = [name for name in results[0]["input"] if name not in FIGURES]
    names = "   PSNR  SSIM   PSNR-B" + "".join(f" {name.upper():>7}" for name in further)
    lines = [
        f"{'data':<16} {'level':>12} {'images':>6}" + "".join(f"   {side:<{len(names) - 3}}" for side in sides),
        " " * 36 + names * len(sides),
    ]
    for result in results:
        cells = ""
        for item in (result[side] for side in sides if result[side]):
            cells += f"   {item['psnr']:5.2f} {item['ssim']:.4f}  {item['psnrb']:5.2f}"
            cells += "".join(f" {item[name]:7.4f}" for name in further)
        level = f"{LEVEL_NAMES[result['task']]} {result['level']:g}"
        lines.append(f"{result['data']:<16} {level:>12} {result['images']:>6}{cells}")
    return "\n".join(line.rstrip() for line in lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "vheatir evaluate",
        description="Degrade clean images by the published protocol, restore them, and measure PSNR, SSIM and PSNR-B.",
    )
    parser.add_argument("--task", required=True, choices=LEVELS, help="Gaussian noise or JPEG artifacts")
    parser.add_argument("--data", required=True, nargs="+", metavar="DIR", help="folders of clean images")
    color = parser.add_mutually_exclusive_group(required=True)
    color.add_argument("--gray", action="store_true", help="the gray protocol")
    color.add_argument("--color", action="store_true", help="the colour protocol")
    parser.add_argument("--sigma", nargs="+", type=float, metavar="S", help="noise levels, 0-255 scale (15 25 50)")
    parser.add_argument("--quality", nargs="+", type=int, metavar="Q", help="JPEG qualities (10 20 30 40)")
    parser.add_argument(
        "--weights",
        metavar="NAME_OR_PATH",
        help=f"shipped name or .safetensors file (default: the shipped ones); {WEIGHTS_NONE}: measure the input only",
    )
    parser.add_argument(
        "--method", choices=("vheatir", "nlm"), default="vheatir", help="nlm: non-local means, to compare"
    )
    parser.add_argument("--device", help="torch device (default: CUDA where there is one, else the CPU)")
    parser.add_argument(
        "--tile", type=int, metavar="N", help="restore in overlapping tiles of N pixels; 0: whole images"
    )
    further_help = "figures beside PSNR, SSIM and PSNR-B (docs/evaluation.md says what they need)"
    parser.add_argument("--metrics", nargs="+", choices=NAMES, default=[], help=further_help)
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N images of each folder")
    parser.add_argument(
        "--json", type=Path, metavar="OUT", help="write figures of every image and metadata to this file"
    )
    parser.add_argument(
        "--save-images", type=Path, metavar="DIR", help="write the restored images as PNG below this folder"
    )
    return parser


def main(argv: list[str]) -> int:
    options = _parser().parse_args(argv)
    levels, others = (options.sigma, options.quality)[:: 1 if options.task == "denoise" else -1]
    if others is not None:
        raise UserError(f"--task {options.task} takes --{LEVEL_NAMES[options.task]}, not the levels of the other task")
    levels = _checked_levels(options.task, levels)
    if options.json is not None:
        prepare_output(options.json)
    method, about = None, {"method": None, "weights": None}
    if options.weights != WEIGHTS_NONE or options.method == "nlm":
        method, about = open_method(
            options.method, options.task, options.gray, options.weights, options.device, options.tile
        )
    further = Perceptual(options.metrics, options.device or "cpu") if options.metrics else None
    start = time.perf_counter()
    results = evaluate(
        options.data,
        options.task,
        levels,
        gray=options.gray,
        method=method,
        save_images=options.save_images,
        limit=options.limit,
        progress=True,
        further=further,
    )
    sys.stdout.write(table(results) + "\n")
    if options.json is not None:
        protocol = f"{PROTOCOL[options.task]}; {COMMON_PROTOCOL}"
        about |= {"protocol": protocol, "limit": options.limit, "seconds": round(time.perf_counter() - start, 3)}
        write_json(options.json, {"results": results, "metadata": run_metadata(["vheatir", "evaluate", *argv]) | about})
    return 0


if __name__ == "__main__":
    from vheatir.cli import run

    raise SystemExit(run(main))
