"""Distributed training processes: ranks, agreement between them, and one message when one of them ends.

Rank 0 writes. Questions between processes go over gloo on the CPU, also where gradients go over NCCL: gloo notices at
once that a process has died, and asks nothing of the GPU.
"""

import argparse
import atexit
import inspect
import os
import signal
import subprocess
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, distributed, nn

from vheatir.backbone.errors import UserError

LAUNCHERS = ("none", "pytorch", "slurm")
TIMEOUT = 600.0  # seconds
_FAILED = "vheatir_failed"
T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """This process among those that train together.

    Attributes:
        rank: number of this process, 0 to world - 1; 0 writes.
        world: number of processes on all machines.
        local_rank: number of this process on its machine; chooses its GPU.
        local_world: number of processes on its machine; None where the launcher does not say.
        store: table that all share; None for a single process.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int | None = 1
    store: Any = None

    @property
    def writes(self) -> bool:
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        if self.world == 1:
            return flag
        any_flag = torch.tensor([int(flag)])
        distributed.all_reduce(any_flag, distributed.ReduceOp.MAX)
        return bool(any_flag)

    def gather(self, value: T) -> list[T]:
        """The values of all processes in order of rank; small ones, they are pickled."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        distributed.all_gather_object(values, value)
        return values

    def agree(self, work: Callable[[], T]) -> T:
        """What `work` returns here; where it fails in one process, all raise.

        A UserError is raised in all of them, another exception in its own process and as a UserError in the others.
        `work` must not communicate.
        """
        if self.world == 1:
            return work()
        error = None
        value = None
        try:
            value = work()
        except Exception as caught:
            error = caught
        if not self.any(error is not None):
            return cast(T, value)
        texts = self.gather(None if error is None else self._text(error))
        if error is not None and not isinstance(error, UserError):
            raise error
        rank = next(rank for rank, text in enumerate(texts) if text is not None)
        alike = rank == 0 or texts.count(texts[rank]) == self.world
        raise UserError(texts[rank] if alike else f"process {rank} of {self.world}: {texts[rank]}") from error

    def from_first(self, work: Callable[[], T]) -> T:
        """What `work` returns in the first process, which alone does it; where it fails, all raise."""
        return self.share(cast(T, self.agree(work if self.writes else lambda: None)))

    def share(self, value: T) -> T:
        """The first process's value, in all; pickled."""
        if self.world == 1:
            return value
        box = [value]
        distributed.broadcast_object_list(box, src=0)
        return box[0]

    def mean_(self, tensor: Tensor) -> Tensor:
        """The tensor, replaced by its mean over the processes."""
        if self.world > 1:
            distributed.all_reduce(tensor)
            tensor /= self.world
        return tensor

    def sum_(self, tensor: Tensor) -> Tensor:
        """The tensor, replaced by its sum over the processes."""
        if self.world > 1:
            distributed.all_reduce(tensor)
        return tensor

    def take_gpu(self) -> torch.device:
        """The GPU of this process, one of those of its machine, which becomes the current one.

        Raises:
            UserError: the machine has fewer GPUs than processes.
        """
        found = torch.cuda.device_count()
        index = 0 if self.local_world is None and found == 1 else self.local_rank  # SLURM may show only one
        if index >= found:
            raise UserError(
                f"process {index} of this machine has no GPU: it has {found}; start {found} processes on each machine"
            )
        torch.cuda.set_device(index)
        return torch.device("cuda", index)

    def device(self, name: str) -> torch.device:
        """Where this process computes: "cpu", or "auto" for its GPU where there are any."""
        return self.take_gpu() if name == "auto" and torch.cuda.is_available() else torch.device("cpu")

    def with_shared_norms(self, network: nn.Module, device: torch.device) -> nn.Module:
        """The network with batch norms over the batches of all processes on CUDA; as it is on gloo, which has none."""
        shared = device.type == "cuda" and self.world > 1
        return nn.SyncBatchNorm.convert_sync_batchnorm(network) if shared else network

    def wrap(self, network: nn.Module, find_unused: bool = False) -> nn.Module:
        """The network in DistributedDataParallel; buffers are not exchanged, see `Update`.

        Args:
            network: on its device.
            find_unused: not every forward pass uses all parameters.
        """
        # Those of depthwise kernels, of which one axis has length 1 and so any stride.
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        wrapper = nn.parallel.DistributedDataParallel
        on_gpu = next(network.parameters()).is_cuda
        is_new = "forward_sync_buffers" in inspect.signature(wrapper).parameters  # torch 2.15
        return wrapper(
            network,
            device_ids=[torch.cuda.current_device()] if on_gpu else None,
            **{"forward_sync_buffers" if is_new else "broadcast_buffers": False},
            find_unused_parameters=find_unused,
        )

    def broadcast_buffers(self, network: nn.Module) -> None:
        """Give all processes the first one's buffers."""
        if self.world > 1:
            for buffer in network.buffers():
                distributed.broadcast(buffer, 0)

    def share_statistics(self, network: nn.Module) -> None:
        """Running statistics of batch norms, which each process takes of its own samples, become their mean."""
        for module in network.modules():
            is_alike = isinstance(module, nn.SyncBatchNorm)
            if isinstance(module, nn.modules.batchnorm._NormBase) and not is_alike and module.track_running_stats:
                for statistic in (module.running_mean, module.running_var):
                    self.mean_(statistic)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Turn the loss of another process into a UserError that says what ended it, where that is known."""
        try:
            yield
        except RuntimeError as error:  # torch.distributed has no class for it
            lost = isinstance(error, distributed.DistError) or any(name in str(error) for name in ("gloo", "NCCL"))
            if self.world == 1 or not lost:
                raise
            raise UserError(self._published() or self._guess(error)) from error

    def ignore_sigterm(self) -> None:
        """Let no launcher that ends all processes after one has failed cut off what this one has to say."""
        if self.world > 1:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def publish(self, error: Exception) -> bool:
        """Tell the others what ended this process; False when the user has been told the same before."""
        expected = isinstance(error, UserError)
        text = str(error) if expected else f"process {self.rank} of {self.world}: {self._text(error)}"
        try:
            first = self.store.compare_set(_FAILED, "", text).decode()
            return not expected or first != text or self.store.add(f"{_FAILED}_told", 1) == 1
        except RuntimeError:  # the process that holds the store is gone
            return True

    def _published(self) -> str | None:
        try:
            return self.store.get(_FAILED).decode() if self.store.check([_FAILED]) else None
        except RuntimeError:
            return None

    @staticmethod
    def _text(error: Exception) -> str:
        if isinstance(error, UserError):
            return str(error)
        return f"{type(error).__name__}: {error}; its traceback is above"

    def _guess(self, error: Exception) -> str:
        if "imed out" in str(error):
            what = "waited in vain for another one, which hangs, or needs longer than --timeout allows"
        else:
            what = "lost another one, which was killed or failed; the launcher's report names it"
        return f"a process of {self.world} {what}; --resume goes on from the last checkpoint"


def _integers(launcher: str, names: tuple[str, ...], how: str) -> list[int]:
    missing = [name for name in names if not os.environ.get(name, "").isdecimal()]
    if missing:
        raise UserError(f"--launcher {launcher}: {', '.join(missing)} not set in the environment; start with {how}")
    return [int(os.environ[name]) for name in names]


def place(launcher: str | None) -> Processes:
    """The place that the launcher's environment gives to this process; without a launcher, that of torchrun if any.

    Launchers that set the variables of torchrun, as accelerate's and MPI's may, are taken for it; two of the variables
    alone may be left behind by something else. For SLURM, which names neither, the address and port of the first
    process are put into the environment.
    """
    alike = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    if launcher is None and "TORCHELASTIC_RUN_ID" not in os.environ and all(map(os.environ.get, alike)):
        local_world = os.environ.get("LOCAL_WORLD_SIZE")
        return Processes(*_integers("pytorch", alike[:3], "torchrun"), int(local_world) if local_world else None)
    if launcher is None:
        launcher = "pytorch" if "TORCHELASTIC_RUN_ID" in os.environ else "none"
    if launcher == "none":
        return Processes()
    if launcher == "pytorch":
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        how = "torchrun --nproc_per_node=N -m vheatir.train -opt FILE --launcher pytorch"
        return Processes(*_integers(launcher, names, how))
    names = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")
    how = "srun python -m vheatir.train -opt FILE"
    rank, world, local_rank = _integers(launcher, names, how)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(local_rank))
    if "MASTER_ADDR" not in os.environ:
        command = ["scontrol", "show", "hostnames", os.environ.get("SLURM_JOB_NODELIST", "")]
        try:
            hosts = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
            os.environ["MASTER_ADDR"] = hosts[0]
        except (OSError, subprocess.CalledProcessError, IndexError) as error:
            raise UserError(f"--launcher slurm: `{' '.join(command)}` gives no host; set MASTER_ADDR") from error
    os.environ.setdefault("MASTER_PORT", str(15000 + int(os.environ.get("SLURM_JOB_ID", "0")) % 15000))
    return Processes(rank, world, local_rank, None)


@contextmanager
def started(launcher: str | None = None, timeout: float = TIMEOUT) -> Iterator[Processes]:
    """The processes of this run, in touch with each other; an error that ends all of them is reported by one.

    Args:
        launcher: none | pytorch | slurm; by default pytorch under torchrun, else none.
        timeout: seconds after which a process that waits for another gives up.

    Raises:
        UserError: the launcher's environment is missing, or the processes do not find each other.
    """
    processes = place(launcher)
    if processes.world == 1:
        yield processes
        return
    wait = timedelta(seconds=timeout)
    try:
        store, rank, world = next(distributed.rendezvous("env://", timeout=wait))
        # torchrun keeps the store when it starts all again, with what the ended processes left there.
        store = distributed.PrefixStore(f"vheatir_{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        distributed.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=wait)
    except (RuntimeError, ValueError) as error:
        address = ":".join(os.environ.get(name, "?") for name in ("MASTER_ADDR", "MASTER_PORT"))
        raise UserError(
            f"process {processes.rank} of {processes.world} did not find the others within {timeout:.0f} s at "
            f"{address}: {error}; look at the launcher's report, and whether the machines reach that address"
        ) from error
    processes = Processes(rank, world, processes.local_rank, processes.local_world, store)
    try:
        with processes.watched():
            yield processes
    except Exception as error:
        processes.ignore_sigterm()
        # Interpreter and torch take long to come down where peers are gone; launchers wait no longer than 30 s.
        atexit.register(os._exit, 2 if isinstance(error, UserError) else 1)
        if processes.publish(error):
            raise
        raise SystemExit(2) from error
    distributed.destroy_process_group()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of every command that trains in several processes: `--launcher` and `--timeout`."""
    parser.add_argument(
        "--launcher", choices=LAUNCHERS, help="what started the processes; by default pytorch under torchrun, else none"
    )
    parser.add_argument(
        "--timeout", type=float, default=TIMEOUT, metavar="SECONDS", help="how long processes wait for each other"
    )
    # torch.distributed.launch adds it; the environment says the same
    parser.add_argument("--local-rank", "--local_rank", type=int, help=argparse.SUPPRESS)
