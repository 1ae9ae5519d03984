"""Robustness of networks to shifts, rotations and scales."""

from collections.abc import Callable, Sequence
from pathlib import Path

from vheatir.analyze.figures import invariance_figure
from vheatir.analyze.images import view_batches
from vheatir.analyze.networks import Analysis, Chosen
from vheatir.backbone.analysis.invariance import KINDS, PROTOCOLS, evaluate_views
from vheatir.backbone.errors import as_user_error


def invariance(
    chosen: Chosen,
    *,
    say: Callable[[str], None],
    data: str | Path,
    kinds: Sequence[str] = tuple(KINDS),
    protocol: str = PROTOCOLS[0],
    reader: str = "folder",
    split: str = "val",
    limit: int | None = None,
    batch: int = 8,
    workers: int = 0,
    class_map: str | Path | None = None,
) -> Analysis:
    """Robustness of networks to shifts, rotations and scales, on a labeled set.

    Args:
        chosen: the networks.
        say: called with a line for each network and kind.
        data: folder of the data set.
        kinds: of changes, of `vheatir.backbone.analysis.invariance.KINDS`.
        protocol: of `vheatir.backbone.analysis.invariance.PROTOCOLS`.
        reader: folder, list, zip, tar, torch/NAME or hfds/NAME.
        split: of the data set.
        limit: images, spread over the set; None for all.
        batch: images of a pass.
        workers: processes that read images.
        class_map: file with the names of the classes in the order of their numbers, as `data.class_map` of the run.
    """
    rows = []
    for network in chosen.networks:
        model = chosen.build(network)
        found = {}
        for kind in kinds:
            with as_user_error():
                magnitudes, batches = view_batches(
                    model,
                    kind,
                    str(data),
                    protocol=protocol,
                    reader=reader,
                    split=split,
                    limit=limit,
                    batch=batch,
                    workers=workers,
                    seed=chosen.seed,
                    class_map=None if class_map is None else str(class_map),
                    weights=network.weights,
                )
                found[kind] = {"levels": magnitudes, **evaluate_views(model, batches)}
            consistency = found[kind]["consistency"]
            say(
                f"{network.label:24} {kind:14} same class {consistency[0]:.1f} % at {magnitudes[0]:g}, "
                f"{consistency[-1]:.1f} % at {magnitudes[-1]:g}, mean {sum(consistency) / len(magnitudes):.1f} %"
            )
        rows.append({"network": network.label, "weights": network.weights and str(network.weights), "kinds": found})
    content = {"protocol": protocol, "results": rows}
    return Analysis("invariance", content, {"invariance": invariance_figure(rows)}, str(chosen.device))
