"""What is allowed, but seldom meant: said in the log before the first step."""

import os
from collections.abc import Mapping
from typing import Any


def notes(options: Mapping[str, Any], datasets: Mapping[str, Any]) -> list[str]:
    """Lines for the log.

    Args:
        options: of the run, checked.
        datasets: by phase.
    """
    lines = []
    trained = set(_places(datasets["train"]))
    for phase, dataset in datasets.items():
        seen = 0 if phase == "train" else sum(place in trained for place in _places(dataset))
        if seen:
            lines.append(
                f"note: {seen} of {len(dataset)} images of datasets.{phase} are trained on too: their scores tell "
                "nothing about other images, and best.* may be an overfitted network"
            )
        unused = [key for key in sorted(dataset.OF_CROPS) if phase != "train" and dataset.opt.get(key)]
        if unused:
            lines.append(
                f"note: datasets.{phase}: {', '.join(unused)}: for training samples alone; whole images go without"
            )
    total = options["train"]["total_iter"]
    lines += [
        f"note: datasets.train.progressive: the stage of iteration {stage.start} never begins, train.total_iter is "
        f"{total}"
        for stage in datasets["train"].stages
        if stage.start >= total
    ]
    key, end = _end_of_schedule(options["train"]["scheduler"])
    if end is not None and end > total:
        lines.append(f"note: {key} is {end}, train.total_iter {total}: the learning rate stops short of its fall")
    if end is not None and key.endswith("T_max") and end < total - 1:
        lines.append(f"note: {key} is {end}, train.total_iter {total}: the learning rate rises again after its fall")
    return lines


def changed_images(before: Mapping[str, int], now: Mapping[str, int]) -> list[str]:
    """Lines for the log of a resumed run about data sets that have another number of images.

    Args:
        before: images by phase, of the checkpoint.
        now: the same of this run.
    """
    effects = {"train": "samples differ from those of an uninterrupted run"}
    lines = []
    for phase in before.keys() & now.keys():
        if before[phase] != now[phase]:
            effect = effects.get(phase, "scores do not compare with the best so far")
            lines.append(f"note: datasets.{phase} had {before[phase]} images, now {now[phase]}: {effect}")
    return sorted(lines)


def _places(dataset: Any) -> list[str]:
    root = os.path.realpath(dataset.source.root)
    return [f"{root}/{key}" for key in dataset.keys]


def _end_of_schedule(scheduler: Mapping[str, Any]) -> tuple[str, int | None]:
    """The key that says when a cosine ends, and its iteration; None for other schedules."""
    if scheduler["type"] == "CosineAnnealingRestartLR":
        return "the sum of train.scheduler.periods", sum(scheduler["periods"])
    if scheduler["type"] == "CosineAnnealingLR":
        return "train.scheduler.T_max", scheduler["T_max"]
    return "", None
