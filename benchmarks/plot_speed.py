"""Draws PSNR against seconds per megapixel from a result of `speed_networks.py`, and prints its tables in Markdown.

    python benchmarks/plot_speed.py results/speed_networks.json --out docs/images/speed_networks.png

Filled marks: the PSNR was measured with the network that was timed. Hollow ones: the network was timed with random
weights, and the PSNR is that of its paper, for SwinIR of a network of twelve times the size.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

NAMES = {
    "vheatunet": "VHeatUNet (ships)",
    "light": "VHeatIR light (shipped before)",
    "dncnn": "DnCNN",
    "ffdnet": "FFDNet-like",
    "swinir_light": "SwinIR, light size",
}
_MARKS = {"float32": "o", "bf16": "s"}


def points(result: dict[str, Any], threads: int) -> dict[str, list[tuple[str, float, float]]]:
    """Network -> (type, seconds per megapixel, PSNR) of the images of the folder."""
    found: dict[str, list[tuple[str, float, float]]] = {}
    for one in result["results"]:
        if one["case"] == "images" and one["threads"] == threads:
            name, kind = one["network"], one["type"]
            measured = result["psnr"].get(f"{name}/{kind}")
            psnr = measured["psnr"] if measured else result["published"][name][0]
            found.setdefault(name, []).append((kind, one["s_per_megapixel"], psnr))
    return found


def draw(axes: Axes, result: dict[str, Any], threads: int) -> None:
    """One panel."""
    for index, (name, marks) in enumerate(points(result, threads).items()):
        color = f"C{index}"
        axes.plot([one[1] for one in marks], [one[2] for one in marks], color=color, linewidth=1)
        for kind, seconds, psnr in marks:
            face = "none" if name in result["published"] else color
            label = f"{NAMES[name]}, {kind}" + (", published PSNR" if name in result["published"] else "")
            axes.plot(seconds, psnr, _MARKS[kind], color=color, markerfacecolor=face, label=label, linestyle="none")
    axes.set(xscale="log", xlabel="seconds for a megapixel", title=f"{threads} thread{'s' if threads > 1 else ''}")
    axes.grid(alpha=0.3)


def tables(result: dict[str, Any]) -> str:
    """Time and memory of the images, then of the photograph and the folder."""
    lines = ["| network | type | threads | s per megapixel | quartiles apart | peak, MiB | PSNR |", "|---" * 7 + "|"]
    psnrs = {(name, one[0]): one[2] for name, marks in points(result, 1).items() for one in marks}
    for one in result["results"]:
        if one["case"] == "images":
            star = " (published)" if one["network"] in result["published"] else ""
            psnr = f"{psnrs[one['network'], one['type']]:.2f}{star}"
            times = f"{one['s_per_megapixel']:.2f} | {one['iqr_s_per_megapixel']:.2f}"
            start = f"| {NAMES[one['network']]} | {one['type']} | {one['threads']}"
            lines.append(f"{start} | {times} | {one['peak_mib']} | {psnr} |")
    lines += ["", "| what | network | type | threads | megapixels | s | peak, MiB |", "|---" * 7 + "|"]
    for one in (one for one in result["results"] if one["case"] != "images"):
        start = f"| {one['case']} | {NAMES[one['network']]} | {one['type']} | {one['threads']}"
        if "not_run" in one:
            lines.append(f"{start} | | {one['not_run']} | |")
            continue
        seconds = one.get("seconds", one.get("s_per_megapixel", 0) * one["megapixels"])
        lines.append(f"{start} | {one['megapixels']:.1f} | {seconds:.1f} | {one['peak_mib']} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    result = json.loads(arguments.file.read_text(encoding="utf-8"))
    counts = sorted({one["threads"] for one in result["results"] if one["case"] == "images"})
    figure = Figure(figsize=(10, 5.5), layout="constrained")
    panels = figure.subplots(1, len(counts), sharey=True, squeeze=False)[0]
    for axes, threads in zip(panels, counts, strict=True):
        draw(axes, result, threads)
    panels[0].set_ylabel(f"PSNR at sigma {result['sigma']}, dB")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=8)
    figure.savefig(arguments.out, dpi=110)
    print(tables(result))


if __name__ == "__main__":
    main()
