"""Cases of `vheatir bench hco` and `vheatir bench block`: the operator and one heat block."""

import copy
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from vheatir import weights
from vheatir.archs.heat_attention import HeatAttention
from vheatir.backbone.layers.embedding import diffusivities_of_reach
from vheatir.backbone.layers.freezing import freeze
from vheatir.backbone.layers.heat import HeatBlock
from vheatir.bench.case import BASELINE, Case, gradients, inference
from vheatir.bench.defaults import BLOCKS, SHAPES
from vheatir.bench.published import PublishedConduction, PublishedHeatBlock
from vheatir.kernels.dct import decay_map
from vheatir.kernels.dispatch import compute_dtype
from vheatir.kernels.ops import heat_conduction, prepare_decay
from vheatir.kernels.reference import hco_reference

# whose decays maps of its channels get
NETWORK = "denoise_color_blind"
REACH = (0.5, 28.0)  # blur lengths in pixels, for all other maps: those between which such networks conduct


def network_diffusivities(height: int, width: int, channels: int) -> tuple[Tensor, str]:
    """Diffusivities of a restoration network, (H, W, C) in squared pixels, and what they are.

    For maps of as many channels as a stage with heat of the shipped network `NETWORK` has (128 or 256), those of the
    first heat attention with so many; otherwise log-spaced over the channels between the blur lengths `REACH`. Both are
    the same at all frequencies.

    Args:
        height: of the maps.
        width: of the maps.
        channels: of the maps.
    """
    network, _ = weights.load(NETWORK)
    for name, layer in network.named_modules():
        if isinstance(layer, HeatAttention) and layer.log_k is not None and len(layer.log_k) == channels:
            return layer.log_k.detach().exp().expand(height, width, channels), f"network: {NETWORK} {name}"
    k = torch.from_numpy(diffusivities_of_reach(REACH, channels)).expand(height, width, channels)
    return k, f"network: log-spaced, {REACH[0]:g} to {REACH[1]:g} pixels"


def hco_case(
    shape: tuple[int, int, int, int],
    dtype: str,
    device: torch.device,
    backward: bool,
    forms: tuple[str, ...],
    decays: str = "network",
) -> Case:
    """The operator on contiguous channels-last maps with a given decay: forward, or forward and backward.

    Args:
        shape: (B, H, W, C).
        dtype: name of torch's type.
        device: where the maps live.
        backward: with the backward too; with the form "prepared" alone it makes the gradient of the maps only, in every
            candidate.
        forms: "raw", "prepared" or both.
        decays: "network", of `network_diffusivities`, or "uniform": random numbers from 0 to 1.
    """
    generator = torch.Generator().manual_seed(0)
    wide_x = torch.randn(shape, generator=generator, dtype=torch.float64)
    what_decay = "uniform"
    wide_decay = torch.rand(shape[1:], generator=generator, dtype=torch.float64)
    if decays == "network":
        k, what_decay = network_diffusivities(*shape[1:])
        wide_decay = decay_map(k.to(compute_dtype(getattr(torch, dtype))))
    x, decay = (t.to(device, getattr(torch, dtype)) for t in (wide_x, wide_decay))
    cotangent = torch.randn(shape, generator=generator, dtype=torch.float64).to(x)
    run = (lambda f, *inputs: gradients(f, *inputs, cotangent)) if backward else inference
    trained = backward and "raw" in forms
    prepared = prepare_decay(decay)
    x.requires_grad_(backward)
    decay.requires_grad_(trained)
    wide = [t.detach().double().requires_grad_(t.requires_grad) for t in (x, decay)]
    expected = gradients(hco_reference, *wide, cotangent.double()) if backward else inference(hco_reference, *wide)
    published = PublishedConduction(shape[1], shape[2], getattr(torch, dtype), device)
    candidates = {BASELINE: lambda: run(published, x, decay)}
    ours = prepared.path.split(":")[0]  # cpu_kernel, cuda or torch
    if "raw" in forms:
        candidates[ours] = lambda: run(heat_conduction, x, decay)
    if "prepared" in forms:
        candidates[f"{ours} prepared"] = lambda: run(heat_conduction, x, prepared)
    what = "fwd"
    if backward:
        what = "fwd+bwd" if trained else "fwd+bwd of x"
    map_bytes = x.nbytes
    decay_bytes = decay.numel() * compute_dtype(x.dtype).itemsize
    # Forward: x, decay and y. Backward: x or its spectrum, two gradients, the decay and its gradient.
    traffic = (2 * map_bytes + decay_bytes) * (1 + backward + trained)
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


def hco(
    *,
    shape: Sequence[tuple[int, int, int, int]] = SHAPES,
    dtype: Sequence[str] = ("float32",),
    device: str = "cpu",
    backward: bool = False,
    forms: Sequence[str] = ("raw", "prepared"),
    decay: str = "network",
) -> Iterator[Case]:
    """The heat conduction operator.

    Args:
        shape: (B, H, W, C) of each case.
        dtype: names of torch's types.
        device: cpu, cuda, cuda:1, ...
        backward: with the backward too.
        forms: "raw", with the decay itself, and "prepared", with a prepared one.
        decay: "network" or "uniform", see `hco_case`.
    """
    # A backward to a prepared decay does less: it is a case of its own.
    rounds = [(False, tuple(forms))] + ([(True, (form,)) for form in forms] if backward else [])
    for kind in dtype:
        for size in shape:
            for with_backward, chosen in rounds:
                yield hco_case(size, kind, torch.device(device), with_backward, chosen, decay)


def block_case(shape: tuple[int, int, int, int], dtype: str, device: torch.device, backward: bool) -> Case:
    """A heat block with its norms before the branches: inference, or the gradients of maps and embedding too.

    Args:
        shape: (B, H, W, C).
        dtype: name of torch's type; others than float32 by autocast.
        device: where the maps live.
        backward: with the backward too.
    """
    _, height, width, channels = shape
    torch.manual_seed(0)
    ours = HeatBlock(channels, post_norm=False)
    published = PublishedHeatBlock(channels, height, width)
    published.load_state_dict(ours.state_dict())
    maps = torch.randn(shape)
    embedding = torch.randn(height, width, channels)
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


def block(
    *,
    shape: Sequence[tuple[int, int, int, int]] = BLOCKS,
    dtype: Sequence[str] = ("float32",),
    device: str = "cpu",
    backward: bool = False,
) -> Iterator[Case]:
    """One heat block.

    Args:
        shape: (B, H, W, C) of each case.
        dtype: names of torch's types.
        device: cpu, cuda, cuda:1, ...
        backward: with the backward too.
    """
    for kind in dtype:
        for size in shape:
            for with_backward in (False, True) if backward else (False,):
                yield block_case(size, kind, torch.device(device), with_backward)
