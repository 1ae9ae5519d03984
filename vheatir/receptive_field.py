"""`vheatir receptive-field`: which pixels of its input a restored pixel depends on, and how much, with a figure.

The effective receptive field of Luo et al. (arXiv 1701.04128), taken at the output of a restoration network.
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vheatir import weights as store
from vheatir.compat import require_matplotlib
from vheatir.errors import UserError
from vheatir.evaluate.protocol import LEVEL_NAMES, check_figure_files, check_json_file, degrade, read_clean_file
from vheatir.restore.defaults import MAX_LEVEL
from vheatir.utils.devices import device_named
from vheatir.utils.files import atomic_open, in_figure, sha256
from vheatir.utils.run_metadata import run_metadata, write_json

SHARES = (0.5, 0.9, 0.99)
_LEVELS = {"denoise": 25, "jpeg": 20}  # sigma, quality
_DPI = 150


def effective_receptive_field(
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
    field = None
    count = 0
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
    """Side in pixels of the smallest square around `at` that holds a share (0 to 1) of the field.

    Args:
        field: (H, W), not negative.
        at: row and column.
        share: from 0 to 1.
    """
    held = held_within(field, at)
    return 2 * min(int(torch.searchsorted(held, share)), len(held) - 1) + 1


def _inputs(
    paths: Sequence[Path], task: str, level: float, gray: bool, size: int, at: tuple[int, int] | None
) -> Iterator[Tensor]:
    """Degraded crops (1, C, size, size) around `at` (x, y) or the middle of each image."""
    for path in paths:
        clean = read_clean_file(path, task, gray)
        height, width = clean.shape[:2]
        x, y = (width // 2, height // 2) if at is None else at
        left = x - size // 2
        top = y - size // 2
        if left < 0 or top < 0 or left + size > width or top + size > height:
            raise UserError(
                f"{path}: {size}x{size} pixels around {x},{y} reach out of its {width}x{height}; "
                "choose a smaller --size or another --at"
            )
        degraded = degrade(clean, task, level)[top : top + size, left : left + size]
        yield torch.from_numpy(np.ascontiguousarray(np.atleast_3d(degraded).transpose(2, 0, 1)))[None].float()


def draw_fields(fields: dict[str, Tensor], at: tuple[int, int]):
    """One panel for each network, over its largest value, logarithmic; beside them the share held by squares."""
    from matplotlib.colors import LogNorm

    figure = require_matplotlib()(figsize=(3 * len(fields) + 4, 3), layout="constrained")
    *panels, curve = figure.subplots(1, len(fields) + 1, width_ratios=[*[3] * len(fields), 4])
    for axes, (name, field) in zip(panels, fields.items(), strict=True):
        shown = axes.imshow(np.maximum((field / field.max()).numpy(), 1e-5), norm=LogNorm(1e-5, 1), cmap="magma")
        axes.set(xticks=[], yticks=[])
        axes.set_title(in_figure(name), fontsize=9)
        held = held_within(field, at).numpy()
        curve.plot(2 * np.arange(len(held)) + 1, held, label=in_figure(name))
    figure.colorbar(shown, ax=panels, shrink=0.9, label="gradient over its largest")
    curve.set(xlabel="side of the square in pixels", ylabel="share of the field", xlim=(0, min(field.shape)))
    curve.grid(alpha=0.3)
    curve.legend(fontsize=8)
    return figure


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "vheatir receptive-field", description=str(__doc__).split("\n\n")[0].split(": ", 1)[1]
    )
    parser.add_argument("images", nargs="+", type=Path, metavar="CLEAN", help="clean images, to degrade")
    parser.add_argument("--task", required=True, choices=tuple(_LEVELS), help="Gaussian noise or JPEG artifacts")
    parser.add_argument("--weights", nargs="+", metavar="NAME_OR_PATH", help="one or several (default: the shipped)")
    parser.add_argument("--level", type=float, help=f"sigma or quality (default {_LEVELS})".replace("'", ""))
    parser.add_argument("--size", type=int, default=128, help="side of the images' part, pixels (%(default)s)")
    parser.add_argument("--at", metavar="X,Y", help="the pixel looked at (default: the middle of each image)")
    parser.add_argument("--device", default="cpu", help="torch device (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the numbers and metadata to this file")
    parser.add_argument("-o", "--out", nargs="+", type=Path, required=True, help="figure files: .png, .pdf, .svg")
    return parser


def measure_weights(
    images: Sequence[str | Path],
    *,
    task: str,
    weights: Sequence[str | Path] = (),
    level: float | None = None,
    size: int = 128,
    at: tuple[int, int] | None = None,
    device: str = "cpu",
    on_result: Callable[[dict[str, Any]], None] | None = None,
) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """The fields of restoration networks on degraded images.

    Args:
        images: clean image files, to degrade.
        task: "denoise" or "jpeg".
        weights: shipped names or files; the task's own by default.
        level: sigma or quality; 25 or 20 by default.
        size: side of the images' part in pixels.
        at: x, y of the pixel looked at; the middle of each image by default.
        device: torch device.
        on_result: called with what is known of each network when it is there.

    Returns:
        The field (size, size) of each network by name, and {"name", "sha256", "side_px"} of each.

    Raises:
        UserError: images, weights or arguments that cannot be used.
    """
    if size < 2:
        raise UserError(f"--size must be at least 2 pixels, got {size}")
    level = checked_level(task, level)
    for image in images:
        read_clean_file(Path(image), task, gray=False)  # a broken one shows before any work
    fields = {}
    results = []
    where = device_named(device)
    for name in weights or [store.DEFAULTS[task]["color"]]:
        path = store.find(name)
        if path.stem in fields:
            raise UserError(f"--weights: two files are called {path.stem}; rename one")
        network, metadata = store.load(path, where)
        if not store.serve(metadata, task):
            raise UserError(f"{path}: these weights are for the task {metadata['task']!r}, not {task!r}")
        inputs = _inputs([Path(image) for image in images], task, level, metadata["color"] == "gray", size, at)
        given = level / MAX_LEVEL[task] if network.config.get("level_map") else None
        middle = (size // 2, size // 2)
        field = effective_receptive_field(network.eval(), (image.to(where) for image in inputs), middle, given)
        sides = {f"{share:g}": side_of_share(field, middle, share) for share in SHARES}
        fields[path.stem] = field
        results.append({"name": path.stem, "sha256": sha256(path), "side_px": sides})
        if on_result is not None:
            on_result(results[-1])
    return fields, results


def checked_level(task: str, level: float | None) -> float:
    """The level of a task, its default for None; UserError for one that the task does not take."""
    level = _LEVELS[task] if level is None else level
    if task == "jpeg":
        if not 1 <= level <= 100 or level != int(level):
            raise UserError(f"--level {level:g}: a quality is a whole number from 1 to 100")
        return int(level)
    if not 0 <= level < float("inf"):
        raise UserError(f"--level {level:g}: sigma must be a number >= 0 on the 0-255 scale")
    return level


def _position(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    try:
        x, y = (int(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"--at: expected X,Y in pixels, got {text!r}") from None
    return x, y


def _show(result: dict[str, Any]) -> None:
    said = ", ".join(f"{float(share):.0%} within {side}x{side}" for share, side in result["side_px"].items())
    sys.stdout.write(f"{result['name']}: {said} pixels\n")


def main(argv: list[str]) -> int:
    """Entry of `vheatir receptive-field`."""
    arguments = _parser().parse_args(argv)
    check_figure_files(arguments.out, arguments.images)
    if arguments.json is not None:
        check_json_file(arguments.json, arguments.images)
    at = _position(arguments.at)
    require_matplotlib()
    level = checked_level(arguments.task, arguments.level)
    fields, results = measure_weights(
        arguments.images,
        task=arguments.task,
        weights=arguments.weights or (),
        level=level,
        size=arguments.size,
        at=at,
        device=arguments.device,
        on_result=_show,
    )
    figure = draw_fields(fields, (arguments.size // 2, arguments.size // 2))
    for path in arguments.out:
        with atomic_open(path) as file:
            figure.savefig(file, format=path.suffix[1:], dpi=_DPI)
    if arguments.json is not None:
        about = {"task": arguments.task, LEVEL_NAMES[arguments.task]: level, "size_px": arguments.size}
        about["images"] = [path.name for path in arguments.images]
        metadata = run_metadata(["vheatir", "receptive-field", *argv])
        write_json(arguments.json, {"metadata": metadata, **about, "results": results})
    sys.stdout.write(f"written: {', '.join(map(str, arguments.out))}\n")
    return 0
