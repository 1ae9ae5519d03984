"""Training and test options: a YAML file in BasicSR's layout, overrides, and refusal of what nobody would read."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

from vheatir.backbone.errors import as_user_error
from vheatir.backbone.training.schema import (
    Amp,
    FolderName,
    NotNegative,
    Positive,
    Share,
    at_least,
    below,
    fill,
    one_of,
)
from vheatir.data.progressive import DEFAULT_BATCH
from vheatir.errors import UserError
from vheatir.train.stock import adopt
from vheatir.utils.recipes import find_options, load_table


@dataclass
class DistSection:
    """As BasicSR has it: what carries gradients between GPUs, and the port where processes under SLURM meet."""

    backend: Annotated[str, one_of("nccl", "gloo")] = "nccl"
    port: Annotated[int | None, Positive] = None


@dataclass
class TopSection:
    """The keys at the top of an options file; sections are read one by one, see below."""

    name: Annotated[str, FolderName]
    model_type: str
    datasets: dict
    network_g: dict
    scale: int = 1
    num_gpu: int | str = "auto"
    find_unused_parameters: bool = False
    manual_seed: Annotated[int, NotNegative, below(2**63)] = 0
    threads: Annotated[int, NotNegative] = 0
    path: dict = field(default_factory=dict)
    train: dict = field(default_factory=dict)
    val: dict = field(default_factory=dict)
    logger: dict = field(default_factory=dict)
    dist_params: DistSection | None = None


@dataclass
class PathSection:
    """Weights to start from, and where runs are kept."""

    pretrain_network_g: str | None = None
    strict_load_g: bool = True
    param_key_g: str | None = None
    experiments_root: str = "experiments"


@dataclass
class MixupSection:
    """Mixing of neighbors in a batch: the weight is drawn from Beta(beta, beta), in that share of the iterations."""

    beta: Annotated[float, Positive]
    probability: Annotated[float, Share] = 1.0


@dataclass
class TrainSection:
    """Length, optimizer, losses; `scheduler` and the losses take what their types take."""

    total_iter: Annotated[int, Positive]
    optim_g: dict
    scheduler: dict
    pixel_opt: dict
    warmup_iter: Annotated[int, at_least(-1)] = -1
    ema_decay: Annotated[float, NotNegative, below(1)] = 0.0
    amp: Annotated[str, Amp] = "none"
    grad_clip: Annotated[float, NotNegative] = 0.0
    accumulate: Annotated[int, Positive] = 1
    compile: bool = False
    mixup: MixupSection | None = None
    consistency_opt: dict | None = None


@dataclass
class ValSection:
    """Validation."""

    val_freq: Annotated[int, Positive] = 5000
    save_img: bool = False
    metrics: dict | None = None
    tile: Annotated[int | None, NotNegative] = None
    self_ensemble: bool = False
    max_images: Annotated[int | None, Positive] = None
    best: str | None = None
    pbar: bool = False
    suffix: str | None = None


@dataclass
class LoggerSection:
    """What is written when, in iterations."""

    print_freq: Annotated[int, Positive] = 100
    save_checkpoint_freq: Annotated[int, Positive] = 5000
    keep_checkpoints: Annotated[int, Positive] = 2
    use_tb_logger: bool = True


@dataclass
class LoaderSection:
    """What of a training set's options the loader reads."""

    batch_size_per_gpu: Annotated[int, Positive] = DEFAULT_BATCH
    num_worker_per_gpu: Annotated[int, NotNegative] = 0
    pin_memory: bool = True
    dataset_enlarge_ratio: Annotated[int, Positive] = 1


_SECTIONS = {"path": PathSection, "train": TrainSection, "val": ValSection, "logger": LoggerSection}
DEFAULT_METRICS = ("psnr", "ssim", "psnrb")


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
    adopt(path, options)
    _check_options(path, options)
    return options


def recorded(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as a file that trains the same again: without what belongs to the process and its place."""
    known = {one.name for one in fields(TopSection)}
    kept = {key: value for key, value in options.items() if key in known}
    return kept | {"num_gpu": "auto" if options["num_gpu"] else 0}


def meeting_port(path: str | Path, overrides: Sequence[str] = ()) -> int | None:
    """`dist_params.port`, which must be known before the processes that check the options have met."""
    return (read_options(path, overrides).get("dist_params") or {}).get("port")


def given(table: Mapping[str, Any]) -> dict[str, Any]:
    """A table without what is left to its default: `key: ~` means it, as a missing key does."""
    return {key: value for key, value in table.items() if value is not None}


def _check_options(path: Path, options: dict[str, Any]) -> None:
    with as_user_error(str(path)):
        fill(TopSection, given(options))
        for key in options.keys() - given(options).keys():
            del options[key]
        for section, kind in _SECTIONS.items():
            options[section] = given(options.get(section) or {})
            if options[section] or section != "train":
                fill(kind, options[section], f"{section}.")
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
    best = options["val"].setdefault("best", "psnr" if "psnr" in metrics else next(iter(metrics)))
    if options["train"] and best not in metrics:
        raise UserError(f"{path}: val.best: no metric {best!r} in val.metrics, which has {', '.join(metrics)}")


def _check_what_goes_together(path: Path, options: dict[str, Any]) -> None:
    train = options["train"]
    dataset = options["datasets"]["train"]
    if train.get("consistency_opt") and dataset["type"] != "JPEGDataset":
        raise UserError(f"{path}: train.consistency_opt needs datasets.train.type JPEGDataset, got {dataset['type']!r}")
    if train.get("consistency_opt") and (dataset.get("subsampling") or ["4:2:0"]) != ["4:2:0"]:
        raise UserError(
            f"{path}: train.consistency_opt and datasets.train.subsampling: the loss compresses in 4:2:0, got "
            f"{dataset['subsampling']!r}; leave one of them out"
        )
    if not train.get("mixup"):
        return
    if train.get("consistency_opt"):
        raise UserError(f"{path}: train.mixup and train.consistency_opt: a mixture of JPEGs is no JPEG; drop one")
    if dataset.get("level_map"):
        raise UserError(f"{path}: train.mixup and datasets.train.level_map: a mixture has no level; drop one")


def check_dataset_keys(path: Path, phase: str, dataset: Mapping[str, Any], known: frozenset[str]) -> None:
    """Refuse dataset keys that its class does not read.

    Args:
        path: options file, for messages.
        phase: name of the dataset's section.
        dataset: its table.
        known: keys that its class reads.

    Raises:
        UserError: another key, or a value of a wrong kind.
    """
    loader = [one.name for one in fields(LoaderSection)] if phase == "train" else []
    with as_user_error(str(path)):
        fill(LoaderSection, given({key: dataset.get(key) for key in loader}), f"datasets.{phase}.")
    unknown = sorted(map(str, set(dataset) - known - set(loader)))
    if unknown:
        names = ", ".join(sorted(known | set(loader)))
        raise UserError(f"{path}: unknown key datasets.{phase}.{unknown[0]} for {dataset['type']}; known: {names}")


def known_arguments(kind: Any) -> list[str] | None:
    """The arguments of a class or function by name; None where it takes any others, as plugins may.

    BasicSR's do not read their `**kwargs`: a misspelled key would change nothing, without a word.
    """
    parameters = inspect.signature(kind).parameters
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return list(parameters)
    sources = ("basicsr.", "vheatir.")
    if not kind.__module__.startswith(sources):
        return None
    bases = [base for base in getattr(kind, "__mro__", [kind]) if base.__module__.startswith(sources)]
    named = [parameter for base in bases for parameter in inspect.signature(base).parameters.values()]
    return list(dict.fromkeys(one.name for one in named if one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)))
