"""Validation of a network on a dataset of whole images: metrics of input and output, optionally the images."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from vheatir.archs.base import middle_planes
from vheatir.backbone.training.loop import DIVERGED
from vheatir.backbone.training.processes import Processes
from vheatir.errors import UserError
from vheatir.image_io.arrays import to_uint8
from vheatir.image_io.write import save_png
from vheatir.metrics.fidelity import scores_of_degraded
from vheatir.restore.self_ensemble import self_ensemble
from vheatir.restore.tiling import DEFAULT_OVERLAP, apply_tiled, default_tile

Metric = Callable[[np.ndarray, np.ndarray], float]
_SCORES = ("psnr", "ssim", "psnrb")


class OfInput(NamedTuple):
    """How an input is measured beside the restored image: one of psnr, ssim, psnrb, with its border and luma."""

    score: str
    border: int = 0
    luma: bool = False


def of_inputs(metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, OfInput]:
    """How inputs are measured, by name: as the restored images are, and with what is left of the three scores.

    Metrics that are not of their kind have no counterpart for an input that is neither clipped nor rounded.

    Args:
        metrics: options by name, checked: `type` and the arguments of that type.
    """
    kinds = {**{f"vheatir_{name}": name for name in _SCORES}, "calculate_psnr": "psnr", "calculate_ssim": "ssim"}
    found = {name: OfInput(name) for name in _SCORES if name not in metrics}
    for name, table in metrics.items():
        if (score := kinds.get(table["type"])) is not None:
            border = table.get("border", table.get("crop_border", 0))
            found[name] = OfInput(score, border, bool(table.get("luma", table.get("test_y_channel", False))))
    return found


def _image_of(planes: Tensor) -> np.ndarray:
    """(1, C, H, W) in [0, 1] to HWC RGB or HW."""
    image = planes[0].float().cpu().numpy()
    return image[0] if len(image) == 1 else image.transpose(1, 2, 0)


def bgr_or_gray(image: np.ndarray) -> np.ndarray:
    """HWC RGB as BGR, or the other way round; HW and HWC with one channel as they are."""
    return image[..., ::-1] if image.ndim == 3 and image.shape[2] == 3 else image


@torch.no_grad()
def restore_planes(
    network: nn.Module, lq: Tensor, level: Tensor | None, tile: int | None, ensemble: bool = False
) -> Tensor:
    """An image restored by a network in eval mode, in tiles where it is large.

    Args:
        network: takes (1, C, H, W), and a level where one is given.
        lq: (1, C, H, W), degraded.
        level: (1,), or None.
        tile: side of the tiles in pixels, 0 for the whole image; by default chosen by size.
        ensemble: the mean over the eight flips and rotations.

    Returns:
        (1, C, H, W).
    """
    function = network if level is None else partial(network, level=level)
    if ensemble:
        function = partial(self_ensemble, function)
    size = default_tile(*lq.shape[2:]) if tile is None else tile
    return apply_tiled(function, lq, size, min(DEFAULT_OVERLAP, size // 4) if size else DEFAULT_OVERLAP)


def validate(
    network: nn.Module,
    dataset,
    metrics: Mapping[str, Metric],
    *,
    device: torch.device,
    tile: int | None = None,
    ensemble: bool = False,
    max_images: int | None = None,
    save_dir: Path | None = None,
    save_as: str = "{name}.png",
    on_image: Callable[[int, int], None] | None = None,
    processes: Processes | None = None,
    inputs: Mapping[str, OfInput] | None = None,
) -> dict[str, Any]:
    """Restore and score the images of a dataset in its val or test phase.

    Args:
        network: in eval mode; takes (1, C, H, W), and a level where the dataset gives one.
        dataset: gives {"lq", "gt": float32 (C, H, W), "lq_path"[, "level"]}.
        metrics: name -> function of two uint8 images (restored, target).
        device: on which the network is.
        tile: side of the tiles in pixels, 0 for whole images; by default chosen by size.
        ensemble: the mean over the eight flips and rotations.
        max_images: score only the first so many.
        save_dir: write restored images there as PNG.
        save_as: path of a restored image below it, with {name} for the name of the input without its suffix.
        on_image: called with (images done, images in all).
        processes: share the images out among them; the first one writes the images, all return the same.
        inputs: how inputs are measured, by name; by default psnr, ssim and psnrb of the whole image, see `of_inputs`.

    Returns:
        {"images", "input": {name: mean}, "restored": {metric: mean}, "per_image": [...]}; the input is measured as it
        is, neither clipped nor rounded.
    """
    processes = processes or Processes()
    count = len(dataset) if max_images is None else min(max_images, len(dataset))
    records: list[dict[str, Any]] = []
    saved: set[Path] = set()

    def score(index: int) -> tuple[dict[str, Any], np.ndarray | None] | None:
        if index >= count:
            return None
        sample = dataset[index]
        level = sample["level"][None].to(device) if "level" in sample else None
        output = restore_planes(network, sample["lq"][None].to(device), level, tile, ensemble)
        record, restored = _scored(sample, output, metrics, inputs or of_inputs({}))
        return record, None if save_dir is None else restored

    for first in range(0, count, processes.world):
        index = first + processes.rank
        done = processes.gather(processes.agree(partial(score, index)))
        for record, restored in filter(None, done):
            if save_dir is not None and processes.writes:
                _save(save_dir / save_as, record["image"], restored, len(records), saved)
            records.append(record)
            if on_image is not None:
                on_image(len(records), count)
    means = {side: _means(records, side) for side in ("input", "restored")}
    return {"images": count, **means, "per_image": records}


def _means(records: list[dict[str, Any]], side: str) -> dict[str, float]:
    """Of each metric over the images."""
    return {name: float(np.mean([record[side][name] for record in records])) for name in records[0][side]}


def _scores_of_input(lq: np.ndarray, target: np.ndarray, inputs: Mapping[str, OfInput]) -> dict[str, float]:
    """By name; each border and luma is measured once."""
    ways = {(one.border, one.luma) for one in inputs.values()}
    found = {(border, luma): scores_of_degraded(lq, target, border=border, luma=luma) for border, luma in ways}
    return {name: found[one.border, one.luma][one.score] for name, one in inputs.items()}


def _scored(
    sample: dict[str, Any], output: Tensor, metrics: Mapping[str, Metric], inputs: Mapping[str, OfInput]
) -> tuple[dict[str, Any], np.ndarray]:
    """Record and uint8 image of one output."""
    lq = middle_planes(sample["lq"], len(sample["gt"]))[None]
    if lq.shape[1] == 3 and bool((lq == lq[:, :1]).all()):  # gray in a color network: its mean, as in restoring
        output = output.mean(1, keepdim=True).expand_as(output)
    if not torch.isfinite(output).all():
        raise UserError(f"{sample['lq_path']}: the network's output holds NaN or infinity; {DIVERGED}")
    target = to_uint8(_image_of(sample["gt"][None]))
    restored = to_uint8(_image_of(output.clamp(0, 1)))
    record = {
        "image": Path(sample["lq_path"]).name,
        "input": _scores_of_input(_image_of(lq), target, inputs),
        "restored": {name: float(metric(restored, target)) for name, metric in metrics.items()},
    }
    return record, restored


def _save(pattern: Path, name: str, restored: np.ndarray, number: int, saved: set[Path]) -> None:
    path = Path(str(pattern).replace("{name}", Path(name).stem))
    if path in saved:  # the same name in two folders
        path = path.with_stem(f"{path.stem}_{number}")
    saved.add(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_png(path, restored)


def validation_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """One row for each validation set: every metric of the restored images and, in parentheses, of their input.

    results: set -> what `validate` returns. Several sets are followed by their mean.
    """
    rows = {f"{name} ({result['images']})": (result["restored"], result["input"]) for name, result in results.items()}
    if len(results) > 1:
        sides = [[result[side] for result in results.values()] for side in ("restored", "input")]
        rows["mean"] = tuple({name: float(np.mean([of[name] for of in side])) for name in side[0]} for side in sides)
    metrics = list(next(iter(rows.values()))[0])
    width = max(map(len, rows))
    lines = [" " * width + "".join(f"  {name:>19}" for name in metrics)]
    for label, (restored, given) in rows.items():
        cells = [f"{restored[name]:.4f}" + (f" ({given[name]:.4f})" if name in given else "") for name in metrics]
        lines.append(f"{label:<{width}}" + "".join(f"  {cell:>19}" for cell in cells))
    return "\n".join(lines)
