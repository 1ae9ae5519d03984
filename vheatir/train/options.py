"""Training and test options: a YAML file in BasicSR's layout, overrides, and refusal of what nobody would read.

Numbers may be written as `2e-4`: YAML 1.1 takes that for text, this reader for a number.
"""

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

import yaml

from vheatir.backbone.errors import as_user_error
from vheatir.backbone.training.schema import Amp, NotNegative, Positive, Share, at_least, below, fill
from vheatir.data.progressive import DEFAULT_BATCH
from vheatir.errors import UserError
from vheatir.utils.recipes import recipes


@dataclass
class TopSection:
    """The keys at the top of an options file; sections are read one by one, see below."""

    name: str
    model_type: str
    datasets: dict
    network_g: dict
    scale: int = 1
    num_gpu: int | str = "auto"
    find_unused_parameters: bool = False
    manual_seed: int = 0
    threads: Annotated[int, NotNegative] = 0
    path: dict = field(default_factory=dict)
    train: dict = field(default_factory=dict)
    val: dict = field(default_factory=dict)
    logger: dict = field(default_factory=dict)


@dataclass
class PathSection:
    """Weights to start from, and where runs are kept."""

    pretrain_network_g: str | None = None
    strict_load_g: bool = True
    param_key_g: str | None = None
    experiments_root: str = "experiments"


@dataclass
class MixupSection:
    """Mixing of neighbours in a batch: the weight is drawn from Beta(beta, beta), in that share of the iterations."""

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
    best: str = "psnr"


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


_SECTIONS = {"path": PathSection, "train": TrainSection, "val": ValSection, "logger": LoggerSection}
DEFAULT_METRICS = ("psnr", "ssim", "psnrb")


class _Loader(yaml.SafeLoader):
    """Safe YAML that reads 1e-4 as a number and refuses a key that stands twice."""

    def construct_mapping(self, node, deep=False):
        merge = "tag:yaml.org,2002:merge"  # `<<: *base` takes over keys, which others may replace
        keys = [self.construct_object(key, deep=True) for key, _ in node.value if key.tag != merge]
        twice = sorted({str(key) for key in keys if keys.count(key) > 1})
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"key given twice: {', '.join(twice)}", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = copy.deepcopy(yaml.SafeLoader.yaml_implicit_resolvers)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def find_options(path: str | Path) -> Path:
    """The options file: a path, or the name of a recipe in the package, with or without `options/` and `.yml`."""
    path = Path(path)
    if path.is_file():
        return path
    parts = path.parts[1:] if path.parts[:1] == ("options",) else path.parts
    shipped = recipes().joinpath(*parts)
    shipped = shipped if path.suffix == ".yml" else shipped.with_name(f"{shipped.name}.yml")
    if parts and shipped.is_file() and shipped.is_relative_to(recipes()) and ".." not in parts:
        return shipped
    found = (file.relative_to(recipes()).with_suffix("").as_posix() for file in recipes().rglob("*.yml"))
    known = ", ".join(sorted(found, key=lambda name: ("/" in name, name)))
    raise UserError(f"{path}: no such options file; give a path or one of the recipes: {known}")


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


def load_table(path: Path, overrides: Sequence[str] = (), sections: Sequence[str] = ()) -> dict[str, Any]:
    """The table of a YAML file with overrides, whatever its keys.

    A file may begin from another one: `extends: other.yml`, beside it; sections of both are merged key by key.

    Args:
        path: the file.
        overrides: see `read_options`.
        sections: names of sections that an override may begin where the file has none.

    Raises:
        UserError: not YAML, no table, or an override that names no section.
    """
    options = _table(path)
    for override in overrides:
        _override(options, override, sections)
    return options


def _table(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A file's table, merged into that of the file it extends; `above` are those that led here."""
    try:
        options = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(options, dict):
        raise UserError(f"{path}: expected a table of options, got {type(options).__name__}")
    if "extends" not in options:
        return options
    base = path.with_name(str(options.pop("extends")))
    if not base.is_file() or base in (path, *above):
        raise UserError(f"{path}: extends {base.name}: expected another options file beside it")
    return _merged(_table(base, (path, *above)), options)


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def _override(options: dict[str, Any], text: str, known_sections: Sequence[str]) -> None:
    name, separator, value = text.partition("=")
    if not separator:
        raise UserError(f"--set {text}: expected a.b=value")
    try:
        parsed = yaml.load(value, Loader=_Loader)
    except yaml.YAMLError as error:
        raise UserError(f"--set {text}: the value is not valid YAML: {error}") from error
    *sections, key = name.split(".")
    target = options
    if sections and sections[0] in known_sections and options.get(sections[0]) is None:
        options[sections[0]] = {}
    for section in sections:
        if not isinstance(target.get(section), dict):
            known = ", ".join(key for key, item in target.items() if isinstance(item, dict))
            raise UserError(f"--set {text}: there is no section {section!r}; sections here: {known}")
        target = target[section]
    target[key] = parsed


def _given(table: Mapping[str, Any]) -> dict[str, Any]:
    """A table without what is left to its default: `key: ~` means it, as a missing key does."""
    return {key: value for key, value in table.items() if value is not None}


def _check_options(path: Path, options: dict[str, Any]) -> None:
    with as_user_error(str(path)):
        fill(TopSection, _given(options))
        for section, kind in _SECTIONS.items():
            options[section] = _given(options.get(section) or {})
            if options[section] or section != "train":
                fill(kind, options[section], f"{section}.")
    if Path(options["name"]).name != options["name"] or options["name"] in ("", ".."):
        raise UserError(f"{path}: name is that of the run's folder, without / and not .., got {options['name']!r}")
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


def check_dataset_keys(path: Path, phase: str, dataset: Mapping[str, Any], known: frozenset[str]) -> None:
    """Refuse dataset keys that its class does not read."""
    loader = [one.name for one in fields(LoaderSection)] if phase == "train" else []
    with as_user_error(str(path)):
        fill(LoaderSection, _given({key: dataset.get(key) for key in loader}), f"datasets.{phase}.")
    unknown = sorted(map(str, set(dataset) - known - set(loader)))
    if unknown:
        names = ", ".join(sorted(known | set(loader)))
        raise UserError(f"{path}: unknown key datasets.{phase}.{unknown[0]} for {dataset['type']}; known: {names}")
