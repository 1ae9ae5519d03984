"""Networks that the command line of `vheatir analyze` names."""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError, safe_open

from vheatir.backbone import create_model, list_models, load_checkpoint
from vheatir.backbone.errors import as_user_error
from vheatir.backbone.models.pyramid import Pyramid
from vheatir.errors import UserError

_NAMES_OF_RUNS = ("best", "best_ema", "latest", "latest_ema")


@dataclass
class Network:
    """A network to look at: its name in figures, its arguments, and its weights, None for fresh ones."""

    label: str
    arguments: dict[str, Any]
    weights: Path | None = None

    def build(self, arguments: argparse.Namespace, *, fresh: bool = False) -> Pyramid:
        """The network in eval mode on the device; `fresh` leaves its weights as they are at the start."""
        torch.manual_seed(arguments.seed)
        name = self.arguments["name"]
        given = {key: value for key, value in self.arguments.items() if key not in ("name", "grad_checkpointing")}
        try:
            model = create_model(name, **given)
        except (RuntimeError, TypeError, ValueError) as error:
            raise UserError(f"{name} cannot be built from {given}: {error}") from error
        if not isinstance(model, Pyramid):
            raise UserError(f"{name} is none of this package's backbones: {', '.join(list_models())}")
        if self.weights is not None and not fresh:
            with as_user_error():
                report = load_checkpoint(model, self.weights)
            if report.dropped:
                raise UserError(f"{self.weights}: {report}; set num_classes by --set num_classes=N")
        return model.eval().to(device_of(arguments))


def device_of(arguments: argparse.Namespace) -> torch.device:
    """CUDA where there is one, unless the user asks for another device."""
    return torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))


def _described(path: Path) -> dict[str, Any]:
    """The model's arguments that `vheatir pretrain` writes into its weights; {} for other files."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; give weights as .safetensors or .pth")
    if path.suffix != ".safetensors":
        return {}
    try:
        with safe_open(path, "pt") as file:
            return json.loads((file.metadata() or {}).get("model", "{}"))
    except (SafetensorError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: not a whole .safetensors file ({error})") from error


def networks(arguments: argparse.Namespace) -> list[Network]:
    """The networks that the command line names, each once.

    Raises:
        UserError: none, or weights of an unknown network.
    """
    changes = {}
    for change in arguments.set:
        key, equals, value = change.partition("=")
        if not equals:
            raise UserError(f"--set {change}: expected KEY=VALUE, such as --set img_size=64")
        changes[key] = yaml.safe_load(value)
    found = []
    for path in arguments.weights:
        described = _described(path) or ({"name": arguments.model[0]} if len(arguments.model) == 1 else {})
        if not described:
            raise UserError(f"{path} does not say which network it belongs to; add --model NAME")
        label = path.parent.parent.name if path.stem in _NAMES_OF_RUNS else path.stem
        found.append(Network(label, {**described, "pretrained": False, **changes}, path))
    if not arguments.weights:
        found = [Network(name, {"name": name, **changes}) for name in arguments.model]
    if not found:
        raise UserError("name a network: --model NAME, --weights FILE from `vheatir pretrain`, or both for other files")
    if len({one.label for one in found}) < len(found):
        raise UserError("two networks have one name; the files need other names, or folders of their own")
    return found
