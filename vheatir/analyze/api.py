"""`vheatir.analyze`: what backbones cost, see, conduct and are robust to, as numbers and figures.

Each kind of analysis is one function, in the module that `ANALYSES` names; the measuring is in
`vheatir.backbone.analysis`, the drawing in `vheatir.analyze.figures`.
"""

import importlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vheatir.errors import UserError

if TYPE_CHECKING:  # these need packages of an extra, whose absence `analyze` says first
    from vheatir.analyze.networks import Analysis

# Name -> module with the function, its name, what it does.
ANALYSES = {
    "cost": (
        "vheatir.analyze.cost",
        "cost",
        "Parameters and multiply-accumulates of networks, and where measured their speed and memory.",
    ),
    "heat": (
        "vheatir.analyze.heat",
        "heat",
        "How far a point of heat spreads in each stage, and the learned decay of each channel.",
    ),
    "invariance": (
        "vheatir.analyze.invariance",
        "invariance",
        "Robustness of networks to shifts, rotations and scales, on a labeled set.",
    ),
    "receptive-field": (
        "vheatir.analyze.receptive_field",
        "receptive_field",
        "Effective receptive fields at the start and, for given weights, after training.",
    ),
}
_NEEDED = ("timm", "torchvision", "matplotlib")


def analyze(
    analysis: str,
    *,
    model: str | Sequence[str] = (),
    weights: str | Path | Sequence[str | Path] = (),
    arguments: Mapping[str, Any] | None = None,
    device: str | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    say: Callable[[str], None] | None = None,
    **options: Any,
) -> "Analysis":
    """Analyze backbones.

    Args:
        analysis: "cost", "heat", "invariance" or "receptive-field".
        model: name of a backbone, or several, with random weights; or the one that `weights` of other programs belong
            to.
        weights: trained weights of `vheatir pretrain`, or other files; a path or several. "cost" takes all backbones
            where none is named.
        arguments: of the networks, such as {"img_size": 64}.
        device: torch device; by default CUDA where there is one.
        seed: of random weights and directions.
        out: folder for the numbers as JSON and the figures as PNG and SVG; None writes nothing.
        say: called with lines of results as they come.
        **options: of the analysis: see `vheatir.analyze.cost.cost`, `vheatir.analyze.invariance.invariance`,
            `vheatir.analyze.receptive_field.receptive_field`; "heat" has none.

    Returns:
        The numbers and figures; `Analysis.save` writes them.

    Raises:
        UserError: an unknown analysis, networks that cannot be built, or missing packages.
    """
    if analysis not in ANALYSES:
        raise UserError(f"unknown analysis {analysis!r}; known: {', '.join(ANALYSES)}")
    require_packages()
    from vheatir.analyze.networks import choose

    module, name, _ = ANALYSES[analysis]
    chosen = choose(model, weights, arguments or {}, device, seed, all_by_default=analysis == "cost")
    result = getattr(importlib.import_module(module), name)(chosen, say=say or (lambda _text: None), **options)
    if out is not None:
        result.save(out)
    return result


def require_packages() -> None:
    """UserError where packages of the extra `backbone` are missing."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"vheatir analyze needs {', '.join(missing)}; run: pip install 'vheatir[backbone]'")
