"""Freely licensed images chosen from a list of addresses: fetched, checked, each with its license."""

import csv
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

from vheatir.errors import UserError
from vheatir.image_io import decode_image
from vheatir.prepare.defaults import FREE
from vheatir.prepare.download import NoAnswerError, download
from vheatir.utils.files import DiskError

_SUFFIXES = {"image/jpeg": ".jpg", "image/png": ".png", "image/webp": ".webp", "image/tiff": ".tif"}
_NEEDED = ("url", "hash", "license")  # the last is the address of the license's text, the second an MD5
_AT_ONCE = 8  # connections


def read_list(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a CSV, JSON lines or Parquet file; each needs `url`, `hash` (MD5) and `license`.

    Rows of PD12M's metadata are such. `width`, `height`, `mime_type` and `source` are used where they are there.
    """
    readers = {".csv": _read_csv, ".jsonl": _read_jsonl, ".parquet": _read_parquet}
    if path.suffix not in readers:
        raise UserError(f"{path}: expected a list in {', '.join(readers)}")
    if not path.is_file():
        raise UserError(f"{path}: there is no such list")
    number = 0
    try:
        for number, row in enumerate(readers[path.suffix](path), 1):
            if not isinstance(row, dict):
                raise ValueError(f"row {number} is no table with {', '.join(_NEEDED)}")
            missing = [name for name in _NEEDED if not row.get(name)]
            if missing or not re.fullmatch("[0-9a-fA-F]{32}", str(row["hash"])):
                raise ValueError(f"row {number} lacks {', '.join(missing) or 'an MD5 in hexadecimal as its hash'}")
            yield row
    except UserError:
        raise
    except (ValueError, OSError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as a list of images after {number} rows ({error})") from error


def _read_csv(path: Path) -> Iterator[dict[str, Any]]:
    with open(path, newline="", encoding="utf-8") as file:
        yield from csv.DictReader(file)


def _read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    with open(path, encoding="utf-8") as file:
        yield from map(json.loads, file)


def _read_parquet(path: Path) -> Iterator[dict[str, Any]]:
    try:
        import pyarrow.parquet
    except ImportError:
        raise UserError(f"{path}: reading Parquet needs pyarrow; run `pip install pyarrow`") from None
    for batch in pyarrow.parquet.ParquetFile(path).iter_batches():
        yield from batch.to_pylist()


def choose(
    rows: Iterator[Mapping[str, Any]], min_side: int, source: str | None, licenses: Sequence[str] = FREE
) -> list[Mapping[str, Any]]:
    """The rows that may be used, in the order of their hashes: the first N are the same random choice for all.

    Args:
        rows: of a list, see `read_list`.
        min_side: the smallest side in pixels; rows that do not tell theirs are left out, unless it is 1.
        source: text that the column `source` must hold.
        licenses: one of these must be part of the license's address.
    """
    found = {}
    for row in rows:
        sides = [_side(row.get(name)) for name in ("height", "width")]
        free = any(part in str(row["license"]) for part in licenses)
        fits = min(sides) >= min_side and (source is None or source in str(row.get("source")))
        if free and fits and _suffix(row) is not None:
            found[str(row["hash"]).lower()] = row
    return [found[key] for key in sorted(found)]


def _side(value: Any) -> int:
    """A side in pixels; 1 where the row does not tell it."""
    try:
        return int(float(value))  # tables with empty fields hold 1500.0
    except (TypeError, ValueError, OverflowError):
        return 1


def _suffix(row: Mapping[str, Any]) -> str | None:
    if row.get("mime_type"):
        return _SUFFIXES.get(str(row["mime_type"]))
    suffix = Path(str(row["url"]).partition("?")[0]).suffix.lower()
    if suffix == ".jpeg":
        return ".jpg"
    return suffix if suffix in _SUFFIXES.values() else None


def collect(
    rows: Sequence[Mapping[str, Any]], folder: Path, count: int, report: Callable[[int, str | None], None]
) -> dict[str, Mapping[str, Any]]:
    """Fetch the first images that can be had.

    Files have their MD5 as name and stay where they are there: the same call goes on where an earlier one stopped.

    Args:
        rows: of `choose`.
        folder: where files go.
        count: how many are wanted.
        report: called with the number of images there, and with what is wrong with one that cannot be had, which the
            next replaces, or None. A server that does not answer is no reason: the choice would depend on the day.

    Returns:
        The row of each file, by file name.

    Raises:
        UserError: the rows give fewer images.
        NoAnswerError: a UserError; a server does not answer.
        DiskError: a UserError; an image cannot be written.
    """
    have: dict[str, Mapping[str, Any]] = {}

    def fetch(row: Mapping[str, Any]) -> tuple[str, Mapping[str, Any], str | None]:
        digest = str(row["hash"]).lower()
        target = folder / f"{digest}{_suffix(row)}"
        try:
            if not target.exists():
                download(str(row["url"]), target, f"md5:{digest}")
                decode_image(target.read_bytes(), str(row["url"]))  # the list may hold what nobody can read
        except DiskError:  # another image would not find room either
            raise
        except NoAnswerError as error:
            raise NoAnswerError(f"{error}; take its row out of the list if its server is gone for good") from error
        except UserError as error:
            target.unlink(missing_ok=True)
            return target.name, row, str(error)
        return target.name, row, None

    waiting = iter(rows)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        while len(have) < count and (batch := list(islice(waiting, min(count - len(have), 8 * _AT_ONCE)))):
            for name, row, problem in pool.map(fetch, batch):
                if problem is None:
                    have[name] = row
                report(len(have), problem)
    if len(have) < count:
        raise UserError(f"the list gives {len(have)} usable images, {count} are wanted; give a longer one")
    return have
