"""Cases of `vheatir bench model` and `vheatir bench restore`: whole networks, against others of their field."""

import argparse
import copy
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vheatir.backbone.layers.freezing import freeze
from vheatir.bench.operator import BASELINE, Case

OURS = "vheatir"
_HEADS = 4  # of SwinIR: 16 channels each at a width of 64; with 8 heads it is slower


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
    """Loss and backward to every parameter; the optimiser, alike for all, is left out."""
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


def _case(name: str, options: argparse.Namespace, dtype: str, networks: dict[str, nn.Module], image: Tensor, **about):
    """A case of networks by name; those in `about["alike"]` share weights and must give the same values."""
    device = torch.device(options.device)
    training, alike = about.pop("training"), about.pop("alike")
    make, narrow = (_training if training else _forward), (None if dtype == "float32" else getattr(torch, dtype))
    expected, candidates, flops = {}, {}, {}
    for candidate, network in networks.items():
        key = "ours" if candidate in alike else candidate
        if candidate not in alike or candidate == OURS:  # the published one cannot be brought to float64
            expected |= make(copy.deepcopy(network).to(device).double(), image.to(device).double(), key, None)()
        flops[candidate] = _flops(network, image) * (3 if training else 1)
        candidates[candidate] = make(network.to(device), image.to(device), key, narrow)
    baseline = next(iter(networks)) if len(networks) > 1 else ""
    details = {"shape": list(image.shape), "dtype": dtype, **about}
    return Case(f"{name} {dtype}", dtype, device, candidates, expected, details, baseline, slack=100, flops=flops)


def model(options: argparse.Namespace) -> Iterator[Case]:
    """The classifier vHeat on square images: inference, or a training step without its optimiser."""
    import timm

    from vheatir.backbone.models.vheat import SIZES, VHeat
    from vheatir.bench.published_vheat import PublishedVHeat

    settings = {**SIZES[options.size], "drop_path_rate": 0.0}
    for dtype in options.dtype:
        for side in options.side:
            torch.manual_seed(0)
            ours, networks = VHeat(img_size=side, **settings), {}
            if options.against == "published":
                arguments = {key: settings[key] for key in ("post_norm", "layer_scale")}
                networks[BASELINE] = PublishedVHeat(side, settings["dims"], settings["depths"], **arguments)
                networks[BASELINE].load_state_dict(ours.state_dict())
            elif options.against == "swin":
                networks["swin"] = timm.create_model(f"swin_{options.size}_patch4_window7_224", img_size=side)
            image = torch.randn(options.batch, 3, side, side)
            for training in (False, True) if options.backward else (False,):
                what = "train step" if training else "fwd"
                name = f"vheat_{options.size} {what} {options.batch}x3x{side}x{side}"
                every = {**networks, OURS: ours}
                yield _case(name, options, dtype, every, image, training=training, alike=(BASELINE, OURS))


def restore(options: argparse.Namespace) -> Iterator[Case]:
    """The restoration network on colour images, against SwinIR of the same width, depth and feature resolution."""
    from vheatir.archs.vheatir_arch import VHeatIR

    for dtype in options.dtype:
        for height, width in options.image:
            torch.manual_seed(0)
            ours, networks = VHeatIR(dim=options.dim, depths=tuple(options.depths)), {}
            nn.init.trunc_normal_(ours.conv_last.weight, std=0.02)  # it starts at zero: nothing would be compared
            if options.against == "swinir":
                networks["swinir"] = _swinir(options.dim, options.depths)
            image = torch.rand(options.batch, 3, height, width)
            name = f"restore fwd {options.batch}x3x{height}x{width}"
            about = {"dim": options.dim, "depths": list(options.depths), "training": False, "alike": (OURS,)}
            yield _case(name, options, dtype, {**networks, OURS: ours}, image, **about)


def _swinir(dim: int, depths: list[int]) -> nn.Module:
    """BasicSR's SwinIR as it denoises: windows of 8, one convolution at a group's end, features at full resolution."""
    from vheatir.archs.swinir_arch import AnySizeSwinIR

    heads = [_HEADS] * len(depths)
    return AnySizeSwinIR(img_size=128, embed_dim=dim, depths=depths, num_heads=heads, mlp_ratio=2.0)
