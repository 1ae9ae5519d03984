"""Cases of whole networks: how they are run, trained and compared, for `bench model` and `bench restore`."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vheatir.backbone.layers.freezing import freeze
from vheatir.bench.case import Case

OURS = "vheatir"


def _flops(network: nn.Module, image: Tensor) -> float:
    """Operations of products and convolutions in a forward pass, counted without doing them; HCO's do not count."""
    shadow = copy.deepcopy(network).to("meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        shadow(image.to("meta"))
    return float(counter.get_total_flops())


def _forward(network: nn.Module, image: Tensor, key: str, narrow: torch.dtype | None) -> Callable:
    freeze(network)

    def call() -> dict[str, Tensor]:
        with torch.inference_mode(), torch.autocast(image.device.type, narrow, enabled=narrow is not None):
            return {key: network(image)}

    return call


def _training(network: nn.Module, image: Tensor, key: str, narrow: torch.dtype | None) -> Callable:
    """Loss and backward to every parameter; the optimizer, alike for all, is left out."""
    network.train()
    labels = torch.arange(len(image), device=image.device)

    def call() -> dict[str, Tensor]:
        network.zero_grad(set_to_none=True)
        with torch.autocast(image.device.type, narrow, enabled=narrow is not None):
            loss = F.cross_entropy(network(image).float() if narrow else network(image), labels)
        loss.backward()
        gradient = torch.cat([one.grad.flatten() for one in network.parameters() if one.grad is not None][:4])
        return {f"{key} loss": loss.detach(), f"{key} gradient": gradient}

    return call


def network_case(
    name: str,
    networks: dict[str, nn.Module],
    image: Tensor,
    *,
    dtype: str,
    device: str,
    training: bool,
    alike: Sequence[str],
    about: dict[str, Any] | None = None,
) -> Case:
    """A case of networks.

    Args:
        name: of the case.
        networks: by name; the first is the baseline where there are several.
        image: input (B, C, H, W).
        dtype: name of torch's type; others than float32 by autocast.
        device: where the networks run.
        training: loss and backward instead of inference.
        alike: names of networks that share weights and must give the same values.
        about: goes into the results.
    """
    place = torch.device(device)
    make = _training if training else _forward
    narrow = None if dtype == "float32" else getattr(torch, dtype)
    expected = {}
    candidates = {}
    flops = {}
    for candidate, network in networks.items():
        key = "ours" if candidate in alike else candidate
        if candidate not in alike or candidate == OURS:  # the published one cannot be brought to float64
            expected |= make(copy.deepcopy(network).to(place).double(), image.to(place).double(), key, None)()
        flops[candidate] = _flops(network, image) * (3 if training else 1)
        candidates[candidate] = make(network.to(place), image.to(place), key, narrow)
    return Case(
        f"{name} {dtype}",
        dtype,
        place,
        candidates,
        expected,
        {"shape": list(image.shape), "dtype": dtype, **(about or {})},
        baseline=next(iter(networks)) if len(networks) > 1 else "",
        slack=100,
        flops=flops,
    )
