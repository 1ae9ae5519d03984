"""What `vheatir train --compare` shows: the curves of PSNR over time as a figure, and a table."""

import statistics
from pathlib import Path
from typing import Any

from vheatir.compat import require_matplotlib
from vheatir.utils.files import atomic_open, in_figure


def plot(result: dict[str, Any], folder: Path) -> list[Path]:
    """Draw PSNR over training time as psnr_over_time.png and .svg, one panel for each validation set."""
    figure_class = require_matplotlib()
    trained = {name: run["points"] for name, run in result["recipes"].items() if run["points"]}
    phases = [key for key, value in next(iter(trained.values()))[0].items() if isinstance(value, dict)]
    figure = figure_class(figsize=(6 * len(phases), 4), layout="constrained")
    for axes, phase in zip(figure.subplots(1, len(phases), squeeze=False)[0], phases, strict=True):
        for name, points in trained.items():
            minutes, scores = zip(*((p["minutes"], p[phase]["restored"]["psnr"]) for p in points), strict=True)
            axes.plot(minutes, scores, marker=".", label=f"{in_figure(name)}, {points[-1]['iteration']} iterations")
        axes.set(xlabel=f"minutes of training ({result['clock']})", ylabel=f"PSNR in dB, {phase}")
        axes.grid(alpha=0.3)
        axes.legend()
    written = [folder / f"psnr_over_time.{kind}" for kind in ("png", "svg")]
    for path in written:
        with atomic_open(path) as file:
            figure.savefig(file, format=path.suffix[1:], dpi=150)
    return written


def table(result: dict[str, Any]) -> str:
    """The finished recipes as a Markdown table; PSNR is the mean over the validation sets."""
    head = ["recipe", "parameters", "iterations", "it/s", "PSNR at half the time", "PSNR at the end"]
    head += ["training peak MiB", "inference peak MiB", "s for 481x321"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name, run in result["recipes"].items():
        cost = run.get("cost")
        points = run["points"]
        if cost is None:
            continue
        half = min(points, key=lambda point: abs(point["minutes"] - result["budget_minutes"] / 2))
        scores = [
            statistics.mean(value["restored"]["psnr"] for value in point.values() if isinstance(value, dict))
            for point in (half, points[-1])
        ]
        cells = [name, f"{cost['parameters']:,}", str(points[-1]["iteration"]), f"{cost['iterations_per_s']:.2f}"]
        cells += [f"{score:.2f}" for score in scores]
        cells += [f"{cost['training_peak_mib']:.0f}", f"{cost['inference_peak_mib']:.0f}", f"{cost['inference_s']:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
