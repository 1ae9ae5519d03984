"""Training checkpoints: one file each, written atomically, the newest few and the best kept, cut files passed over."""

import io
import logging
import os
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from vheatir.errors import UserError
from vheatir.utils.files import atomic_open

_NAME = re.compile(r"^iter_(\d{8,})\.pt$")
_BEST = re.compile(r"^best_(\d{8,})\.pt$")
_logger = logging.getLogger("vheatir")


def save_checkpoint(folder: Path, iteration: int, state: dict[str, Any], keep: int, best: int | None = None) -> Path:
    """Write the checkpoint of an iteration and keep the newest `keep` up to it, and that of the iteration `best`.

    Those of more steps go: they are damaged ones, before which the run was resumed, or of a run that was resumed with
    larger batches, whose steps are fewer, and would take the place of newer whole ones. The best of such a run stays as
    `best_*.pt`, which is not taken for the newest.

    Args:
        folder: of the run's checkpoints.
        iteration: steps done.
        state: what `torch.save` writes.
        keep: how many of the newest stay.
        best: step of the best evaluation so far; None for none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"iter_{iteration:08d}.pt"
    with atomic_open(path) as file:
        torch.save(state, file)
    kept = sorted(number for number in _list(folder) if number <= iteration)[-max(keep, 1) :]
    if best is not None and best <= iteration:
        kept.append(best)
    elif best in _list(folder):
        os.replace(folder / f"iter_{best:08d}.pt", folder / f"best_{best:08d}.pt")
    for old in set(_list(folder)).difference(kept):
        (folder / f"iter_{old:08d}.pt").unlink(missing_ok=True)
    for old in set(_list(folder, _BEST)).difference([best]):
        (folder / f"best_{old:08d}.pt").unlink(missing_ok=True)
    return path


def _list(folder: Path, name: re.Pattern[str] = _NAME) -> list[int]:
    matches = (name.match(path.name) for path in folder.glob("*.pt"))
    return [int(match.group(1)) for match in matches if match]


def _newest_first(folder: Path) -> list[Path]:
    """All checkpoints; the best before a run's steps became fewer comes last."""
    names = [
        f"{kind}_{number:08d}.pt"
        for kind, one in (("iter", _NAME), ("best", _BEST))
        for number in sorted(_list(folder, one), reverse=True)
    ]
    return [folder / name for name in names]


def _parse(data: bytes) -> dict[str, Any]:
    file = io.BytesIO(data)
    with zipfile.ZipFile(file) as archive:  # torch reads damaged tensors without complaint; the archive has checksums
        damaged = archive.testzip()
    if damaged is not None:
        raise zipfile.BadZipFile(f"checksum of {damaged}")
    file.seek(0)
    return torch.load(file, map_location="cpu", weights_only=True)


def has_checkpoint(folder: Path) -> bool:
    """Whether a folder holds a checkpoint, whole or not."""
    return bool(_newest_first(folder))


def load_latest(folder: Path) -> dict[str, Any] | None:
    """The newest checkpoint that is whole; damaged ones are passed over with a warning. None where there is none.

    One that cannot be read at all may be whole: to go on before it would in the end delete it.

    Raises:
        UserError: there are checkpoints, but none is whole; or the newest cannot be read, or not be held in memory.
    """
    paths = _newest_first(folder)
    for path in paths:
        try:
            return _parse(path.read_bytes())
        except (OSError, MemoryError) as error:
            raise UserError(f"{path} cannot be read ({error or 'not enough memory'}); nothing was changed") from error
        except Exception as error:  # readers raise whatever they like on damaged bytes
            _logger.warning("%s is damaged (%s): using the one before it", path, error)
    if paths:
        raise UserError(f"{folder}: none of {len(paths)} checkpoints is whole; start again without --resume")
    return None
