"""What a classifier costs: parameters, multiply-accumulates, images per second."""

import copy
import statistics
import time
from itertools import pairwise

import torch
from torch import Tensor, nn

from vheatir.backbone.analysis.cost import count_macs, count_parameters
from vheatir.backbone.layers.freezing import freeze
from vheatir.backbone.models.heat_pyramid import HeatPyramid
from vheatir.backbone.models.pyramid import Pyramid


def folded_copy(model: nn.Module) -> nn.Module | None:
    """A copy in the folded form, on the CPU; None for networks that have none."""
    if not isinstance(model, HeatPyramid) or not model.heat_layers():
        return None
    network = copy.deepcopy(model).cpu().eval()
    return network if network.folded else network.fold()


def describe(model: nn.Module, size: tuple[int, int]) -> dict:
    """Parameters and multiply-accumulates with those of the transforms: "training" form and folded one, "merged"."""
    forms = {"training": model, "merged": folded_copy(model)}
    report = {}
    for form, network in forms.items():
        if network is not None:
            macs = count_macs(network, size) if isinstance(network, Pyramid) else None
            report[form] = {"parameters": count_parameters(network), "macs": macs}
    return report


def throughput(model: nn.Module, images: Tensor, warmup: int = 50, passes: int = 30) -> dict[str, float]:
    """Images per second and peak memory of the folded form on one batch, without autocast.

    The published protocol: `warmup` passes, then `passes` timed together. The median pass is given too.

    Args:
        model: in any form; it is frozen for the measurement.
        images: (N, C, H, W), on the model's device.
        warmup: passes that are not timed.
        passes: timed passes.
    """
    device = images.device
    network = freeze((folded_copy(model) or model).to(device))
    cuda = device.type == "cuda"
    with torch.no_grad():
        for _ in range(warmup):
            network(images)
        if cuda:
            torch.cuda.reset_peak_memory_stats()
            torch.cuda.synchronize()
        marks = [time.perf_counter()]
        for _ in range(passes):
            network(images)
            if not cuda:  # waiting for each pass would slow a GPU down
                marks.append(time.perf_counter())
        if cuda:
            torch.cuda.synchronize()
            marks.append(time.perf_counter())
    seconds = marks[-1] - marks[0]
    result = {"images_per_s": passes * len(images) / seconds, "batch": len(images), "passes": passes}
    if cuda:
        return {**result, "peak_mib": torch.cuda.max_memory_allocated() / 2**20}
    laps = [after - before for before, after in pairwise(marks)]
    return {**result, "median_pass_s": statistics.median(laps)}
