"""How far heat spreads in each stage of a network, and the learned decay of each channel."""

from collections.abc import Callable

from vheatir.analyze.figures import decay_figure, point_figure
from vheatir.analyze.networks import Analysis, Chosen
from vheatir.backbone.analysis import heat as measures
from vheatir.backbone.errors import as_user_error
from vheatir.errors import UserError

_SHOWN = (0, 0.25, 0.5, 0.75, 1)  # quantiles of the diffusivity whose channels are drawn


def heat(chosen: Chosen, *, say: Callable[[str], None]) -> Analysis:
    """How far a point of heat spreads in each stage, and the learned decay of each channel.

    Args:
        chosen: the networks.
        say: hears nothing here; every analysis takes it.
    """
    content = []
    drawn = {}
    for network in chosen.networks:
        layers = []
        points = {}
        decays = []
        with as_user_error():
            everything = list(measures.decays(chosen.build(network)))
        for stage, block, decay in everything:
            decay = decay.float().cpu()
            layers.append({"stage": stage, "block": block, **measures.describe_layer(decay)})
            if decay.shape[0] * decay.shape[1] == 1:
                continue  # a map of one pixel has nowhere to conduct to
            diffusivity = measures.mean_diffusivity(decay)
            order = diffusivity.argsort()
            channels = [order[round(part * (len(order) - 1))].item() for part in _SHOWN]
            response = measures.point_response(decay).numpy()
            blur = (2 * diffusivity).sqrt()
            maps = [(f"blur {blur[one]:.2f} px", response[..., one]) for one in channels]
            points[f"stage {stage}"] = [*maps, ("mean of channels", response.mean(2))]  # that of the last block stays
            decays.append((f"stage {stage}, block {block}", decay[:, 0, order].numpy()))
        if not points:
            raise UserError(f"{network.label}: all of its maps are of one pixel; --set img_size=N gives it larger ones")
        end = "" if len(chosen.networks) == 1 else f"_{network.label}"
        drawn[f"heat_points{end}"] = point_figure(list(points.items()))
        drawn[f"heat_decay{end}"] = decay_figure(decays, columns=min(4, len(decays)))
        content.append({"network": network.label, "layers": layers})
    return Analysis("heat", {"results": content}, drawn, str(chosen.device))
