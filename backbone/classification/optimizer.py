"""Optimizer and learning rates of a recipe for classifiers."""

from collections.abc import Callable

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import nn

from vheatir.backbone.classification.recipe import ClassificationTrain
from vheatir.backbone.training.schedules import unified_schedule, vheat_schedule

_PUBLISHED = {"vheat": vheat_schedule, "unified": unified_schedule}


def make_optimizer(train: ClassificationTrain, model: nn.Module, images_per_step: int) -> torch.optim.Optimizer:
    """timm's optimizer; no decay of biases, one-dimensional weights and what the model names.

    Args:
        train: the recipe's section.
        model: the network.
        images_per_step: of all processes together; scales the learning rate.

    Raises:
        ValueError: an unknown name or argument.
    """
    lr = scaled_lr(train, images_per_step)["base"]
    try:
        optimizer = create_optimizer_v2(
            model,
            train.optimizer,
            lr=lr,
            weight_decay=train.weight_decay,
            layer_decay=train.layer_decay,
            **train.optimizer_args,
        )
    except (TypeError, ValueError, AssertionError) as error:
        raise ValueError(f"train.optimizer {train.optimizer} with {train.optimizer_args}: {error}") from error
    if getattr(optimizer, "is_second_order", False):
        raise ValueError(
            f"train.optimizer {train.optimizer} needs second derivatives, which training does not compute; take one "
            "of first order, such as adamw or lamb"
        )
    return optimizer


def scaled_lr(train: ClassificationTrain, images_per_step: int) -> dict[str, float]:
    """Highest, last and first learning rate for the batch of a step."""
    factor = images_per_step / train.lr_for_batch if train.lr_for_batch else 1.0
    return {"base": train.lr * factor, "final": train.min_lr * factor, "warmup_start": train.warmup_lr * factor}


def make_lr_schedule(
    train: ClassificationTrain, optimizer: torch.optim.Optimizer, steps_per_epoch: int, images_per_step: int
) -> Callable[[int], None]:
    """A function that sets the learning rates of a step.

    Args:
        train: the recipe's section.
        optimizer: its parameter groups are set.
        steps_per_epoch: optimizer steps of an epoch.
        images_per_step: of all processes together; scales the learning rate.

    Raises:
        ValueError: an unknown scheduler or argument.
    """
    rates = scaled_lr(train, images_per_step)
    if train.scheduler in _PUBLISHED:
        table = _PUBLISHED[train.scheduler](train.epochs, train.warmup_epochs, steps_per_epoch, **rates)

        def set_lr(step: int) -> None:
            for group in optimizer.param_groups:
                group["lr"] = float(table[step]) * group.get("lr_scale", 1.0)

        return set_lr
    try:
        if train.scheduler in ("plateau", "none"):
            raise ValueError("is no function of the step")
        scheduler, needed = create_scheduler_v2(
            optimizer,
            train.scheduler,
            warmup_epochs=train.warmup_epochs,
            min_lr=rates["final"],
            warmup_lr=rates["warmup_start"],
            step_on_epochs=False,
            updates_per_epoch=steps_per_epoch,
            **{"num_epochs": train.epochs, **train.scheduler_args},
        )
    except (TypeError, ValueError, AssertionError) as error:
        raise ValueError(f"train.scheduler {train.scheduler} with {train.scheduler_args}: {error}") from error
    if scheduler is None:
        raise ValueError(f"train.scheduler: unknown {train.scheduler!r}; take vheat, unified, cosine, step or poly")
    if needed > train.epochs:  # by which timm's own loop would lengthen the run
        raise ValueError(
            f"train.scheduler {train.scheduler} with {train.scheduler_args} takes {needed} epochs, with its cycles, "
            f"cooldown and the warm-up before them, but train.epochs is {train.epochs}; raise that, and state the "
            "epochs of one cycle as num_epochs in train.scheduler_args"
        )
    return scheduler.step_update
