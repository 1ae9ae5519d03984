"""Figures of `vheatir analyze`: each function draws one from numbers; `save` writes it as PNG and SVG."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from vheatir.utils.files import atomic_open, in_figure

_AXES = {"translation": "shift in pixels", "pre_rotation": "degrees, rotated before the crop"}
_AXES |= {"post_rotation": "degrees, rotated after the crop", "scale": "side of the crop over that of the image"}


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write stem.png and stem.svg; a dot within the stem, as in the name of a run, begins no suffix."""
    written = [stem.with_name(f"{stem.name}{suffix}") for suffix in (".png", ".svg")]
    for path in written:
        with atomic_open(path) as file:
            figure.savefig(file, format=path.suffix[1:], dpi=110)
    return written


def _panels(rows: int, columns: int, width: float, height: float) -> tuple[Figure, np.ndarray]:
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def invariance_figure(results: Sequence[Mapping[str, Any]]) -> Figure:
    """Consistency and accuracy of each network over the magnitudes of each kind of change."""
    kinds = list(results[0]["kinds"])
    figure, panels = _panels(2, len(kinds), 3.6, 2.8)
    for column, kind in enumerate(kinds):
        for row, (name, label) in enumerate((("consistency", "same class, %"), ("acc1", "top-1, %"))):
            axes = panels[row, column]
            for one in results:
                found = one["kinds"][kind]
                axes.plot(found["levels"], found[name], label=in_figure(one["network"]), marker=".")
            axes.set(ylabel=label if column == 0 else None, xlabel=_AXES[kind] if row else None, ylim=(0, 101))
            axes.grid(alpha=0.3)
    panels[0, 0].legend(fontsize="small")
    return figure


def receptive_field_figure(fields: Mapping[str, Mapping[str, np.ndarray]]) -> Figure:
    """One column for each network, one row for each state; each image divided by its largest value, logarithmic."""
    rows = list(next(iter(fields.values())))
    figure, panels = _panels(len(rows), len(fields), 2.0, 2.2)
    for column, (network, states) in enumerate(fields.items()):
        panels[0, column].set_title(in_figure(network), fontsize="small")
        for row, (state, field) in enumerate(states.items()):
            axes = panels[row, column]
            shown = axes.imshow(np.maximum(field / field.max(), 1e-4), norm=LogNorm(1e-4, 1), cmap="magma")
            axes.set(xticks=[], yticks=[], ylabel=state if column == 0 else None)
    figure.colorbar(shown, ax=panels, shrink=0.8, label="gradient over its largest")
    return figure


def point_figure(rows: Sequence[tuple[str, Sequence[tuple[str, np.ndarray]]]]) -> Figure:
    """One row for each stage, one column for each channel shown: the response to a point, over its largest value."""
    figure, panels = _panels(len(rows), max(len(maps) for _, maps in rows), 2.1, 2.2)
    for row, (name, maps) in enumerate(rows):
        for column, (title, response) in enumerate(maps):
            axes = panels[row, column]
            limit = np.abs(response).max()
            shown = axes.imshow(response / limit, cmap="RdBu_r", vmin=-1, vmax=1)
            axes.set(xticks=[], yticks=[], ylabel=name if column == 0 else None)
            axes.set_title(title, fontsize="small")
    figure.colorbar(shown, ax=panels, shrink=0.6, label="response over its largest")
    return figure


def decay_figure(rows: Sequence[tuple[str, np.ndarray]], columns: int) -> Figure:
    """What remains of each frequency along the vertical axis, channels sorted: (frequencies, C) for each layer."""
    figure, panels = _panels(-(-len(rows) // columns), columns, 3.2, 2.4)
    for axes in panels.flat[len(rows) :]:
        axes.set_axis_off()
    for axes, (name, decay) in zip(panels.flat, rows, strict=False):
        extent = (0, decay.shape[1], 1, 0)
        shown = axes.imshow(decay, aspect="auto", cmap="viridis", vmin=0, vmax=1, extent=extent, interpolation="none")
        axes.set_title(name, fontsize="small")
    for axes in panels[-1]:
        axes.set_xlabel("channel, by diffusivity")
    for axes in panels[:, 0]:
        axes.set_ylabel("frequency / pi")
    figure.colorbar(shown, ax=panels, shrink=0.8, label="decay")
    return figure


def _family(network: str) -> str:
    return network.rpartition("_")[0] or network


def cost_figure(results: Sequence[Mapping[str, Any]]) -> Figure:
    """Parameters against multiply-accumulates; speed where it was measured."""
    timed = [one for one in results if "inference" in one]
    figure, panels = _panels(1, 2 if timed else 1, 7, 0.22 * len(results) + 3)
    families = sorted({_family(one["network"]) for one in results})
    for number, family in enumerate(families):
        group = [one for one in results if _family(one["network"]) == family]
        points = [(one["macs"]["total"] / 1e9, one["parameters"]["total"] / 1e6) for one in group]
        panels[0, 0].plot(*zip(*points, strict=True), marker="o", label=in_figure(family), color=f"C{number}")
    panels[0, 0].set(xlabel="GMACs of an image", ylabel="million parameters, form for training")
    panels[0, 0].grid(alpha=0.3)
    panels[0, 0].legend(fontsize="small")
    if timed:
        axes = panels[0, 1]
        axes.barh([in_figure(one["network"]) for one in timed], [one["inference"]["images_per_s"] for one in timed])
        axes.invert_yaxis()
        axes.set(xlabel="images a second, inference", xscale="log")
        axes.grid(alpha=0.3, axis="x")
    return figure
