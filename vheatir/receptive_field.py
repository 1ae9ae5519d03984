"""`vheatir receptive-field`: which pixels of its input a restored pixel depends on, and how much, with a figure.

The effective receptive field of Luo et al. (arXiv 1701.04128), taken at the output of a restoration network.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vheatir import weights as store
from vheatir.compat import require_matplotlib
from vheatir.errors import UserError
from vheatir.evaluate.protocol import FIGURE_SUFFIXES, LEVEL_NAMES, degrade, read_clean_file
from vheatir.utils.files import atomic_open, sha256
from vheatir.utils.run_metadata import prepare_output, run_metadata, write_json

SHARES = (0.5, 0.9, 0.99)
_LEVELS = {"denoise": 25, "jpeg": 20}  # sigma, quality
_DPI = 150


def receptive_field(
    network: nn.Module, images: Iterable[Tensor], at: tuple[int, int], level: float | None = None
) -> Tensor:
    """Mean absolute gradient of one pixel of the network's correction in each pixel of its input.

    The correction is output minus input, or the skip around the network would count as its own view; its channels are
    added up, absolute values too, so that opposite signs of two channels or images do not cancel.

    Args:
        network: in eval mode, (1, C, H, W) to the same shape.
        images: inputs (1, C, H, W), all of one H, W, on the network's device.
        at: row and column of the pixel.
        level: for networks with a level input, as they take it.

    Returns:
        (H, W), float64 on the CPU, in units of output per input.

    Raises:
        ValueError: no images.
    """
    field, count = None, 0
    for image in images:
        image = image.detach().requires_grad_()
        inputs = (image,) if level is None else (image, torch.full((len(image),), level, device=image.device))
        change = network(*inputs) - image
        (gradient,) = torch.autograd.grad(change[:, :, at[0], at[1]].sum(), image)
        total = gradient.abs().sum((0, 1)).double().cpu()
        field, count = total if field is None else field + total, count + len(image)
    if field is None:
        raise ValueError("no images to take gradients at")
    return field / count


def held_within(field: Tensor, at: tuple[int, int]) -> Tensor:
    """Share of the field inside the square of 2 r + 1 pixels around `at`, for r = 0 .. max(H, W) - 1: (max(H, W),)."""
    rows, columns = (torch.arange(side) - place for side, place in zip(field.shape, at, strict=True))
    distance = torch.maximum(rows.abs()[:, None], columns.abs()[None]).flatten()
    rings = torch.zeros(max(field.shape), dtype=field.dtype).index_add_(0, distance, field.flatten())
    return rings.cumsum(0) / field.sum()


def side_of_share(field: Tensor, at: tuple[int, int], share: float) -> int:
    """Side in pixels of the smallest square around `at` that holds a share (0 to 1) of the field."""
    held = held_within(field, at)
    return 2 * min(int(torch.searchsorted(held, share)), len(held) - 1) + 1


def _inputs(paths: Sequence[Path], task: str, level: float, gray: bool, size: int, at: tuple[int, int] | None):
    """Degraded crops (1, C, size, size) around `at` (x, y) or the middle of each picture."""
    for path in paths:
        clean = read_clean_file(path, task, gray)
        height, width = clean.shape[:2]
        x, y = (width // 2, height // 2) if at is None else at
        left, top = x - size // 2, y - size // 2
        if left < 0 or top < 0 or left + size > width or top + size > height:
            raise UserError(
                f"{path}: {size}x{size} pixels around {x},{y} reach out of its {width}x{height}; "
                "choose a smaller --size or another --at"
            )
        degraded = degrade(clean, task, level)[top : top + size, left : left + size]
        yield torch.from_numpy(np.ascontiguousarray(np.atleast_3d(degraded).transpose(2, 0, 1)))[None].float()


def draw(fields: dict[str, Tensor], at: tuple[int, int]):
    """One panel for each network, over its largest value, logarithmic; beside them the share held by squares."""
    from matplotlib.colors import LogNorm

    figure = require_matplotlib()(figsize=(3 * len(fields) + 4, 3), layout="constrained")
    *panels, curve = figure.subplots(1, len(fields) + 1, width_ratios=[*[3] * len(fields), 4])
    for axes, (name, field) in zip(panels, fields.items(), strict=True):
        shown = axes.imshow(np.maximum((field / field.max()).numpy(), 1e-5), norm=LogNorm(1e-5, 1), cmap="magma")
        axes.set(xticks=[], yticks=[])
        axes.set_title(name, fontsize=9)
        held = held_within(field, at).numpy()
        curve.plot(2 * np.arange(len(held)) + 1, held, label=name)
    figure.colorbar(shown, ax=panels, shrink=0.9, label="gradient over its largest")
    curve.set(xlabel="side of the square in pixels", ylabel="share of the field", xlim=(0, min(field.shape)))
    curve.grid(alpha=0.3)
    curve.legend(fontsize=8)
    return figure


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("vheatir receptive-field", description=__doc__.split("\n\n")[0].split(": ", 1)[1])
    parser.add_argument("pictures", nargs="+", type=Path, metavar="CLEAN", help="clean pictures, to degrade")
    parser.add_argument("--task", required=True, choices=tuple(_LEVELS), help="Gaussian noise or JPEG artefacts")
    parser.add_argument("--weights", nargs="+", metavar="NAME_OR_PATH", help="one or several (default: the shipped)")
    parser.add_argument("--level", type=float, help=f"sigma or quality (default {_LEVELS})".replace("'", ""))
    parser.add_argument("--size", type=int, default=128, help="side of the pictures' part, pixels (%(default)s)")
    parser.add_argument("--at", metavar="X,Y", help="the pixel looked at (default: the middle of each picture)")
    parser.add_argument("--device", default="cpu", help="torch device (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the figures and metadata to this file")
    parser.add_argument("-o", "--out", nargs="+", type=Path, required=True, help="figure files: .png, .pdf, .svg")
    return parser


def _check(arguments: argparse.Namespace) -> tuple[int, int] | None:
    """Refuse what cannot be done, make the folders; returns `--at`."""
    for path in [*arguments.out, *([arguments.json] if arguments.json else [])]:
        if path != arguments.json and path.suffix not in FIGURE_SUFFIXES:
            raise UserError(f"{path}: a figure's name ends in {', '.join(FIGURE_SUFFIXES)}")
        prepare_output(path)
    if arguments.size < 2:
        raise UserError(f"--size must be at least 2 pixels, got {arguments.size}")
    if arguments.at is None:
        return None
    try:
        x, y = (int(part) for part in arguments.at.split(","))
    except ValueError:
        raise UserError(f"--at: expected X,Y in pixels, got {arguments.at!r}") from None
    return x, y


def _measure(path: Path, arguments: argparse.Namespace, level: float, at) -> tuple[Tensor, dict[str, Any]]:
    network, metadata = store.load(path, arguments.device)
    if metadata["task"] != arguments.task:
        raise UserError(f"{path}: these weights are for the task {metadata['task']!r}, not {arguments.task!r}")
    size, gray = arguments.size, metadata["color"] == "gray"
    images = (
        image.to(arguments.device) for image in _inputs(arguments.pictures, arguments.task, level, gray, size, at)
    )
    scale = 255 if arguments.task == "denoise" else 100
    given = level / scale if network.config.get("level_map") else None
    field = receptive_field(network.eval(), images, (size // 2, size // 2), given)
    sides = {f"{share:g}": side_of_share(field, (size // 2, size // 2), share) for share in SHARES}
    return field, {"name": path.stem, "sha256": sha256(path), "side_px": sides}


def main(argv: list[str]) -> int:
    arguments = _parser().parse_args(argv)
    at = _check(arguments)
    require_matplotlib()
    level = _LEVELS[arguments.task] if arguments.level is None else arguments.level
    if arguments.task == "jpeg":
        if not 1 <= level <= 100 or level != int(level):
            raise UserError(f"--level {level:g}: a quality is a whole number from 1 to 100")
        level = int(level)
    elif not 0 <= level < float("inf"):
        raise UserError(f"--level {level:g}: sigma must be a number >= 0 on the 0-255 scale")
    fields, results = {}, []
    for name in arguments.weights or [store.DEFAULTS[arguments.task]["color"]]:
        path = store.find(name)
        if path.stem in fields:
            raise UserError(f"--weights: two files are called {path.stem}; rename one")
        fields[path.stem], found = _measure(path, arguments, level, at)
        results.append(found)
        said = ", ".join(f"{float(share):.0%} within {side}x{side}" for share, side in found["side_px"].items())
        sys.stdout.write(f"{path.stem}: {said} pixels\n")
    figure = draw(fields, (arguments.size // 2, arguments.size // 2))
    for path in arguments.out:
        with atomic_open(path) as file:
            figure.savefig(file, format=path.suffix[1:], dpi=_DPI)
    if arguments.json is not None:
        about = {"task": arguments.task, LEVEL_NAMES[arguments.task]: level, "size_px": arguments.size}
        about["pictures"] = [path.name for path in arguments.pictures]
        metadata = run_metadata(["vheatir", "receptive-field", *argv])
        write_json(arguments.json, {"metadata": metadata, **about, "results": results})
    sys.stdout.write(f"written: {', '.join(map(str, arguments.out))}\n")
    return 0
