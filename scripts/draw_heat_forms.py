"""Draws docs/images/heat_forms.svg: what becomes of a point of heat in each form of the operator.

python scripts/draw_heat_forms.py docs/images/heat_forms.svg
"""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch

from vheatir.kernels.diffusion.ops import diffuse
from vheatir.kernels.diffusion.tensor import diffuse_tensor

SIDE = 33
PLACE = (8, 11)  # near a corner, so that the boundary shows


def point() -> torch.Tensor:
    x = torch.zeros(1, SIDE, SIDE, 1, dtype=torch.float64)
    x[0, PLACE[0], PLACE[1]] = 1
    return x


def planes() -> dict[str, torch.Tensor]:
    """Title -> (H, W) of each form in two dimensions."""
    turned = torch.tensor([[14.0, 8.0], [8.0, 10.0]], dtype=torch.float64)
    forms = {
        "insulated": diffuse(point(), 12.0),
        "zero": diffuse(point(), 12.0, boundary="zero"),
        "periodic": diffuse(point(), 12.0, boundary="periodic"),
        "k = (3, 30)": diffuse(point(), (3.0, 30.0)),
        "rotated, insulated": diffuse_tensor(point(), turned, steps=4),
        "rotated, periodic": diffuse_tensor(point(), turned, boundary="periodic"),
    }
    return {title: maps[0, ..., 0] for title, maps in forms.items()}


def draw(target: Path) -> None:
    figure, axes = plt.subplots(4, 4, figsize=(10, 10.1), layout="constrained")
    *spots, line, _ = [axes[row, column] for row in range(2) for column in range(4)]
    for spot, (title, plane) in zip(spots, planes().items(), strict=True):
        spot.imshow(plane.clamp(min=0).sqrt(), cmap="inferno", interpolation="nearest")
        spot.set_title(title, fontsize=9)
    signal = torch.zeros(1, SIDE, 1, dtype=torch.float64)
    signal[0, PLACE[0]] = 1
    for boundary in ("insulated", "zero", "periodic"):
        line.plot(diffuse(signal, 12.0, boundary=boundary)[0, :, 0], label=boundary)
    line.set_title("one dimension, k = 12", fontsize=9)
    line.legend(fontsize=7)
    two = diffuse(torch.cat((point(), point())), torch.tensor([[3.0], [40.0]], dtype=torch.float64))
    axes[1, 3].imshow(
        torch.cat((two[0], two[1]), 1)[..., 0].clamp(min=0).sqrt(), cmap="inferno", interpolation="nearest"
    )
    axes[1, 3].set_title("k of each image: 3 and 40", fontsize=9)
    clip = torch.zeros(1, 4, SIDE, SIDE, 1, dtype=torch.float64)
    clip[0, 1, PLACE[0], PLACE[1]] = 1
    draw_clip(axes[2], diffuse(clip, (0.5, 12.0, 12.0)), "k = (0.5, 12, 12)")
    moving = torch.tensor([[3.0, 0.5, 2.4], [0.5, 8.0, 0.5], [2.4, 0.5, 8.0]], dtype=torch.float64)
    draw_clip(axes[3], diffuse_tensor(clip, moving, steps=4), "3 x 3, rotated")
    for spot in axes.flat:
        if spot is not line:
            spot.set_xticks([])
            spot.set_yticks([])
    figure.savefig(target, metadata={"Date": None} if target.suffix == ".svg" else None)


def draw_clip(axes, maps: torch.Tensor, title: str) -> None:
    """The frames of maps (1, T, H, W, 1), on one scale."""
    frames = maps[0, ..., 0].clamp(min=0).sqrt()
    for number, (spot, frame) in enumerate(zip(axes, frames, strict=True)):
        spot.imshow(frame, cmap="inferno", vmin=0, vmax=frames.max(), interpolation="nearest")
        spot.set_title(f"{title}, frame {number} of {len(frames)}", fontsize=9)


if __name__ == "__main__":
    draw(Path(sys.argv[1]))
