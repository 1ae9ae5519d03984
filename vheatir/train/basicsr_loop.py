"""What stands in place of some of BasicSR's functions, so that its own loop runs our options on today's libraries.

BasicSR 1.4.2 resumes on a GPU alone and looks for its runs below the working directory, starts processes over NCCL
alone, gives each process the GPU of its rank on all machines, shows our data sets the same samples in every epoch, and
knows nothing of what one section of our options says for another. The loop itself, its model, its files and its log
are BasicSR's.
"""

import logging
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import distributed, multiprocessing, nn
from torch.utils.data import DataLoader

from vheatir.backbone.training.processes import Processes, place
from vheatir.data.base import RestorationDataset
from vheatir.data.progressive import SampleIndex
from vheatir.data.sampling import IterationSampler
from vheatir.errors import UserError
from vheatir.train.build import check_images, completed
from vheatir.train.options import DEFAULT_METRICS, LoaderSection, LoggerSection, ValSection, given
from vheatir.train.registry import register_all

# As in `vheatir train`; YAML 1.1 takes them for text.
_NUMBER = re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$")


@cache
def prepare() -> None:
    """Register everything of ours and put the functions below in place of BasicSR's, once.

    Raises:
        UserError: BasicSR is missing; says what to install.
    """
    register_all()
    from basicsr import test, train
    from basicsr.models.base_model import BaseModel
    from basicsr.utils import options

    parse = partial(parse_options, options.parse_options)
    train.parse_options = parse
    test.parse_options = parse
    options.init_dist = init_dist
    train.load_resume_state = load_resume_state
    train.create_train_val_dataloader = partial(create_loaders, train.create_train_val_dataloader)
    BaseModel.model_to_device = wrapped_by(BaseModel.model_to_device)


def wrapped_by(stock: Callable) -> Callable:
    """`BaseModel.model_to_device` that works without a GPU too."""

    def model_to_device(self, net: nn.Module) -> nn.Module:
        if not self.opt["dist"]:
            return stock(self, net)
        together = Processes(distributed.get_rank(), distributed.get_world_size())
        return together.wrap(net.to(self.device), bool(self.opt.get("find_unused_parameters")))

    return model_to_device


def init_dist(launcher: str, backend: str | None = None, port: int | None = None) -> None:
    """Bring the processes together: gradients over NCCL where there are GPUs, all else over gloo.

    Args:
        launcher: pytorch | slurm.
        backend: `dist_params.backend`; what the devices need is taken in any case.
        port: `dist_params.port`, where processes under SLURM meet.

    Raises:
        UserError: the launcher's environment is missing.
    """
    # Spawned loader processes would unpickle BasicSR's data sets before they have the alias for torchvision.
    if multiprocessing.get_start_method(allow_none=True) is None and "fork" in multiprocessing.get_all_start_methods():
        multiprocessing.set_start_method("fork")
    processes = place(launcher)
    if launcher == "slurm" and port is not None:
        os.environ["MASTER_PORT"] = str(port)
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        processes.take_gpu()
    distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if on_gpu else "gloo", rank=processes.rank, world_size=processes.world
    )


def parse_options(parse: Callable, root_path: str, is_train: bool = True) -> tuple[dict[str, Any], Any]:
    """BasicSR's options, completed; a former run in this process keeps its log to itself.

    Args:
        parse: BasicSR's own function of this name.
        root_path: folder below which BasicSR puts its runs.
        is_train: training options, not those of a test.

    Returns:
        The options and the parsed arguments.

    Raises:
        UserError: a key that BasicSR needs is missing.
    """
    from basicsr.utils.logger import initialized_logger

    log = logging.getLogger("basicsr")
    for handler in list(log.handlers):
        log.removeHandler(handler)
        handler.close()
    initialized_logger.clear()
    try:
        options, arguments = parse(root_path, is_train)
        options["options_file"] = str(arguments.opt)
        complete(options)
    except KeyError as error:
        raise UserError(
            f"BasicSR needs {error} in the options, and does not find it; options/smoke.yml has all that it needs"
        ) from error
    return options, arguments


def complete(options: dict[str, Any]) -> None:
    """Fill in, in place, what `vheatir train` takes from other sections, or has as a default.

    Files for other models than ours get no more than what our data sets need.
    """
    from basicsr.utils.registry import DATASET_REGISTRY

    for section in options.values():
        _read_numbers(section)
    if options.get("threads"):
        torch.set_num_threads(options["threads"])
    for phase, table in options["datasets"].items():
        table.setdefault("name", phase)
        kind = DATASET_REGISTRY.get(table["type"]) if table["type"] in DATASET_REGISTRY else None
        if isinstance(kind, type) and issubclass(kind, RestorationDataset):
            options["datasets"][phase] = completed(table, options, kind)
            if phase == "train":
                options["datasets"][phase] = {**asdict(LoaderSection()), **options["datasets"][phase]}
    if options["model_type"] != "VHeatIRModel":
        return
    options["num_gpu"] = min(options["num_gpu"], 1)  # each process takes one
    for name in ("train", "val", "logger"):
        if options.get(name):
            options[name] = given(options[name])
    for name, kind in (("logger", LoggerSection), ("val", ValSection)):
        options[name] = {**asdict(kind()), **(options.get(name) or {})}
    if set(options["datasets"]) != {"train"} and not options["val"].get("metrics"):
        options["val"]["metrics"] = {name: {"type": f"vheatir_{name}"} for name in DEFAULT_METRICS}
    if not options["is_train"]:
        from vheatir import weights

        options["network_g"] = weights.configured(options["network_g"], options["path"].get("pretrain_network_g"))


def _read_numbers(section: Any) -> None:
    """Turn texts such as 1e-4 into numbers, in place, at any depth."""
    if not isinstance(section, dict | list):
        return
    items = section.items() if isinstance(section, dict) else enumerate(section)
    for key, value in list(items):
        if isinstance(value, str) and _NUMBER.match(value) and key != "name":
            number = float(value)
            section[key] = int(number) if number.is_integer() else number
        else:
            _read_numbers(value)


def load_resume_state(options: dict[str, Any]) -> dict[str, Any] | None:
    """The training state to go on from, on the CPU, without running code from it; None for a new run.

    Raises:
        UserError: the file is missing or cannot be read.
    """
    from basicsr.utils import check_resume

    if options["auto_resume"]:
        folder = Path(options["path"]["training_states"])
        states = [path for path in folder.glob("*.state") if path.stem.isdecimal()]
        newest = max(states, key=lambda path: int(path.stem), default=None)
        if newest is not None:
            options["path"]["resume_state"] = str(newest)
        source = newest
    else:
        source = options["path"].get("resume_state")
    if source is None:
        return None
    try:
        state = torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # unpicklers raise whatever they like on damaged bytes
        raise UserError(f"{source}: cannot be read ({error}); delete it to go on from the one before") from error
    check_resume(options, state["iter"])
    options.update(resume_iter=state["iter"], resume_epoch=state["epoch"])
    return state


class EpochBatches:
    """The batches of `vheatir train`, cut into BasicSR's epochs, for `DataLoader(dataset, batch_sampler=...)`.

    So each iteration sees the samples that it sees there, which are drawn anew in each epoch, and a resumed run goes on
    amid an epoch.

    Args:
        table: options of the training set.
        stages: of progressive training.
        epoch: iterations of an epoch.
        total: iterations of the run.
        first: iterations already done.
        begun: the epoch in which BasicSR goes on; that of a run whose epochs were longer or shorter, with other batches
            or processes, would be behind the run's end or long before the iteration.
    """

    def __init__(self, table: dict[str, Any], stages: tuple, epoch: int, total: int, first: int, begun: int = 0):
        self.batch = table["batch_size_per_gpu"]
        self.stages = stages
        self.per_epoch = epoch
        self.total = total
        self.first = first
        self.epoch = first // epoch
        self.shift = begun - self.epoch

    @property
    def epochs(self) -> int:
        """The last epoch of the run, as BasicSR counts from the one in which it goes on."""
        return -(-self.total // self.per_epoch) + self.shift

    def set_epoch(self, epoch: int) -> None:
        """What BasicSR says before each epoch, from that on in which it goes on."""
        self.epoch = epoch - self.shift

    def __len__(self) -> int:
        return self.per_epoch

    def __iter__(self) -> Iterator[list[int] | list[SampleIndex]]:
        together = distributed.is_initialized()
        world = distributed.get_world_size() if together else 1
        begin = max(self.first, self.epoch * self.per_epoch)
        end = min(self.total, (self.epoch + 1) * self.per_epoch)
        rank = distributed.get_rank() if together else 0
        return iter(IterationSampler(self.batch * world, end, begin, rank, world, stages=self.stages))


def create_loaders(create: Callable, options: dict[str, Any], logger: Any) -> tuple:
    """BasicSR's loaders; for a training set of ours, the batches of `vheatir train`, all images checked before.

    Args:
        create: BasicSR's own function of this name.
        options: of the run, completed.
        logger: BasicSR's.

    Returns:
        Training loader, its sampler, validation loaders, epochs and iterations in all, as BasicSR's.

    Raises:
        UserError: unusable images, all of all data sets.
    """
    loader, sampler, val_loaders, epochs, total = create(options, logger)
    phases = [phase for phase in options["datasets"] if phase != "train"]
    datasets = {"train": loader.dataset, **dict(zip(phases, (one.dataset for one in val_loaders), strict=True))}
    ours = {phase: dataset for phase, dataset in datasets.items() if isinstance(dataset, RestorationDataset)}
    asked = {"val": options.get("val") or {}, "train": {"total_iter": total}}
    check_images(Path(options["options_file"]), ours, asked)
    if "train" not in ours:
        return loader, sampler, val_loaders, epochs, total
    table = options["datasets"]["train"]
    size = table["batch_size_per_gpu"] * options["world_size"]
    epoch = -(-len(loader.dataset) * table.get("dataset_enlarge_ratio", 1) // size)  # as BasicSR counts
    resumed = (options.get("resume_iter", 0), options.get("resume_epoch", 0))
    batches = EpochBatches(table, loader.dataset.stages, epoch, total, *resumed)
    workers = table["num_worker_per_gpu"]
    loader = DataLoader(
        loader.dataset,
        batch_sampler=batches,
        num_workers=workers,
        pin_memory=bool(options["num_gpu"]) and table.get("pin_memory", True),
        persistent_workers=workers > 0,
    )
    return loader, batches, val_loaders, batches.epochs, total
