"""Restoration as a task of the training loop."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from vheatir.backbone.training.signals import ignore_signals
from vheatir.backbone.training.task import Task
from vheatir.data.progressive import DEFAULT_BATCH
from vheatir.data.sampling import IterationSampler
from vheatir.train.notes import changed_images, changed_measure, measure_of
from vheatir.train.validation import validation_table


class RestorationTask(Task):
    """Batches by their iteration, losses and validation of a `VHeatIRModel`.

    Args:
        model: network, losses, schedules and metrics, in its processes.
        train_set: the training set.
        validation_sets: by phase: val, val_NAME.
        options: checked and complete.
        total: iteration at which batches end.
        images: folder for validated images; None for none.
    """

    total = None
    weights_key = "path.pretrain_network_g"
    saves_memory = (
        "smaller batches or images need less, train.accumulate takes a batch in parts, and val.tile an image of the "
        "validation"
    )

    def __init__(
        self,
        model: Any,
        train_set: Any,
        validation_sets: Mapping[str, Any],
        options: Mapping[str, Any],
        total: int,
        images: Path | None = None,
    ):
        self.model = model
        self.train_set = train_set
        self.validation_sets = validation_sets
        self.options = options
        self.stop = total
        self.images = images
        self.best = options["val"].get("best") or "psnr"
        metric = (options["val"].get("metrics") or {}).get(self.best, {})
        self.lower_is_better = metric.get("better") == "lower"  # as BasicSR's loop reads it
        self.iteration = 0
        self.results = {}
        self.notes: list[str] = []  # for the log of a resumed run
        self.sampler = self._sampler(0, None)

    def _sampler(self, step: int, first_sample: int | None) -> IterationSampler:
        processes = self.model.processes
        batch = self.options["datasets"]["train"].get("batch_size_per_gpu") or DEFAULT_BATCH
        return IterationSampler(
            batch * processes.world,
            self.stop,
            step,
            processes.rank,
            processes.world,
            stages=self.train_set.stages,
            first_sample=first_sample,
        )

    def batches(self, step: int) -> Iterable:
        return DataLoader(
            self.train_set,
            batch_sampler=self.sampler,
            num_workers=self.options["datasets"]["train"].get("num_worker_per_gpu") or 0,
            pin_memory=self.model.device.type == "cuda" and self.options["datasets"]["train"].get("pin_memory", True),
            generator=torch.Generator(),  # a loader would draw its seed from the generator of the network
            worker_init_fn=ignore_signals,
        )

    def parts(self, batch: dict[str, Any], step: int, device: torch.device) -> Sequence[slice]:
        self.model.feed_data(batch)
        return self.model.parts(step)

    def loss(self, network: nn.Module, part: slice) -> tuple[Tensor, dict[str, Tensor]]:
        return self.model.part_loss(network, part)

    def set_lr(self, step: int) -> None:
        self.iteration = step + 1
        self.model.update_learning_rate(self.iteration, warmup_iter=self.options["train"].get("warmup_iter") or -1)

    def networks(self, network: nn.Module, average: nn.Module | None) -> dict[str, nn.Module]:
        """The average where there is one, and nothing else."""
        return {"": network if average is None else average}

    def evaluate(self, network: nn.Module) -> dict[str, float]:
        """Scores of all validation sets, restored and as they were given."""
        scores = {}
        self.results = {}
        for phase, dataset in self.validation_sets.items():
            folder = None if self.images is None else self.images / f"{self.iteration:08d}" / phase
            result = self.results[phase] = self.model.validate(dataset, folder)
            scores |= {f"{phase}/{name}": value for name, value in result["restored"].items()}
            scores |= {f"{phase}/input_{name}": value for name, value in result["input"].items()}
        return scores

    def named(self, ending: str, scores: Mapping[str, float]) -> dict[str, float]:
        return dict(scores)

    def decides(self, scores: Mapping[str, float]) -> float | None:
        """The mean over the validation sets."""
        chosen = [value for name, value in scores.items() if name.endswith(f"/{self.best}")]
        return sum(chosen) / len(chosen)

    def report(self, where: str, scores: Mapping[str, float]) -> str:
        return f"{where}, restored (input):\n{validation_table(self.results)}"

    def last_scores(self) -> dict[str, float]:
        return self.model.batch_scores()

    def state(self) -> dict[str, Any]:
        """What best weights were chosen by, and the size of the data."""
        chosen = {"best": self.best, "metrics": self.options["val"].get("metrics")}
        return {**chosen, "measure": self._measure(), "images": self._images()}

    def _measure(self) -> dict[str, str]:
        return measure_of(self.options, self.validation_sets)

    def _images(self) -> dict[str, int]:
        sets = {"train": self.train_set, **self.validation_sets}
        return {phase: len(dataset) for phase, dataset in sets.items()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Refuse another measure of the best weights, whose scores would be compared with those of the former.

        Raises:
            ValueError: another measure, or the checkpoint of another kind of run.
        """
        state = dict(state)
        best = state.pop("best", self.best)
        metrics = state.pop("metrics", None) or {}
        self.notes = changed_images(state.pop("images", {}), self._images())
        self.notes += changed_measure(state.pop("measure", {}), self._measure())
        super().load_state(state)
        now = self.options["val"].get("metrics") or {}
        if not (metrics and now):  # before or after, nothing is validated
            return
        if best != self.best:
            raise ValueError(f"val.best was {best}, is now {self.best}")
        if metrics[best] != now[best]:
            raise ValueError(f"val.metrics.{best} was {metrics[best]}, is now {now[best]}")

    def culprits(self, batches: Sequence[Any]) -> str:
        return ", images " + ", ".join(path for batch in batches for path in batch["lq_path"])

    def position(self, step: int) -> dict[str, Any]:
        """Of so many samples all processes together are done: so each comes once, whatever their number later."""
        return {"samples": self.sampler.position(step)}

    def resume_at(self, step: int, position: Mapping[str, Any]) -> int:
        self.sampler = self._sampler(step, position["samples"])
        self.iteration = step  # an evaluation may come before the next step
        return step
