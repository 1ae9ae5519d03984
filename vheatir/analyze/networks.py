"""The networks that `vheatir analyze` looks at, and what it finds of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from vheatir.analyze.figures import save
from vheatir.backbone import create_model, list_models, load_checkpoint
from vheatir.backbone.errors import as_user_error
from vheatir.backbone.models.checkpoint_files import stored_model
from vheatir.backbone.models.create import UNBUILDABLE, said_by
from vheatir.backbone.models.pyramid import Pyramid
from vheatir.errors import UserError
from vheatir.utils import run_metadata
from vheatir.utils.devices import device_named

_NAMES_OF_RUNS = ("best", "best_ema", "latest", "latest_ema")


@dataclass(frozen=True)
class Network:
    """A network to analyze: its name in figures, its arguments, and its weights, None for fresh ones."""

    label: str
    arguments: dict[str, Any]
    weights: Path | None = None

    def build(self, device: torch.device, seed: int, *, fresh: bool = False) -> Pyramid:
        """The network in eval mode.

        Args:
            device: where it is put.
            seed: of fresh weights.
            fresh: leave the weights as they are at the start.

        Raises:
            UserError: it cannot be built, or its weights do not fit.
        """
        torch.manual_seed(seed)
        name = self.arguments["name"]
        left_out = ("name", "grad_checkpointing", *(["pretrained"] if fresh else []))
        given = {key: value for key, value in self.arguments.items() if key not in left_out}
        try:
            model = create_model(name, **given)
        except UNBUILDABLE as error:
            raise UserError(f"{name} cannot be built from {given}: {said_by(error)}") from error
        if not isinstance(model, Pyramid):
            raise UserError(f"{name} is none of this package's backbones: {', '.join(list_models())}")
        if self.weights is not None and not fresh:
            with as_user_error():
                report = load_checkpoint(model, self.weights)
            if report.dropped:
                raise UserError(f"{self.weights}: {report}; set num_classes by --set num_classes=N")
        return model.eval().to(device)


@dataclass(frozen=True)
class Chosen:
    """The networks of an analysis, where they run, and the seed of what is drawn."""

    networks: list[Network]
    device: torch.device
    seed: int

    def build(self, network: Network, *, fresh: bool = False) -> Pyramid:
        """See `Network.build`."""
        return network.build(self.device, self.seed, fresh=fresh)


@dataclass(frozen=True)
class Analysis:
    """What an analysis found: its name, the numbers as plain values, the figures by name, and where it was run."""

    name: str
    content: dict[str, Any]
    figures: dict[str, Figure]
    device: str

    def save(self, folder: str | Path, command: Sequence[str] = ("vheatir.analyze",)) -> list[Path]:
        """Write NAME.json and each figure as PNG and SVG; returns the files."""
        written = [Path(folder) / f"{self.name}.json"]
        run_metadata.prepare_output(written[0])
        metadata = {**run_metadata.run_metadata(command), "device": self.device}
        run_metadata.write_json(written[0], {"metadata": metadata, **self.content})
        for stem, figure in self.figures.items():
            written += save(figure, Path(folder) / stem)
        return written


def choose(
    model: str | Sequence[str],
    weights: str | Path | Sequence[str | Path],
    arguments: Mapping[str, Any],
    device: str | None = None,
    seed: int = 0,
    *,
    all_by_default: bool = False,
) -> Chosen:
    """The networks that are named, each once.

    Args:
        model: name of a backbone, or several.
        weights: path of a file of weights, or several; those that do not say their network belong to `model`.
        arguments: of the networks, in place of those in the files.
        device: torch device; CUDA where there is one by default.
        seed: of fresh weights and what else is drawn.
        all_by_default: take all backbones where nothing is named.

    Raises:
        UserError: none, weights of an unknown network, or names that are none of the weights'.
    """
    model = [model] if isinstance(model, str) else model
    weights = [weights] if isinstance(weights, str | Path) else weights
    if all_by_default and not weights and not model:
        model = list_models()
    found = []
    for path in map(Path, weights):
        with as_user_error():
            described = stored_model(path)
        if "backbone" in described:
            raise UserError(f"{path}: weights of a detector or segmenter; expected those of a classifier")
        described = described or ({"name": model[0]} if len(model) == 1 else {})
        if not described:
            raise UserError(f"{path} does not say which network it belongs to; add --model NAME")
        run = path.absolute().parent.parent.name  # of a path from within the run's folder too
        label = run if run and path.stem in _NAMES_OF_RUNS else path.stem
        found.append(Network(label, {**described, "pretrained": False, **arguments}, path))
    known = {one.arguments["name"] for one in found}
    unused = [name for name in model if found and name not in known]
    if unused:
        raise UserError(
            f"{', '.join(unused)}: the weights belong to {', '.join(sorted(known))}; give either weights or names, or "
            "the one name that weights of other programs belong to"
        )
    if not weights:
        found = [Network(name, {"name": name, **arguments}) for name in model]
    if not found:
        raise UserError("name a network: --model NAME, --weights FILE from `vheatir pretrain`, or both for other files")
    if len({one.label for one in found}) < len(found):
        raise UserError("two networks have one name; the files need other names, or folders of their own")
    return Chosen(found, device_named(device), seed)
