"""A task that learns from a data set in epochs: classification, detection and segmentation."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from vheatir.backbone.training.batches import EpochPlan, checked, train_loader
from vheatir.backbone.training.processes import Processes
from vheatir.backbone.training.task import Task


class DatasetTask(Task):
    """Batches in the order of an `EpochPlan`, rates by a function of the step.

    A task evaluates as it is; to train, it is given `learn_from` first.

    Args:
        processes: those that train, or evaluate, together.
        device: of the network.
    """

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

    def set_lr(self, step: int) -> None:
        self._set_lr(step)

    def position(self, step: int) -> dict[str, Any]:
        """Epoch, and the images of it that have been seen by all processes together."""
        epoch, within = divmod(step, self.plan.steps_per_epoch)
        return {"epoch": epoch, "images": self.plan.images_seen(epoch, within)}

    def resume_at(self, step: int, position: Mapping[str, Any]) -> int:
        self.plan, done = self.plan.resumed(position["epoch"], position["images"])
        return done
