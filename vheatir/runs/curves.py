"""Images of a training run's curves."""

import json
from pathlib import Path

from vheatir.utils.files import atomic_open

# Name of the axis, and endings of the curves' names that belong to it.
_PANELS = {
    "loss": "/loss",
    "top-1 in %": "/top1",
    "average precision in %": ("/box_ap", "/box_ap50", "/mask_ap"),
    "mean IoU in %": "/miou",
    "learning rate": "/lr",
}


def read_curves(folder: Path) -> dict[str, tuple[list[int], list[float]]]:
    """Steps and values of each curve in a run's curves.jsonl."""
    curves: dict[str, tuple[list[int], list[float]]] = {}
    for line in (folder / "curves.jsonl").read_text(encoding="utf-8").splitlines():
        point = json.loads(line)
        step = point.pop("iteration")
        for name, value in point.items():
            steps, values = curves.setdefault(name, ([], []))
            steps.append(step)
            values.append(value)
    return curves


def plot_curves(folder: Path) -> list[Path]:
    """Draw loss, accuracy and learning rate of a run as curves.png and curves.svg beside its curves.jsonl."""
    from matplotlib.figure import Figure

    curves = read_curves(folder)
    panels = {label: [name for name in curves if name.endswith(end)] for label, end in _PANELS.items()}
    panels = {label: names for label, names in panels.items() if names}
    figure = Figure(figsize=(5 * len(panels), 4), layout="constrained")
    for axes, (label, names) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for name in names:
            axes.plot(*curves[name], label=name, marker="." if len(curves[name][0]) < 30 else None)
        axes.set(xlabel="step", ylabel=label)
        axes.grid(alpha=0.3)
        axes.legend()
    written = [folder / "curves.png", folder / "curves.svg"]
    for path in written:
        with atomic_open(path) as file:
            figure.savefig(file, format=path.suffix[1:], dpi=120)
    return written
