"""Cases of `vheatir bench hco` and `vheatir bench block`: the operator and one heat block."""

import argparse
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vheatir.bench.published_operator import PublishedConduction
from vheatir.kernels.dct import decay_map
from vheatir.kernels.dispatch import compute_dtype
from vheatir.kernels.ops import heat_conduction, prepare_decay
from vheatir.kernels.reference import hco_reference

BASELINE = "published"
DECAYS = ("network", "uniform")
NETWORK, LAYER = "denoise_color_blind", "groups.0.blocks.0.op"  # whose decays maps of its channels get
REACH = (0.5, 28.0)  # blur lengths in pixels, for all other maps: those between which such networks conduct


@dataclass
class Case:
    """One thing measured: `candidates` by name, each returning tensors by name, which `expected` holds in float64.

    Attributes:
        baseline: the candidate whose time the others' is compared with.
        slack: how many times the tolerance of one operator is allowed, for networks of many layers.
        flops: floating-point operations of a call, by candidate; for the operator those of four dense products.
        traffic: bytes that a call must at least read and write; 0 where nothing is said.
    """

    name: str
    dtype: str
    device: torch.device
    candidates: dict[str, Callable[[], dict[str, Tensor]]]
    expected: dict[str, Tensor]
    about: dict[str, Any] = field(default_factory=dict)
    baseline: str = BASELINE
    slack: float = 1.0
    flops: dict[str, float] = field(default_factory=dict)
    traffic: float = 0.0


def gradients(function: Callable, x: Tensor, decay: Any, cotangent: Tensor) -> dict[str, Tensor]:
    """y and the gradients of <y, cotangent>; the decay's where it asks for one."""
    wanted = {"dx": x} | ({"ddecay": decay} if getattr(decay, "requires_grad", False) else {})
    y = function(x, decay)
    return {"y": y.detach()} | dict(zip(wanted, torch.autograd.grad(y, list(wanted.values()), cotangent), strict=True))


def inference(function: Callable, *inputs: Any) -> dict[str, Tensor]:
    """The value of a function without gradients."""
    with torch.inference_mode():
        return {"y": function(*inputs)}


def network_diffusivities(height: int, width: int, channels: int) -> tuple[Tensor, str]:
    """Diffusivities of a restoration network, (H, W, C) in squared pixels, and what they are.

    For maps of as many channels as the shipped network `NETWORK` has, those of its first heat layer at this size;
    otherwise log-spaced over the channels between the blur lengths `REACH`, the same at all frequencies.
    """
    from vheatir import weights
    from vheatir.backbone.layers.embedding import EmbeddingAt, diffusivities_of_reach

    network, _ = weights.load(NETWORK)
    layer = network.get_submodule(LAYER)
    if layer.dim != channels:
        k = diffusivities_of_reach(REACH, channels).expand(height, width, channels)
        return k, f"network: log-spaced, {REACH[0]:g} to {REACH[1]:g} pixels"
    with torch.no_grad():
        k = layer.diffusivity(EmbeddingAt(network.freq_embed, (height, width), network.resize).tensor())
    return k, f"network: {NETWORK} {LAYER}"


def hco_case(
    shape: tuple[int, int, int, int],
    dtype: str,
    device: torch.device,
    backward: bool,
    forms: tuple[str, ...],
    decays: str = "network",
) -> Case:
    """The operator on contiguous channels-last maps, the decay at hand: forward, or forward and backward.

    With the form "prepared" alone a backward makes the gradient of the maps only, in every candidate. `decays` is
    "network", of `network_diffusivities`, or "uniform": random numbers from 0 to 1.
    """
    generator = torch.Generator().manual_seed(0)
    wide_x = torch.randn(shape, generator=generator, dtype=torch.float64)
    what_decay, wide_decay = "uniform", torch.rand(shape[1:], generator=generator, dtype=torch.float64)
    if decays == "network":
        k, what_decay = network_diffusivities(*shape[1:])
        wide_decay = decay_map(k.to(compute_dtype(getattr(torch, dtype))))
    x, decay = (t.to(device, getattr(torch, dtype)) for t in (wide_x, wide_decay))
    cotangent = torch.randn(shape, generator=generator, dtype=torch.float64).to(x)
    run = (lambda f, *inputs: gradients(f, *inputs, cotangent)) if backward else inference
    trained = backward and "raw" in forms
    prepared = prepare_decay(decay)
    x.requires_grad_(backward), decay.requires_grad_(trained)
    wide = [t.detach().double().requires_grad_(t.requires_grad) for t in (x, decay)]
    expected = gradients(hco_reference, *wide, cotangent.double()) if backward else inference(hco_reference, *wide)
    published = PublishedConduction(shape[1], shape[2], getattr(torch, dtype), device)
    candidates = {BASELINE: lambda: run(published, x, decay)}
    ours = prepared.path.split(":")[0]  # cpu_kernel, cuda or torch
    if "raw" in forms:
        candidates[ours] = lambda: run(heat_conduction, x, decay)
    if "prepared" in forms:
        candidates[f"{ours} prepared"] = lambda: run(heat_conduction, x, prepared)
    what = ("fwd+bwd" if trained else "fwd+bwd of x") if backward else "fwd"
    maps, decays = x.nbytes, decay[..., 0].numel() * shape[3] * compute_dtype(x.dtype).itemsize
    # Forward: x, decay and y. Backward: x or its spectrum, two gradients, the decay and its gradient.
    traffic = 2 * maps + decays + (backward * (2 * maps + decays) + trained * (2 * maps + decays))
    flops = 4 * x.numel() * (shape[1] + shape[2]) * (1 if not backward else 2)
    return Case(
        f"hco {what} {'x'.join(map(str, shape))} {dtype}",
        dtype,
        device,
        candidates,
        expected,
        {"shape": list(shape), "dtype": dtype, "path": prepared.path, "decay": what_decay},
        flops=dict.fromkeys(candidates, flops),
        traffic=traffic,
    )


def hco(options: argparse.Namespace) -> Iterator[Case]:
    """The heat conduction operator."""
    device = torch.device(options.device)
    forms = options.forms or ("raw", "prepared")
    # A backward to a prepared decay does less: it is a case of its own.
    rounds = [(False, tuple(forms))] + ([(True, (form,)) for form in forms] if options.backward else [])
    for dtype in options.dtype:
        for shape in options.shape:
            for backward, chosen in rounds:
                yield hco_case(shape, dtype, device, backward, chosen, options.decay)


def block_case(shape: tuple[int, int, int, int], dtype: str, device: torch.device, backward: bool) -> Case:
    """A heat block with its norms before the branches: inference, or the gradients of maps and embedding too."""
    from vheatir.backbone.layers.freezing import freeze
    from vheatir.backbone.layers.heat import HeatBlock
    from vheatir.bench.published_vheat import PublishedHeatBlock

    _, height, width, channels = shape
    torch.manual_seed(0)
    ours = HeatBlock(channels, post_norm=False)
    published = PublishedHeatBlock(channels, height, width)
    published.load_state_dict(ours.state_dict())
    maps, embedding = torch.randn(shape), torch.randn(height, width, channels)
    cotangent = torch.randn(shape).to(device)
    embedding.requires_grad_(backward)

    def caller(block: torch.nn.Module, first: bool, kind: torch.dtype = torch.float32) -> Callable:
        # Each in its own layout: no candidate pays for a change at its border.
        block = block.to(device, kind)
        block = block.train() if backward else freeze(block)
        x, e = (t.detach().to(device, kind).requires_grad_(backward) for t in (maps, embedding))
        x = x.permute(0, 3, 1, 2).contiguous().detach().requires_grad_(backward) if first else x
        upper = cotangent.to(kind).permute(0, 3, 1, 2) if first else cotangent.to(kind)
        narrow = torch.autocast(
            device.type, getattr(torch, dtype), enabled=kind is torch.float32 and dtype != "float32"
        )

        def forward(x: Tensor, e: Tensor) -> Tensor:
            with narrow:
                return block(x, e)

        def call() -> dict[str, Tensor]:
            found = gradients(forward, x, e, upper) if backward else inference(forward, x, e)
            return {key: one.permute(0, 2, 3, 1) if first and one.ndim == 4 else one for key, one in found.items()}

        return call

    expected = caller(copy.deepcopy(ours), False, torch.float64)()
    candidates = {BASELINE: caller(published, True), "vheatir": caller(ours, False)}
    what = "fwd+bwd" if backward else "fwd"
    name = f"block {what} {'x'.join(map(str, shape))} {dtype}"
    return Case(name, dtype, device, candidates, expected, {"shape": list(shape), "dtype": dtype}, slack=10)


def block(options: argparse.Namespace) -> Iterator[Case]:
    """One heat block."""
    for dtype in options.dtype:
        for shape in options.shape:
            for backward in (False, True) if options.backward else (False,):
                yield block_case(shape, dtype, torch.device(options.device), backward)
