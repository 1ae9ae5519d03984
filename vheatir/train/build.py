"""Build the datasets and the model that an options file names; images are checked first, errors name the file."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import default_collate

from vheatir.backbone.training.processes import Processes
from vheatir.backbone.training.schema import is_number
from vheatir.data.base import RestorationDataset
from vheatir.data.progressive import SampleIndex
from vheatir.data.sources import map_threads, raise_problems
from vheatir.errors import UserError
from vheatir.metrics.fidelity import WINDOW
from vheatir.metrics.perceptual import BLOCK
from vheatir.prepare.known_sets import find_sets
from vheatir.train.options import check_dataset_keys, known_arguments
from vheatir.train.publish import TASKS
from vheatir.train.validation import restore_planes

_CORNER = 64  # pixels


def complete_options(
    path: Path, options: dict[str, Any], is_train: bool, processes: Processes | None = None
) -> dict[str, Any]:
    """Fill in what BasicSR's model reads besides the file: device, place among the processes, phase.

    Each process takes one GPU, or none: `num_gpu` is auto (GPUs where there are any), 0 (CPU), or the number of
    processes on each machine, all of them with a GPU.

    Args:
        path: options file, for messages.
        options: read from it; completed in place.
        is_train: for training, not for a test.
        processes: those that run together; None for this one alone.

    Raises:
        UserError: `num_gpu` is no such value, or does not fit the processes or the machine.
    """
    processes = processes or Processes()
    gpus = options.get("num_gpu", "auto")
    found = torch.cuda.device_count()
    if gpus != "auto" and not (is_number(gpus, integer=True) and gpus >= 0):
        raise UserError(f"{path}: num_gpu must be auto, 0 or the number of GPUs on each machine, got {gpus!r}")
    if gpus not in ("auto", 0, processes.local_world or gpus):
        raise UserError(
            f"{path}: num_gpu is {gpus}, but each process takes one GPU, and {processes.local_world} run here; start "
            f"with torchrun --nproc_per_node={gpus} -m vheatir.train -opt {path} --launcher pytorch, or set auto"
        )
    if gpus == "auto":
        gpus = found
    elif gpus and not found:
        raise UserError(f"{path}: num_gpu is {gpus}, but torch sees no CUDA device; set num_gpu: auto or 0")
    if gpus:
        processes.take_gpu()
    options["num_gpu"] = int(gpus > 0)
    options.update(is_train=is_train, scale=options.get("scale", 1))
    options.update(dist=processes.world > 1, rank=processes.rank, world_size=processes.world)
    options.setdefault("manual_seed", 0)
    return options


def build_datasets(path: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Datasets by phase, each checked image by image.

    Raises:
        UserError: unknown type or key, missing folder, unusable images (all of all datasets listed).
    """
    from basicsr.utils.registry import DATASET_REGISTRY

    datasets = {}
    for phase, table in options["datasets"].items():
        kind = DATASET_REGISTRY.get(table["type"]) if table["type"] in DATASET_REGISTRY else None
        if kind is None or not hasattr(kind, "OPTIONS"):  # stock ones cannot say what sample n is: no run could resume
            expected = ", ".join(TASKS)
            raise UserError(
                f"{path}: datasets.{phase}.type must be one of {expected}, got {table['type']!r}; a data set of your "
                "own needs --plugin FILE"
            )
        check_dataset_keys(path, phase, table, kind.OPTIONS)
        arguments = {**completed(table, options, kind), "phase": phase.split("_")[0]}
        try:
            datasets[phase] = kind(arguments)
        except UserError as error:
            raise UserError(f"{path}: datasets.{phase}: {error}{_how_to_get(phase, table)}") from error
    check_images(path, datasets, options)
    return datasets


def _how_to_get(phase: str, table: Mapping[str, Any]) -> str:
    """Advice for a folder of images that is not there; empty where it is."""
    folder = table.get("dataroot_gt")
    if not isinstance(folder, str) or Path(folder).exists():
        return ""
    name = Path(folder).name
    fetch = f"`vheatir prepare {name} --download` fetches it or says how to; " if find_sets(name) else ""
    return f"; {fetch}for other images add --set datasets.{phase}.dataroot_gt=FOLDER, also when the run is resumed"


def completed(
    table: Mapping[str, Any], options: Mapping[str, Any], kind: type[RestorationDataset] = RestorationDataset
) -> dict[str, Any]:
    """A data set's options with what others say too: the run's seed, and the network's channels.

    A key that is null means the default, unless a plugin's class adds it: that gets the null, which may mean something.

    Args:
        table: the data set's section.
        options: of the run.
        kind: the data set's class.
    """
    ours = [base.OPTIONS for base in kind.__mro__ if base.__module__.startswith("vheatir.") and "OPTIONS" in vars(base)]
    own = kind.OPTIONS.difference(*ours)
    network = options["network_g"]
    channels = network.get("in_chans", network.get("num_in_ch", 3))  # BasicSR's networks have the latter
    given = {key: value for key, value in table.items() if value is not None or key in own}
    return {"seed": options["manual_seed"], "in_chans": channels, **given}


def check_images(path: Path, datasets: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    """Decode every image once.

    Args:
        path: the options file, for messages.
        datasets: by phase.
        options: whose metrics say how large whole images must be, and whose iterations which stages begin.

    Raises:
        UserError: unusable images, all of all data sets.
    """
    metrics = [table for table in (options["val"].get("metrics") or {}).values() if isinstance(table, Mapping)]
    borders = [table.get("border", table.get("crop_border")) for table in metrics]
    border = max((border for border in borders if is_number(border, integer=True)), default=0)
    problems = []
    for phase, dataset in datasets.items():
        dataset.least_side = WINDOW + 2 * border
        if dataset.train and options["train"]:  # without it samples can be looked at, not trained on
            dataset.total_iter = options["train"]["total_iter"]
        try:
            dataset.check()
            if not dataset.train:
                _check_sizes_for_niqe(dataset, metrics)
        except UserError as error:
            problems.append(f"{path}: datasets.{phase}: {error}")
    if problems:
        raise UserError("\n".join(problems))


def _check_sizes_for_niqe(dataset: Any, metrics: list[Mapping[str, Any]]) -> None:
    """UserError for whole images without two blocks for BasicSR's NIQE, which would end the run at its validation."""
    borders = [table.get("crop_border", 0) for table in metrics if table.get("type") == "calculate_niqe"]
    border = max((border for border in borders if is_number(border, integer=True)), default=None)
    if border is None:
        return

    def problem(key: str) -> str | None:
        height, width = dataset.source.read_native(key).shape[:2]
        if ((height - 2 * border) // BLOCK) * ((width - 2 * border) // BLOCK) >= 2:
            return None
        least = f"{BLOCK + 2 * border}x{2 * BLOCK + 2 * border}"
        return f"{dataset.source.describe(key)}: {height}x{width} pixels, calculate_niqe needs {least}"

    problems = [one for one in map_threads(problem, dataset.keys) if one is not None]
    raise_problems(dataset.source.root, problems, len(dataset))


def _check_arguments(path: Path, section: str, table: dict[str, Any], registry) -> None:
    """Refuse an unknown type and arguments that it does not take."""
    if table["type"] not in registry:
        close = difflib.get_close_matches(table["type"], registry.keys(), n=3, cutoff=0.3) or sorted(registry.keys())
        raise UserError(f"{path}: {section}.type: unknown {table['type']!r}; did you mean {', '.join(close)}?")
    known = known_arguments(registry.get(table["type"]))
    if known is None:
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

    from vheatir.train.model import VHeatIRModel

    basicsr_logger.initialized_logger.setdefault("basicsr", True)  # our log has what it would print
    kind = options["model_type"]
    if kind not in MODEL_REGISTRY or not issubclass(MODEL_REGISTRY.get(kind), VHeatIRModel):
        raise UserError(f"{path}: model_type must be VHeatIRModel, which trains any network_g, got {kind!r}")
    _check_arguments(path, "network_g", options["network_g"], ARCH_REGISTRY)
    if options["is_train"]:
        for section in ("pixel_opt", "consistency_opt"):
            if table := options["train"].get(section):
                _check_arguments(path, f"train.{section}", table, LOSS_REGISTRY)
    try:
        return build(options)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (LookupError, TypeError, ValueError, ArithmeticError, AssertionError, RuntimeError) as error:
        raise UserError(f"{path}: the model cannot be built from network_g and train: {error}") from error


def try_samples(path: Path, model, dataset) -> None:
    """One sample of each stage that the run reaches through network and losses before anything is written.

    Args:
        path: options file, for messages.
        model: the `VHeatIRModel` that will be trained.
        dataset: its training set.

    Raises:
        UserError: the network does not take what the dataset gives, or a crop is too small for a loss.
    """
    network = model.get_bare_model(model.net_g)
    for stage in dataset.stages_to_run():
        model.feed_data(default_collate([dataset[SampleIndex(0, stage.gt_size)]]))
        try:
            with torch.no_grad():
                output = network.eval()(*model.inputs(slice(None)))
                if output.shape != model.gt.shape:
                    raise ValueError(f"it gives {tuple(output.shape[1:])}")
                model.losses(output, slice(None))
        except (RuntimeError, ValueError, TypeError) as error:
            level = "" if model.level is None else " with a level"
            raise UserError(
                f"{path}: network_g or a loss does not fit datasets.train, whose samples are "
                f"{tuple(model.lq.shape[1:])}{level}: {error}; look at in_chans, gt_size and level_map"
            ) from error
        finally:
            network.train()


def try_validation(path: Path, model, datasets: Mapping[str, Any]) -> None:
    """A corner of the first image of each set through the network: what does not fit would end the first validation.

    Args:
        path: options file, for messages.
        model: the `VHeatIRModel` whose network is validated.
        datasets: validation or test sets by phase.

    Raises:
        UserError: the network does not take what a set gives.
    """
    network = model.network_for_test()
    was_training = network.training
    for phase, dataset in datasets.items():
        sample = dataset[0]
        given, target = (sample[name][None, :, :_CORNER, :_CORNER] for name in ("lq", "gt"))
        level = sample["level"][None].to(model.device) if "level" in sample else None
        try:
            output = restore_planes(network.eval(), given.to(model.device), level, 0)
            if output.shape[1] != target.shape[1]:
                raise ValueError(f"it gives {output.shape[1]} channels, the target has {target.shape[1]}")
        except (RuntimeError, ValueError, TypeError) as error:
            described = f"{given.shape[1]} channels" + (", without a level" if level is None else " with a level")
            raise UserError(
                f"{path}: network_g does not fit datasets.{phase}, whose images have {described}: {error}; look at "
                "in_chans, level_map and what else the training set has"
            ) from error
        finally:
            network.train(was_training)
