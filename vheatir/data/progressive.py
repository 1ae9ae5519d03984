"""Progressive training: crops grow and batches shrink as training goes on (Restormer, arXiv 2111.09881)."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from vheatir.backbone.training.schema import is_number
from vheatir.errors import UserError

_KEYS = {"start_iter": 1, "gt_size": 1, "batch_size_per_gpu": 1}  # with their least values
DEFAULT_BATCH = 8


class CropStage(NamedTuple):
    """From iteration `start` (counted from 0) on: samples per process and iteration, side of the crops in pixels."""

    start: int
    batch: int
    gt_size: int


class SampleIndex(NamedTuple):
    """A sample of progressive training: its number, and the side of its crop in pixels."""

    number: int
    gt_size: int


def parse_stages(table: Mapping[str, Any]) -> tuple[CropStage, ...]:
    """The stages of a training set's options, in order; one where there is no `progressive`.

    `gt_size` and `batch_size_per_gpu` are those of the first stage. `progressive` lists the later ones as tables
    {start_iter, gt_size[, batch_size_per_gpu]}; a batch size that is left out stays as it was.
    """
    later = table.get("progressive") or []
    if not isinstance(later, Sequence) or not all(isinstance(stage, Mapping) for stage in later):
        raise UserError(f"progressive: expected a list of {{start_iter, gt_size, batch_size_per_gpu}}, got {later!r}")
    stages = [CropStage(0, table.get("batch_size_per_gpu") or DEFAULT_BATCH, table["gt_size"])]
    for number, stage in enumerate(later):
        where = f"progressive[{number}]"
        if unknown := sorted(map(str, stage.keys() - _KEYS.keys())):
            raise UserError(f"{where}: unknown key {unknown[0]}; known: {', '.join(_KEYS)}")
        values = {"batch_size_per_gpu": stages[-1].batch, **stage}
        for key, least in _KEYS.items():
            if not is_number(values.get(key), integer=True) or values[key] < least:
                raise UserError(f"{where}.{key}: expected an integer of at least {least}, got {values.get(key)!r}")
        if values["start_iter"] <= stages[-1].start:
            raise UserError(
                f"{where}.start_iter: expected more than {stages[-1].start}, where the stage before begins, got "
                f"{values['start_iter']}"
            )
        stages.append(CropStage(values["start_iter"], values["batch_size_per_gpu"], values["gt_size"]))
    return tuple(stages)
