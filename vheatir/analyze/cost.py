"""What networks cost: counted, and measured on the device."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from vheatir.analyze.figures import cost_figure
from vheatir.analyze.networks import Analysis, Chosen, Network
from vheatir.backbone.analysis.cost import count_macs, count_parameters
from vheatir.backbone.layers.freezing import freeze
from vheatir.backbone.models.heat_pyramid import HeatPyramid
from vheatir.utils.timing import interleave, peak_mib


def cost(
    chosen: Chosen, *, say: Callable[[str], None], img_size: int = 224, batch: int = 8, rounds: int = 5
) -> Analysis:
    """Parameters and multiply-accumulates of networks, and where measured their speed and memory.

    Args:
        chosen: the networks.
        say: called with a line for each network.
        img_size: side of the images in pixels, of networks whose arguments and weights state none.
        batch: images of a measured pass.
        rounds: measured passes; 0 to count only.
    """
    rows = []
    for network in chosen.networks:
        rows.append(measured(network, chosen, img_size, batch, rounds))
        say(_line(rows[-1]))
    return Analysis("cost", {"img_size": img_size, "results": rows}, {"cost": cost_figure(rows)}, str(chosen.device))


def _line(row: dict[str, Any]) -> str:
    text = f"{row['network']:24} {row['parameters']['total'] / 1e6:7.2f} M {row['macs']['total'] / 1e9:8.3f} GMACs"
    if "merged" in row:
        counts = row["merged"]
        text += f" (merged {counts['parameters']['trainable'] / 1e6:.2f} M, {counts['macs']['total'] / 1e9:.3f} GMACs)"
    for kind in ("inference", "training"):
        if kind in row:
            text += f", {kind} {row[kind]['images_per_s']:.2f} images/s and {row[kind]['peak_mib']:.0f} MiB"
    return text


def measured(network: Network, chosen: Chosen, size: int, batch: int, rounds: int) -> dict[str, Any]:
    """Parameters and multiply-accumulates, of the folded form too; with rounds, speed and peak memory of passes.

    Inference is that of the folded form. On a CPU seconds are those of the processor, of all threads together.

    Args:
        network: one of the chosen.
        chosen: says where it runs.
        size: side of the images in pixels, unless the network's arguments or weights state its own.
        batch: images of a measured pass.
        rounds: measured passes; 0 to count only.
    """
    network = replace(network, arguments={"img_size": size, **network.arguments})
    model = chosen.build(network)
    own_size = model.img_size
    row = {"network": network.label, "img_size": list(own_size)}
    row |= {"parameters": count_parameters(model), "macs": count_macs(model, own_size)}
    images = torch.randn(batch, model.in_chans, *own_size, device=chosen.device)

    def train() -> None:
        model.zero_grad(set_to_none=True)
        model(images).square().mean().backward()

    def infer() -> torch.Tensor:
        with torch.no_grad():
            return model(images)

    if rounds:
        row["training"] = _speed(train, model.train(), chosen.device, batch, rounds)
        model.zero_grad(set_to_none=True)
    model.eval()
    if isinstance(model, HeatPyramid) and model.heat_layers() and not model.folded:
        model.fold()
        row["merged"] = {"parameters": count_parameters(model), "macs": count_macs(model, own_size)}
    if rounds:
        row["inference"] = _speed(infer, freeze(model), chosen.device, batch, rounds)
    return row


def _speed(
    act: Callable[[], object], model: torch.nn.Module, device: torch.device, batch: int, rounds: int
) -> dict[str, float | str]:
    clock = "wall" if device.type == "cuda" else "cpu"
    (timing,) = interleave({"": act}, device, rounds=max(rounds, 2), warmup=1, clock=clock).values()
    return {
        "images_per_s": batch / timing.median_us * 1e6,
        "clock": clock,
        "median_us": timing.median_us,
        "iqr_us": timing.iqr_us,
        "peak_mib": peak_mib(act, device),
        "weights_mib": sum(p.nbytes for p in model.parameters()) / 2**20,
    }
