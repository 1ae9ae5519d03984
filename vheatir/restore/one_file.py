"""One file restored into another: the level found, colors restored row by row, everything else carried over."""

import math
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vheatir.errors import UserError
from vheatir.image_io import MAX_PIXELS, open_image
from vheatir.image_io.formats import DEPTHS, MOST_SIDE, Stored, format_of, written_format
from vheatir.image_io.heif import check_writer
from vheatir.image_io.write import lost, write_blocks
from vheatir.restore.defaults import DEFAULT_CRF, GOOD_QUALITY
from vheatir.restore.estimate_level import quality_of_tables
from vheatir.restore.restorer import Restorer
from vheatir.utils.files import atomic_open

_COPIED_ROWS = 256
BY_ROWS = 8_000_000  # pixels; larger TIFFs are read as they are restored


@dataclass(frozen=True)
class FileOptions:
    """What holds for every file.

    Attributes:
        level: sigma (0-255) for weights that take one, or JPEG quality; None: read from the file or estimated.
        max_pixels: larger images are refused.
        by_rows: TIFFs of more pixels are read while they are restored.
        crf: of a clip's encoder: constant quality, lower is better and larger.
    """

    level: float | None = None
    max_pixels: int = MAX_PIXELS
    by_rows: int = BY_ROWS
    crf: float = DEFAULT_CRF


@dataclass
class Outcome:
    """What became of one file.

    Attributes:
        status: done, kept (it was there before), failed, open.
        message: why it failed.
        level: the noise level or JPEG quality that was found, in words.
        notes: what the user should know, such as metadata that the format cannot hold.
        seconds: that it took.
    """

    status: str
    message: str = ""
    level: str = ""
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0


def restore_file(
    restorer: Restorer,
    source: Path,
    target: Path,
    options: FileOptions,
    on_tile: Callable[[float], None] | None = None,
) -> Outcome:
    """Restore one file into another; whatever goes wrong is raised, and leaves the target alone.

    Args:
        restorer: what restores.
        source: image file.
        target: file to write, in the format of its suffix; its folder exists.
        options: see `FileOptions`.
        on_tile: called with the share done, from 0 to 1.
    """
    begun = time.monotonic()
    stored = open_image(source, max_pixels=options.max_pixels, by_rows=options.by_rows)
    try:
        shape = (stored.height, stored.width, stored.colors)
        _check_target(target, stored)
        if not format_of(source) == format_of(target) == "TIFF":  # a header that is made says nothing of it
            stored = stored.straight()
        level = find_level(restorer, stored, options.level)
        is_copied = level.is_good and format_of(source) == format_of(target)
        if is_copied:
            _copy(source, target)
        else:
            rows = restorer.restore_rows(stored.floats, shape, level=level.of_network, on_tile=on_tile)
            rows = _rows_as_they_are(stored) if level.is_good else rows
            blocks = _blocks(stored, rows)
            write_blocks(target, (*shape[:2], stored.channels), stored.bit_depth, blocks, stored.extras)
    finally:
        stored.close()
    notes = [] if is_copied else list(stored.notes)
    if format_of(source) != format_of(target):
        notes += lost(stored.extras, format_of(target))
        if format_of(target) == "HEIF" and stored.bit_depth == 16 and "heif_bits" not in stored.extras:
            notes.append("HEIC holds 10 bits of the 16 of each sample; PNG and TIFF hold all")
    if level.is_good:
        advice = f"`vheatir restore --quality {GOOD_QUALITY - 1}` restores it"  # also read on the page of `serve`
        notes.append(f"quality {GOOD_QUALITY} or better: left as it is; {advice}")
    if format_of(source) not in DEPTHS:
        notes.append(f"{format_of(source)} files are only read; the result is a {format_of(target)} file")
    return Outcome("done", level=level.text, notes=notes, seconds=round(time.monotonic() - begun, 3))


def _check_target(target: Path, stored: Stored) -> None:
    """Refuse, before the work is done, a format that cannot hold the image or cannot be written here."""
    kind = written_format(target)
    if stored.bit_depth not in DEPTHS[kind]:
        able = ", ".join(name for name, depths in DEPTHS.items() if stored.bit_depth in depths)
        raise UserError(f"{target}: {kind} cannot hold {stored.bit_depth} bits; write {able}")
    if stored.has_alpha and kind == "JPEG":
        raise UserError(f"{target}: JPEG cannot hold transparency; write another format, such as PNG")
    if max(stored.height, stored.width) > MOST_SIDE.get(kind, math.inf):
        size = f"{stored.width}x{stored.height} pixels"
        raise UserError(f"{target}: {kind} cannot hold {size}, only sides up to {MOST_SIDE[kind]}; write PNG or TIFF")
    if kind == "HEIF":
        check_writer(str(target))


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as content:
        try:
            with atomic_open(target) as file:
                shutil.copyfileobj(content, file)
        except OSError as error:
            raise UserError(f"{target}: cannot be written: {error.strerror or error}") from error


def _rows_as_they_are(stored: Stored) -> Iterator[np.ndarray]:
    for top in range(0, stored.height, _COPIED_ROWS):
        yield stored.floats(top, min(top + _COPIED_ROWS, stored.height))[0]


def _blocks(stored: Stored, restored: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    top = 0
    for rows in restored:
        yield stored.raw(top, rows)
        top += len(rows)


class Level(NamedTuple):
    """The noise level or JPEG quality of an image.

    Attributes:
        of_network: what the network is given; None for blind weights.
        text: for the user.
        is_good: a JPEG image of a quality that the network cannot better.
    """

    of_network: float | None
    text: str
    is_good: bool = False


def find_level(restorer: Restorer, stored: Stored, given: float | None) -> Level:
    """The level as it was given, read from the file or estimated.

    Args:
        restorer: the network, and how it is used.
        stored: the image.
        given: sigma or quality; None estimates it.
    """
    if restorer.task == "photo":
        noise, quality = (_found(restorer, stored, task)[1] for task in ("photo", "jpeg"))
        return Level(None, f"{noise}; {quality}")
    is_noise = restorer.task == "denoise"
    if given is not None and (restorer.takes_level or not is_noise):
        level = given
        text = f"noise level {given:g} (given)" if is_noise else f"JPEG quality {given:g} (given)"
    else:
        level, text = _found(restorer, stored, restorer.task)
    is_good = not is_noise and level is not None and level >= GOOD_QUALITY
    return Level(level if restorer.takes_level else None, text, is_good)


def _found(restorer: Restorer, stored: Stored, task: str) -> tuple[float | None, str]:
    """The noise level, or for "jpeg" the quality, read from the file or estimated, and the same in words."""
    noise = task != "jpeg"
    shape = (stored.height, stored.width, stored.colors)
    tables = stored.extras.get("quantization")
    if not noise and tables:
        level, exact = quality_of_tables(tables)
        text = f"JPEG quality {level} (from the file)" if exact else f"JPEG quality about {level} (nearest tables)"
    else:
        try:
            level = restorer.measure(stored.floats, shape, task)
        except (UserError, MemoryError):
            raise
        except Exception as error:  # an estimate for the eye is no reason to give up
            return None, f"level unknown ({type(error).__name__})"
        if noise:
            text = f"noise level {level:.1f} (estimated)"
        else:
            text = "no trace of JPEG found" if level is None else f"JPEG quality {level} (estimated)"
    return level, text
