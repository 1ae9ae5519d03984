"""What one network costs: counted, and measured on the device at hand."""

import argparse
from typing import Any

import torch

from vheatir.analyze.networks import Network, device_of
from vheatir.backbone.analysis.cost import count_macs, count_parameters
from vheatir.backbone.layers.freezing import freeze
from vheatir.backbone.models.heat_pyramid import HeatPyramid
from vheatir.utils.timing import interleave, peak_mib


def measured(network: Network, arguments: argparse.Namespace) -> dict[str, Any]:
    """Parameters and multiply-accumulates, merged form too; with `rounds`, speed and peak memory of passes.

    Inference is that of the merged form. On a CPU seconds are those of the processor, of all threads together.
    """
    device, size = device_of(arguments), arguments.img_size
    network.arguments = {"img_size": size, **network.arguments}
    model = network.build(arguments)
    row = {"network": network.label, "parameters": count_parameters(model), "macs": count_macs(model, size)}
    images = torch.randn(arguments.batch, model.in_chans, size, size, device=device)

    def train() -> None:
        model.zero_grad(set_to_none=True)
        model(images).square().mean().backward()

    def infer() -> torch.Tensor:
        with torch.no_grad():
            return model(images)

    if arguments.rounds:
        row["training"] = _speed(train, model.train(), arguments)
        model.zero_grad(set_to_none=True)
    model.eval()
    if isinstance(model, HeatPyramid) and model.heat_layers() and not model.folded:
        model.fold()
        row["merged"] = {"parameters": count_parameters(model), "macs": count_macs(model, size)}
    if arguments.rounds:
        row["inference"] = _speed(infer, freeze(model), arguments)
    return row


def _speed(act, model: torch.nn.Module, arguments: argparse.Namespace) -> dict[str, float]:
    device = device_of(arguments)
    clock = "wall" if device.type == "cuda" else "cpu"
    (timing,) = interleave({"": act}, device, rounds=max(arguments.rounds, 2), warmup=1, clock=clock).values()
    return {
        "images_per_s": arguments.batch / timing.median_us * 1e6,
        "clock": clock,
        "median_us": timing.median_us,
        "iqr_us": timing.iqr_us,
        "peak_mib": peak_mib(act, device),
        "weights_mib": sum(p.nbytes for p in model.parameters()) / 2**20,
    }
