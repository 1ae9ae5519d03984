"""What is allowed, but seldom meant: said in the log before the first step."""

import os
from collections.abc import Iterable, Mapping
from typing import Any

# keys of a data set that say where its images lie and how they are read
_OF_PLACE = frozenset({"name", "dataroot_gt", "dataroot_lq", "io_backend", "cache", "meta_info_file"})


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
        lines += [
            f"note: datasets.{phase}: include or exclude has {pattern}, which no image of {dataset.source.root} matches"
            for pattern in dataset.source.without_match
        ]
        if dataset.source.is_lmdb and dataset.opt.get("meta_info_file"):
            lines.append(f"note: datasets.{phase}: meta_info_file: for folders alone; of an LMDB all images are taken")
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


def measure_of(options: Mapping[str, Any], phases: Iterable[str]) -> dict[str, str]:
    """What decides how high scores are besides network, metric and images, as text by its key; empty without sets.

    Args:
        options: of the run.
        phases: of the validation sets.
    """
    found = {}
    for phase in phases:
        table = options["datasets"][phase]
        found[f"datasets.{phase}"] = str({key: table[key] for key in sorted(table) if key not in _OF_PLACE})
    if found:
        found |= {f"val.{key}": str(options["val"].get(key) or None) for key in ("max_images", "self_ensemble")}
    return found


def changed_measure(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Lines for the log of a resumed run whose scores do not compare with those of the checkpoint.

    Args:
        before: `measure_of` the run that wrote the checkpoint; empty where it is not known.
        now: the same of this run.
    """
    keys = sorted(before.keys() | now.keys()) if before and now else []
    return [
        f"note: {key} was {before.get(key, 'missing')}, is now {now.get(key, 'missing')}: scores do not compare with "
        "the best so far"
        for key in keys
        if before.get(key) != now.get(key)
    ]


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
