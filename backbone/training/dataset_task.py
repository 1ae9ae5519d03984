"""A task that learns from a data set in epochs: classification, detection and segmentation."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from vheatir.backbone.training.batches import EpochPlan, checked, train_loader
from vheatir.backbone.training.processes import Processes
from vheatir.backbone.training.task import Task

_log = logging.getLogger(__name__)


def check_same_classes(before: Sequence[str], now: Sequence[str], where: str) -> None:
    """Refuse classes that had other numbers before, with which a network would be taught or scored wrongly.

    Numbers that have another name are logged: it may be the same class.

    Args:
        before: names in the order of their numbers, when the weights were trained.
        now: the same, in this set.
        where: what knows those before, for messages.

    Raises:
        ValueError: a name has another number.
    """
    numbers = {name: number for number, name in enumerate(before)}
    for number, name in enumerate(now):
        if numbers.get(name, number) != number:
            raise ValueError(f"class {name!r} is number {numbers[name]} in {where}, and number {number} in this set")
    renamed = [pair for pair in zip(before, now, strict=False) if pair[0] != pair[1]]
    if renamed:
        first, second = renamed[0]
        _log.warning("%d classes have other names than in %s: %r is now %r", len(renamed), where, first, second)


class DatasetTask(Task):
    """Batches in the order of an `EpochPlan`, rates by a function of the step.

    A task evaluates as it is; to train, it is given `learn_from` first.

    Args:
        processes: those that train, or evaluate, together.
        device: of the network.
    """

    saves_memory = (
        "smaller images need less, and so does a smaller data.batch_size; a step stays the same where train.accumulate "
        "grows as much"
    )

    def __init__(self, processes: Processes, device: torch.device):
        self.processes = processes
        self.device = device

    def learn_from(self, samples: Any, plan: EpochPlan, stop: int, set_lr: Callable[[int], None], workers: int) -> None:
        """Take what training needs.

        Args:
            samples: the training set.
            plan: its order.
            stop: steps in all.
            set_lr: sets the learning rates of a step, counted from 0.
            workers: loader processes of each process.
        """
        self.training_set = samples
        self.plan = plan
        self.stop = stop
        self.workers = workers
        self.batches_per_step = plan.accumulate
        self._set_lr = set_lr

    def batches(self, step: int) -> Iterable:
        pin = self.device.type == "cuda"
        return checked(train_loader(self.training_set, self.plan, step, self.stop, self.workers, pin))

    def class_names(self) -> list[str] | None:
        """Names of the classes of the training set in the order of their numbers; None where nothing states them."""
        return None

    def state(self) -> dict[str, Any]:
        return {"images": self.plan.size, "classes": self.class_names()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        if not state:  # runs begun before it was kept
            return
        super().load_state({key: value for key, value in state.items() if key not in ("images", "classes")})
        now = self.class_names()
        if state["classes"] and now:
            check_same_classes(state["classes"], now, "the run")
        if state["images"] != self.plan.size:
            _log.warning("the training set had %d images, and has %d now", state["images"], self.plan.size)

    def set_lr(self, step: int) -> None:
        self._set_lr(step)

    def position(self, step: int) -> dict[str, Any]:
        """Epoch, and the images of it that have been seen by all processes together."""
        epoch, within = self.plan.place(step)
        return {"epoch": epoch, "images": self.plan.images_seen(epoch, within)}

    def resume_at(self, step: int, position: Mapping[str, Any]) -> int:
        self.plan, done = self.plan.resumed(position["epoch"], position["images"], step)
        self.left_out = not self.plan.keeps_steps and self.plan.place(done)[0] > position["epoch"]
        return done
