"""What heat layers have learned: how far a point of heat spreads, and which frequencies of each channel remain."""

from collections.abc import Iterator

import torch
from torch import Tensor

from vheatir.backbone.models.heat_pyramid import HeatPyramid, heat_layer_of
from vheatir.kernels.dct import decay_map, squared_frequencies
from vheatir.kernels.ops import heat_conduction


def decays(model: HeatPyramid) -> Iterator[tuple[int, int, Tensor]]:
    """Stage, block, and the decay (H, W, C) of the block's heat layer at the network's image size.

    Raises:
        ValueError: a network without heat layers.
    """
    if not isinstance(model, HeatPyramid) or not model.heat_layers():
        raise ValueError("this network has no heat layers; take vheat_* or unified_heat_*")
    for stage in range(len(model.depths)):
        for index, block in enumerate(model.blocks_of(stage)):
            with torch.no_grad():
                layer = heat_layer_of(block)
                if layer.k_exp is not None:
                    decay = layer.k_exp
                elif model.freq_embed is not None:
                    decay = decay_map(layer.diffusivity(model.freq_embed[stage]))
                else:
                    raise ValueError("the network is folded in part; fold or unfold it whole")
            yield stage, index, decay.detach()


def point_response(decay: Tensor) -> Tensor:
    """(H, W, C) maps of what heat conduction makes of one unit of heat at (H // 2, W // 2), in each channel."""
    point = torch.zeros_like(decay)
    point[decay.shape[0] // 2, decay.shape[1] // 2] = 1
    return heat_conduction(point[None], decay)[0]


def spread(response: Tensor) -> Tensor:
    """(C,) root mean square distance, in pixels of the map, of a response's energy from where the point was."""
    height, width = response.shape[:2]
    rows = torch.arange(height, device=response.device) - height // 2
    columns = torch.arange(width, device=response.device) - width // 2
    distance = (rows[:, None] ** 2 + columns[None] ** 2).to(response)[..., None]
    energy = response.square()
    return ((energy * distance).sum((0, 1)) / energy.sum((0, 1))).sqrt()


def mean_diffusivity(decay: Tensor) -> Tensor:
    """(C,) diffusivity k in squared pixels; 0 for maps of one pixel.

    Found from decay = exp(-k (w_h^2 + w_w^2)), which folded networks keep in place of k: the mean over the frequencies
    but 0 whose decay the type of the numbers can tell from zero; where it can for none, the least k that fits.
    """
    if decay.shape[0] * decay.shape[1] == 1:
        return decay.new_zeros(decay.shape[2])
    squared = squared_frequencies(*decay.shape[:2], device=decay.device).flatten()[1:, None]
    least = torch.finfo(decay.dtype).tiny
    remains = decay.double().flatten(0, 1)[1:]
    k = -remains.clamp(min=least).log() / squared
    held = remains >= least  # of the others only a bound is known, which would make the mean too small
    mean = (k * held).sum(0) / held.sum(0)
    return torch.where(held.any(0), mean, k.amax(0))


def quantiles(values: Tensor) -> list[float]:
    """Smallest, quartiles and largest."""
    points = torch.linspace(0, 1, 5, dtype=torch.float64, device=values.device)
    return values.double().quantile(points).tolist()


def describe_layer(decay: Tensor) -> dict[str, list[float]]:
    """Quantiles over the channels of diffusivity k, blur length sqrt(2k), spread and energy that remains."""
    response = point_response(decay)
    k = mean_diffusivity(decay)
    return {
        "map_size": list(decay.shape[:2]),
        "diffusivity_px2": quantiles(k),
        "blur_px": quantiles((2 * k).sqrt()),
        "spread_px": quantiles(spread(response)),
        "energy_kept": quantiles(decay.square().mean((0, 1))),
    }
