"""What an options file names, built: datasets, checked image by image, and the model; errors name the file."""

import difflib
import inspect
from pathlib import Path
from typing import Any

import torch

from vheatir.errors import UserError
from vheatir.options import check_dataset_keys

TASKS = {"GaussianNoiseDataset": "denoise", "JPEGDataset": "jpeg", "PairedDataset": "paired"}


def complete_options(path: Path, options: dict[str, Any], is_train: bool) -> dict[str, Any]:
    """Fill in what BasicSR's model reads besides the file: device count, single process, phase."""
    gpus = options.get("num_gpu", "auto")
    if gpus not in ("auto", 0, 1):
        raise UserError(f"{path}: num_gpu must be auto, 0 or 1 (several processes are not supported yet), got {gpus!r}")
    if gpus == 1 and not torch.cuda.is_available():
        raise UserError(f"{path}: num_gpu is 1, but torch sees no CUDA device; set num_gpu: auto or 0")
    options["num_gpu"] = int(torch.cuda.is_available()) if gpus == "auto" else gpus
    options.update(is_train=is_train, dist=False, rank=0, world_size=1, scale=options.get("scale", 1))
    options.setdefault("manual_seed", 0)
    return options


def build_datasets(path: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Datasets by phase, each checked image by image.

    Raises:
        UserError: unknown type or key, missing folder, unusable images (all listed).
    """
    from basicsr.utils.registry import DATASET_REGISTRY

    datasets = {}
    for phase, table in options["datasets"].items():
        kind = DATASET_REGISTRY.get(table["type"]) if table["type"] in DATASET_REGISTRY else None
        if not hasattr(kind, "OPTIONS"):  # the stock ones cannot say what sample n is, so that no run could resume
            expected = ", ".join(TASKS)
            raise UserError(f"{path}: datasets.{phase}.type must be one of {expected}, got {table['type']!r}")
        check_dataset_keys(path, phase, table, kind.OPTIONS)
        arguments = {"seed": options["manual_seed"], **table, "phase": phase.split("_")[0]}
        arguments.setdefault("in_chans", options["network_g"].get("in_chans", 3))
        try:
            datasets[phase] = kind(arguments)
            datasets[phase].check()
        except UserError as error:
            raise UserError(f"{path}: datasets.{phase}: {error}") from error
    return datasets


def _check_arguments(path: Path, section: str, table: dict[str, Any], registry) -> None:
    """Refuse an unknown type and arguments that it does not take."""
    if table["type"] not in registry:
        close = difflib.get_close_matches(table["type"], registry.keys(), n=3, cutoff=0.3) or sorted(registry.keys())
        raise UserError(f"{path}: {section}.type: unknown {table['type']!r}; did you mean {', '.join(close)}?")
    known = inspect.signature(registry.get(table["type"])).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
        return
    unknown = sorted(str(key) for key in table if key != "type" and key not in known)
    if unknown:
        names = ", ".join(known)
        raise UserError(f"{path}: unknown key {section}.{unknown[0]} for {table['type']}; known: {names}")


def build_model(path: Path, options: dict[str, Any]):
    """The model that `model_type` names, with errors that name the file."""
    from basicsr.models import build_model as build
    from basicsr.utils import logger as basicsr_logger
    from basicsr.utils.registry import ARCH_REGISTRY, LOSS_REGISTRY, MODEL_REGISTRY

    from vheatir.models.vheatir_model import VHeatIRModel

    basicsr_logger.initialized_logger.setdefault("basicsr", True)  # our log has what it would print
    kind = options["model_type"]
    if kind not in MODEL_REGISTRY or not issubclass(MODEL_REGISTRY.get(kind), VHeatIRModel):
        raise UserError(f"{path}: model_type must be VHeatIRModel, which trains any network_g, got {kind!r}")
    _check_arguments(path, "network_g", options["network_g"], ARCH_REGISTRY)
    if options["is_train"]:
        _check_arguments(path, "train.pixel_opt", options["train"]["pixel_opt"], LOSS_REGISTRY)
    try:
        return build(options)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (KeyError, TypeError, ValueError, AssertionError, NotImplementedError) as error:
        raise UserError(f"{path}: the model cannot be built from network_g and train: {error}") from error
