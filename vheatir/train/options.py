"""Training and test options: a YAML file in BasicSR's layout, overrides, and refusal of what nobody would read."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vheatir.backbone.training.precision import AMP_TYPES
from vheatir.errors import UserError
from vheatir.utils.recipes import find_options, load_table

_TOP = {
    "name": str,
    "model_type": str,
    "scale": int,
    "num_gpu": (int, str),
    "find_unused_parameters": bool,
    "manual_seed": int,
    "threads": int,
    "datasets": dict,
    "network_g": dict,
    "path": dict,
    "train": dict,
    "val": dict,
    "logger": dict,
}
_SECTIONS: dict[str, dict[str, Any]] = {
    "path": {"pretrain_network_g": str, "strict_load_g": bool, "param_key_g": str, "experiments_root": str},
    "train": {
        "total_iter": int,
        "warmup_iter": int,
        "ema_decay": (int, float),
        "optim_g": dict,
        "scheduler": dict,
        "pixel_opt": dict,
        "amp": str,
        "grad_clip": (int, float),
        "accumulate": int,
        "compile": bool,
        "mixup": dict,
        "consistency_opt": dict,
    },
    "val": {
        "val_freq": int,
        "save_img": bool,
        "metrics": dict,
        "tile": int,
        "self_ensemble": bool,
        "max_images": int,
        "best": str,
    },
    "logger": {"print_freq": int, "save_checkpoint_freq": int, "keep_checkpoints": int, "use_tb_logger": bool},
}
_LOADER_KEYS = {"batch_size_per_gpu": int, "num_worker_per_gpu": int}
_REQUIRED = {
    "": ("name", "model_type", "datasets", "network_g"),
    "train": ("total_iter", "optim_g", "scheduler", "pixel_opt"),
}
DEFAULT_METRICS = ("psnr", "ssim", "psnrb")
_AT_LEAST = {
    "": {"threads": 0},
    "train": {"total_iter": 1, "warmup_iter": -1, "ema_decay": 0, "grad_clip": 0, "accumulate": 1},
    "val": {"val_freq": 1, "tile": 0, "max_images": 1},
    "logger": {"print_freq": 1, "save_checkpoint_freq": 1, "keep_checkpoints": 1},
}
_LOADER_AT_LEAST = {"batch_size_per_gpu": 1, "num_worker_per_gpu": 0}


def read_options(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read and check an options file.

    Args:
        path: file, or name of a shipped recipe.
        overrides: `a.b=value` each, the value in YAML; the section must exist, the key may be new.

    Returns:
        The checked options, as nested dicts.

    Raises:
        UserError: not YAML, a key that nobody reads, a wrong type, a missing section; names file and key.
    """
    path = find_options(path)
    options = load_table(path, overrides, tuple(_SECTIONS))
    _check_options(path, options)
    return options


def _check_keys(where: str, table: Mapping[str, Any], known: Mapping[str, Any], path: Path) -> None:
    for key, value in table.items():
        if key not in known:
            names = ", ".join(sorted(known)) or "none"
            raise UserError(f"{path}: unknown key {where}{key}; known here: {names}")
        wanted = known[key]
        wanted_types = wanted if isinstance(wanted, tuple) else (wanted,)
        is_bool = isinstance(value, bool)
        if value is not None and (not isinstance(value, wanted_types) or (is_bool and bool not in wanted_types)):
            names = " or ".join(kind.__name__ for kind in wanted_types)
            raise UserError(f"{path}: {where}{key} must be {names}, got {value!r}")


def _check_minimum(where: str, table: Mapping[str, Any], least: Mapping[str, int], path: Path) -> None:
    for key, low in least.items():
        value = table.get(key)
        if value is not None and not low <= value < math.inf:
            raise UserError(f"{path}: {where}{key} must be at least {low}, got {value}")


def _check_options(path: Path, options: dict[str, Any]) -> None:
    _check_keys("", options, _TOP, path)
    for section, keys in _REQUIRED.items():
        table = options if not section else options.get(section)
        if table is None:
            continue
        missing = [key for key in keys if table.get(key) is None]
        if missing:
            raise UserError(f"{path}: missing {', '.join(f'{section}.{key}'.lstrip('.') for key in missing)}")
    if Path(options["name"]).name != options["name"] or options["name"] in ("", ".."):
        raise UserError(f"{path}: name is that of the run's folder, without / and not .., got {options['name']!r}")
    for section, keys in _SECTIONS.items():
        _check_keys(f"{section}.", options.get(section) or {}, keys, path)
        # `key: ~` means the default, as a missing key does
        options[section] = {key: value for key, value in (options.get(section) or {}).items() if value is not None}
    for section, least in _AT_LEAST.items():
        _check_minimum(f"{section}.".lstrip("."), options[section] if section else options, least, path)
    if options["train"].get("ema_decay", 0) >= 1:
        raise UserError(f"{path}: train.ema_decay must be below 1, got {options['train']['ema_decay']}")
    amp = options["train"].get("amp", "none")
    if amp not in AMP_TYPES:
        raise UserError(f"{path}: train.amp must be one of {', '.join(AMP_TYPES)}, got {amp!r}")
    for section in ("optim_g", "scheduler", "pixel_opt", "consistency_opt"):
        table = options["train"].get(section)
        if table is not None and not isinstance(table.get("type"), str):
            raise UserError(f"{path}: train.{section} needs a type, for example `type: Adam`")
    if not isinstance(options["network_g"].get("type"), str):
        raise UserError(f"{path}: network_g needs a type, for example `type: VHeatIR`")
    _check_datasets(path, options)
    if options["train"]:
        _check_what_goes_together(path, options)


def _check_datasets(path: Path, options: dict[str, Any]) -> None:
    phases = {str(phase): str(phase).split("_")[0] for phase in options["datasets"]}
    for phase, dataset in options["datasets"].items():
        if phases[str(phase)] not in ("train", "val", "test") or (phases[str(phase)] == "train" and phase != "train"):
            raise UserError(f"{path}: datasets.{phase}: expected train, val or test, or val_NAME, test_NAME")
        if not isinstance(dataset, dict) or not isinstance(dataset.get("type"), str):
            raise UserError(f"{path}: datasets.{phase} must be a table with a type, got {dataset!r}")
    if options["train"] and "train" not in phases:
        raise UserError(f"{path}: datasets.train is missing; add it, or score a trained network with `vheatir test`")
    if set(phases.values()) <= {"train"}:
        return
    metrics = options["val"].get("metrics") or {name: {"type": f"vheatir_{name}"} for name in DEFAULT_METRICS}
    options["val"]["metrics"] = metrics
    for name, table in metrics.items():
        if not isinstance(table, dict) or "type" not in table:
            raise UserError(
                f"{path}: val.metrics.{name}: expected a table such as {{type: vheatir_psnr}}, got {table!r}"
            )
    best = options["val"].get("best", "psnr")
    if options["train"] and best not in metrics:
        raise UserError(f"{path}: val.best: no metric {best!r} in val.metrics, which has {', '.join(metrics)}")


def _check_what_goes_together(path: Path, options: dict[str, Any]) -> None:
    train, dataset = options["train"], options["datasets"]["train"]
    if train.get("consistency_opt") and dataset["type"] != "JPEGDataset":
        raise UserError(f"{path}: train.consistency_opt needs datasets.train.type JPEGDataset, got {dataset['type']!r}")
    if not train.get("mixup"):
        return
    if train.get("consistency_opt"):
        raise UserError(f"{path}: train.mixup and train.consistency_opt: a mixture of JPEGs is no JPEG; drop one")
    if dataset.get("level_map"):
        raise UserError(f"{path}: train.mixup and datasets.train.level_map: a mixture has no level; drop one")
    _check_keys("train.mixup.", train["mixup"], {"beta": (int, float), "probability": (int, float)}, path)
    beta, probability = train["mixup"].get("beta"), train["mixup"].get("probability", 1)
    if beta is None or not 0 < beta < math.inf:
        raise UserError(f"{path}: train.mixup.beta must be above 0, for example 1.2, got {beta}")
    if probability is None or not 0 <= probability <= 1:
        raise UserError(f"{path}: train.mixup.probability must be from 0 to 1, got {probability}")


def check_dataset_keys(path: Path, phase: str, dataset: Mapping[str, Any], known: frozenset[str]) -> None:
    """Refuse dataset keys that its class does not read."""
    loader = _LOADER_KEYS if phase == "train" else {}
    _check_keys(f"datasets.{phase}.", {k: v for k, v in dataset.items() if k in _LOADER_KEYS}, loader, path)
    _check_minimum(f"datasets.{phase}.", dataset, _LOADER_AT_LEAST, path)
    unknown = sorted(map(str, set(dataset) - known - set(loader)))
    if unknown:
        names = ", ".join(sorted(known | set(loader)))
        raise UserError(f"{path}: unknown key datasets.{phase}.{unknown[0]} for {dataset['type']}; known: {names}")
