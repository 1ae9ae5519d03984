"""One update of the weights, the same in the loop and where BasicSR's own loop drives a model."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from vheatir.backbone.training.average import Average
from vheatir.backbone.training.processes import Processes

# What schedules change as they go; the rest comes from the options.
_MOVING = frozenset(
    {"last_epoch", "_step_count", "_last_lr", "_get_lr_called_within_step", "_is_initial", "_initial_step"}
    | {"T_cur", "T_i", "_schedulers"}
)
_HOW = ("foreach", "fused")  # how an optimizer computes its steps: the device's matter, no option of the run
_COUNTERS = frozenset({"step", "lookahead_step"})  # of LAMB, Adan and Lookahead, which count steps beside their options
Loss = Callable[[nn.Module, Any], tuple[Tensor, dict[str, Tensor]]]


class Update:
    """Gradients of the parts of a step, clipping, optimizer, scale of fp16, average of the weights.

    Args:
        network: what learns, on its device.
        optimizer: of its parameters.
        dtype: of autocast; None for none. float16 scales the gradients.
        grad_clip: largest norm of the gradient; None or 0 for no limit.
        average: of the weights; None for none.
        compile_network: run the network through `torch.compile`.
        check_each: look in every step whether loss and gradient are finite, which makes the host wait for the device,
            and take the means of the losses over the processes.
        mean_statistics: average the running statistics of norms over the processes after each step. Without it each
            process keeps its own, and those of the first count (`share_buffers`), as the classification recipes state.
        unit: what messages call a step.
        processes: those that train together; gradients are averaged over them.
        find_unused: not every forward pass uses all parameters.
        section: of the options, that states the optimizer; messages name it.
        schedulers: of its rates, where they have a state of their own.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        dtype: torch.dtype | None = None,
        grad_clip: float | None = None,
        average: Average | None = None,
        compile_network: bool = False,
        check_each: bool = False,
        mean_statistics: bool = False,
        unit: str = "step",
        processes: Processes | None = None,
        find_unused: bool = False,
        section: str = "train",
        schedulers: Sequence[torch.optim.lr_scheduler.LRScheduler] = (),
    ):
        self.bare = network
        self.optimizer = optimizer
        self.average = average
        self.device = next(network.parameters()).device
        self.dtype = dtype
        self.grad_clip = grad_clip
        self.section = section
        self.schedulers = schedulers
        self.check_each = check_each
        self.mean_statistics = mean_statistics
        self.unit = unit
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=dtype is torch.float16)
        self.processes = processes or Processes()
        self.find_unused = find_unused
        self.compile_network = compile_network
        self._wrapped: nn.Module | None = None  # the network in DistributedDataParallel, where several processes train
        self._forward: nn.Module | None = None  # and compiled, where that is wanted

    def _prepare(self) -> nn.Module:
        """What the forward passes run; made in the first step, in all processes, which start with the first's network.

        Until then processes may still be agreeing on what they build, which must not communicate.
        """
        if self._forward is None:
            together = self.processes.world > 1
            self._wrapped = self.processes.wrap(self.bare, self.find_unused) if together else None
            network = self._wrapped or self.bare
            self._forward = torch.compile(network) if self.compile_network else network
        return self._forward

    def step(
        self, parts: Iterable[tuple[Any, bool]], loss_of: Loss, number: int, batches: int = 1
    ) -> dict[str, list[Tensor]]:
        """Update the weights once.

        Args:
            parts: what one forward pass takes each, and whether it is the last one, after which gradients are
                exchanged.
            loss_of: the loss of a part, called in autocast with the network, and further scalars to log; the gradients
                of all parts add up.
            number: of this step, counted from 1.
            batches: whose losses are averaged in the step; the losses of the parts of one add up.

        Returns:
            The values of "loss" and of the further scalars in each part, still on the device, and "grad_norm". With
            `check_each` one value each: summed over the parts, the mean over the processes.

        Raises:
            FloatingPointError: with `check_each`, loss or gradient is not finite; the weights are as they were.
        """
        forward = self._prepare()
        noted: dict[str, list[Tensor]] = {}
        for part, is_last in parts:
            with nullcontext() if is_last or self._wrapped is None else self._wrapped.no_sync():
                with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
                    loss, scalars = loss_of(forward, part)
                self.scaler.scale(loss if batches == 1 else loss / batches).backward()
            for name, value in {"loss": loss, **scalars}.items():
                noted.setdefault(name, []).append(value.detach())
        if self.check_each:
            noted = self._checked(noted, number, batches)
        norm = self._clip(number)
        if norm is not None:
            noted["grad_norm"] = [norm]
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.mean_statistics:
            self.processes.share_statistics(self.bare)
        if self.average is not None:
            self.average.update(self.bare, number)
        return noted

    def _checked(self, noted: dict[str, list[Tensor]], number: int, batches: int) -> dict[str, list[Tensor]]:
        """Sums over the parts, means over the processes; alike in all processes, and so is the error."""
        means = self.processes.mean_(torch.stack([torch.stack(values).sum() / batches for values in noted.values()]))
        if not torch.isfinite(means[0]):
            raise FloatingPointError(f"the loss is {float(means[0])} at {self.unit} {number}")
        return {name: [mean] for name, mean in zip(noted, means, strict=True)}

    def _clip(self, number: int) -> Tensor | None:
        """The norm of all gradients together, which are clipped to their limit; None where nobody wants to know it."""
        self.scaler.unscale_(self.optimizer)
        if not self.check_each and not self.grad_clip:
            return None
        parameters = list(self.bare.parameters())
        norm = nn.utils.get_total_norm([one.grad for one in parameters if one.grad is not None])
        # Such a step would write NaN into the weights; the scaler of fp16 skips it by itself, and adapts.
        if self.check_each and not self.scaler.is_enabled() and not torch.isfinite(norm):
            raise FloatingPointError(f"the gradient's norm is {float(norm)} at {self.unit} {number}")
        if self.grad_clip:
            nn.utils.clip_grads_with_norm_(parameters, self.grad_clip, norm)
        return None if self.scaler.is_enabled() and not self.check_each and not torch.isfinite(norm) else norm

    def share_buffers(self) -> None:
        """Where each process keeps statistics of its own, those of the first one count."""
        if self.processes.world == 1 or self.mean_statistics:
            return
        for network in [self.bare, *([self.average.network] if self.average else [])]:
            self.processes.broadcast_buffers(network)

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs of the weights and what moves them."""
        state = {
            "network": self.bare.state_dict(),
            "optimizers": [self.optimizer.state_dict()],
            "schedulers": [dict(scheduler.state_dict()) for scheduler in self.schedulers],
            "scaler": self.scaler.state_dict(),
        }
        if self.average is not None:
            state["network_ema"] = self.average.network.state_dict()
        return state

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned.

        Raises:
            KeyError, RuntimeError, ValueError: it belongs to another network or other options.
        """
        self.bare.load_state_dict(state["network"])
        if self.average is not None:
            self.average.network.load_state_dict(state.get("network_ema", state["network"]))
        cycled = any(saved.get("cycle_momentum") for saved in state["schedulers"])
        moving = frozenset({"lr", "betas", "momentum"} if cycled else {"lr"})
        if not self.schedulers:  # the rates are a function of step and batch, which may be another one now
            moving |= {"initial_lr"}
        (saved,) = state["optimizers"]
        built = self.optimizer.state_dict()
        saved = _of_those_that_learn(saved, built)
        # torch would load the state of another optimizer without complaint, and stumble over it later
        for group, own in zip(saved["param_groups"], built["param_groups"], strict=True):
            if group.keys() - _COUNTERS != own.keys() - _COUNTERS:
                raise ValueError("it was written with another type of the optimizer or schedule")
            refuse_changes(self.section, group, own, moving.union(_HOW, _COUNTERS))
        groups = [
            {**group, **{name: own[name] for name in _HOW if name in own}}
            for group, own in zip(saved["param_groups"], built["param_groups"], strict=True)
        ]
        self.optimizer.load_state_dict({**saved, "param_groups": groups})
        for scheduler, saved in zip(self.schedulers, state["schedulers"], strict=True):
            if saved.keys() != scheduler.state_dict().keys():
                raise ValueError("it was written with another type of the optimizer or schedule")
            refuse_changes("train.scheduler", saved, scheduler.state_dict(), _MOVING)
            scheduler.load_state_dict(saved)
        if state["scaler"]:  # empty where the run had no fp16 until now, as on another device with amp: auto
            self.scaler.load_state_dict(state["scaler"])


def _of_those_that_learn(saved: dict[str, Any], built: dict[str, Any]) -> dict[str, Any]:
    """An optimizer's state without parameters that it never moved, where these are what it lists beyond the run's.

    Checkpoints of older versions list weights on which nothing depends, such as the embedding of a network with a fixed
    diffusivity, which ask for no gradient now.

    Args:
        saved: state of the checkpoint's optimizer.
        built: state of this run's optimizer.
    """
    listed, own = ([number for group in one["param_groups"] for number in group["params"]] for one in (saved, built))
    moved = [number for number in listed if number in saved["state"]]
    if len(listed) == len(own) or len(moved) != len(own):
        return saved
    now = dict(zip(moved, own, strict=True))
    groups = [
        {**group, "params": [now[number] for number in group["params"] if number in now]}
        for group in saved["param_groups"]
    ]
    return {**saved, "state": {now[number]: saved["state"][number] for number in moved}, "param_groups": groups}


def refuse_changes(section: str, saved: dict[str, Any], built: dict[str, Any], moving: frozenset[str]) -> None:
    """Raise ValueError where options differ from those of the checkpoint, which would silently win.

    Args:
        section: of the options, for the message.
        saved: options of the checkpoint.
        built: options of this run.
        moving: names that may differ, since the run changes them.
    """
    for key, value in saved.items():
        if key not in moving and isinstance(value, int | float | list | tuple | dict) and value != built[key]:
            raise ValueError(f"{section}: {key} was {value}, is now {built[key]}")
