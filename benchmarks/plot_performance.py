"""Draws time and memory against the side of the image, from result files of `vheatir bench`.

    python benchmarks/plot_performance.py benchmarks/results/cpu-amd-epyc/2026-11-21-growth-*.json --out docs/images

Writes one figure for each benchmark found in the files, `performance_<benchmark>.png`, with as many lines as there were
candidates. Sides are square roots of the maps' areas; the slope between the first and the last point is in the legend.
"""

import argparse
import json
import math
from collections import defaultdict
from pathlib import Path

from matplotlib.figure import Figure

LABELS = {
    "published": "published formulation",
    "cpu_kernel": "vHeatIR's kernel",
    "cpu_kernel prepared": "vHeatIR's kernel, decay prepared",
    "swinir": "SwinIR",
    "vheatir": "vHeatIR",
}


def _side(result: dict) -> float:
    """The operator's shapes are (B, H, W, C), those of images (B, C, H, W)."""
    height, width = result["shape"][1:3] if result["case"].startswith(("hco", "block")) else result["shape"][2:]
    return math.sqrt(height * width)


def read(files: list[Path]) -> dict[str, dict[str, list[tuple[float, float, float]]]]:
    """Benchmark -> candidate -> (side, seconds, MiB), by rising side; forward passes only."""
    found: dict = defaultdict(lambda: defaultdict(list))
    for path in files:
        for result in json.loads(path.read_text(encoding="utf-8"))["results"]:
            name = result["case"].split()[0]
            if " fwd " in result["case"]:
                point = _side(result), result["median_us"] / 1e6, result["peak_mib"]
                found[name][result["backend"]].append(point)
    return {name: {who: sorted(points) for who, points in lines.items()} for name, lines in found.items()}


def slope(points: list[tuple[float, float, float]], column: int) -> float:
    """The power of the number of pixels by which a quantity grows, from the first point to the last."""
    first, last = points[0], points[-1]
    return math.log(last[column] / first[column]) / math.log(last[0] / first[0]) / 2


def draw(name: str, lines: dict[str, list[tuple[float, float, float]]], path: Path) -> None:
    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, column, unit in zip(figure.subplots(1, 2), (1, 2), ("time of a forward pass, s", "peak memory, MiB")):
        for candidate, points in lines.items():
            growth = f", N^{slope(points, column):.2f}" if len(points) > 1 else ""
            label = LABELS.get(candidate, candidate) + growth
            axes.plot([p[0] for p in points], [p[column] for p in points], marker="o", label=label)
        sides = sorted({p[0] for points in lines.values() for p in points})
        axes.set(xscale="log", yscale="log", xlabel="side, pixels (N: their number)", ylabel=unit)
        axes.set_xticks(sides, [f"{side:.0f}" for side in sides])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for name, lines in read(options.files).items():
        draw(name, lines, options.out / f"performance_{name}.png")


if __name__ == "__main__":
    main()
