"""What recipes of detection and segmentation have in common, and what the loop needs of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from torch import nn

from vheatir.backbone.training.batches import EpochPlan
from vheatir.backbone.training.schedules import poly_factor, warmup_factor
from vheatir.backbone.training.schema import Amp, NotNegative, Positive, RunSection, Share, below, one_of
from vheatir.backbone.training.until import Epochs


@dataclass
class DenseTrain:
    """Length, AdamW and its rates.

    Attributes:
        epochs, steps: length; one of them.
        lr, weight_decay, betas: of AdamW.
        no_decay: parameters whose name contains one of these have no weight decay; all others have, biases too.
        warmup_steps, warmup_factor: linear warm-up from that share of the rate.
        schedule: "steps": the rate falls to a tenth after each epoch of `milestones`; "poly": to zero at the end, as
            `power` of what is left.
        accumulate: forward passes for a step.
        grad_clip: largest norm of the gradient.
        amp: see `autocast_dtype`.
        ema_decay, ema_warmup: average of the weights.
    """

    epochs: Annotated[int | None, Positive] = None
    steps: Annotated[int | None, Positive] = None
    lr: Annotated[float, Positive] = 1e-4
    weight_decay: Annotated[float, NotNegative] = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    no_decay: tuple[str, ...] = ("norm", "absolute_pos_embed", "relative_position_bias_table")
    warmup_steps: Annotated[int, NotNegative] = 1000
    warmup_factor: Annotated[float, Share] = 1e-3
    schedule: Annotated[str, one_of("steps", "poly")] = "steps"
    milestones: tuple[int, ...] = (8, 11)
    power: Annotated[float, Positive] = 1.0
    accumulate: Annotated[int, Positive] = 1
    grad_clip: Annotated[float | None, Positive] = None
    amp: Annotated[str, Amp] = "none"
    ema_decay: Annotated[float | None, NotNegative, below(1)] = None
    ema_warmup: bool = False


@dataclass
class DensePaths:
    """Where runs are kept, and the backbone's weights to start from; see `load_features`."""

    experiments_root: str = "experiments"
    pretrained: str | None = None
    pretrained_weights: Annotated[str, one_of("model", "ema")] = "model"
    pretrained_embeddings: Annotated[str, one_of("relative", "index")] = "relative"


@dataclass(kw_only=True)
class DenseRun(RunSection):
    """What recipes of both tasks have. `backbone` holds `name` and the arguments of `dense_backbone`."""

    backbone: dict
    train: DenseTrain = field(default_factory=DenseTrain)
    path: DensePaths = field(default_factory=DensePaths)


def check_together(recipe: Any) -> None:
    """Rules between keys.

    Raises:
        ValueError: a rule is broken.
    """
    train = recipe.train
    if not isinstance(recipe.backbone.get("name"), str):
        raise ValueError("backbone.name is missing; for example `name: vheat_tiny`")
    if (train.epochs is None) == (train.steps is None):
        raise ValueError("train needs either epochs or steps")
    if train.steps is not None and train.steps % recipe.val.every:
        raise ValueError(f"train.steps, {train.steps}, must be a multiple of val.every, {recipe.val.every} steps")
    if train.steps is not None and train.schedule == "steps":
        raise ValueError("train.schedule steps counts epochs; give train.epochs, or take poly")


def make_plan(recipe: Any, size: int, rank: int, world: int) -> EpochPlan:
    """The order of that many training images.

    Args:
        recipe: of detection or segmentation.
        size: images of the training set.
        rank: of this process.
        world: how many processes there are.
    """
    train = recipe.train
    how = {"seed": recipe.manual_seed, "keeps_steps": train.steps is not None}
    return EpochPlan(size, recipe.data.batch_size, train.accumulate, rank, world, **how)


def make_until(recipe: Any, plan: EpochPlan) -> Epochs:
    """The length of a run; one counted in steps is one of so many evaluations."""
    train = recipe.train
    every = recipe.val.every
    save_every = recipe.logger.save_freq
    if train.epochs is not None:
        return Epochs(train.epochs, plan.steps_per_epoch, every, save_every)
    return Epochs(train.steps // every, every, save_every=save_every, period="evaluation")


def parameter_groups(model: nn.Module, weight_decay: float, no_decay: Sequence[str]) -> list[dict]:
    """Parameters with and without weight decay; those with one of `no_decay` in their name have none.

    Args:
        model: the network.
        weight_decay: of the parameters that have it.
        no_decay: parts of names.
    """
    decayed = []
    undecayed = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (undecayed if any(part in name for part in no_decay) else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": undecayed, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def make_optimizer(train: DenseTrain, model: nn.Module) -> torch.optim.AdamW:
    """AdamW with the published rules of decay."""
    groups = parameter_groups(model, train.weight_decay, train.no_decay)
    return torch.optim.AdamW(groups, lr=train.lr, betas=train.betas)


def make_lr_schedule(
    train: DenseTrain, optimizer: torch.optim.Optimizer, steps: int, steps_per_epoch: int
) -> Callable[[int], None]:
    """A function that sets the learning rate of a step of `steps`.

    Args:
        train: the recipe's section.
        optimizer: its parameter groups are set.
        steps: of the whole run.
        steps_per_epoch: optimizer steps of an epoch.

    Raises:
        ValueError: the run ends before its warm-up.
    """
    if train.warmup_steps > steps:
        raise ValueError(
            f"train.warmup_steps is {train.warmup_steps}, but the run has {steps} steps, never reaching train.lr; "
            "a tenth of the steps is usual"
        )

    def factor(step: int) -> float:
        warm = warmup_factor(step, train.warmup_steps, train.warmup_factor)
        if train.schedule == "poly":
            return warm * poly_factor(step, train.warmup_steps, steps, train.power)
        return warm * 0.1 ** sum(step >= epoch * steps_per_epoch for epoch in train.milestones)

    def set_lr(step: int) -> None:
        for group in optimizer.param_groups:
            group["lr"] = train.lr * factor(step)

    return set_lr
