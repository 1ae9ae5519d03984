"""Effective receptive fields of backbones, before and after training."""

from collections.abc import Callable
from pathlib import Path

from vheatir.analyze.figures import receptive_field_figure
from vheatir.analyze.images import image_batches
from vheatir.analyze.networks import Analysis, Chosen
from vheatir.backbone.analysis import receptive_field as measures
from vheatir.backbone.errors import as_user_error
from vheatir.errors import UserError


def receptive_field(
    chosen: Chosen,
    *,
    say: Callable[[str], None],
    images: str | Path | None = None,
    limit: int = 50,
    stage: int = -1,
    batch: int = 8,
    workers: int = 0,
) -> Analysis:
    """Effective receptive fields at the start and, for given weights, after training.

    Args:
        chosen: the networks.
        say: called with a line for each network and state.
        images: folder of images; None for normal noise.
        limit: images.
        stage: whose center is looked at; -1 is the last.
        batch: images of a pass.
        workers: taken for likeness with "invariance"; images are read in this process.
    """
    rows = []
    fields = {}
    for network in chosen.networks:
        states = {"at the start": chosen.build(network, fresh=True)}
        if network.weights is not None or network.arguments.get("pretrained"):
            states["trained"] = chosen.build(network)
        fields[network.label] = {}
        for state, model in states.items():
            count = len(model.depths)
            if not -count <= stage < count:
                raise UserError(f"stage {stage}: {network.label} has the stages 0 to {count - 1}, or -1 for the last")
            number = stage % count
            with as_user_error():
                batches = image_batches(model, None if images is None else Path(images), limit, batch, chosen.seed)
                field = measures.receptive_field(model, batches, number)
            fields[network.label][state] = field.numpy()
            area = {f"{share:g}": measures.area_ratio(field, number, share) for share in measures.SHARES}
            rows.append({"network": network.label, "state": state, "stage": number, "area_ratio": area})
            said = ", ".join(f"{float(share):.0%} within {100 * ratio:.1f} %" for share, ratio in area.items())
            say(f"{network.label:24} {state:14} {said} of the area")
    figure = receptive_field_figure(fields)
    return Analysis("receptive_field", {"results": rows}, {"receptive_field": figure}, str(chosen.device))
