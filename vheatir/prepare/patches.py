"""Training data made ready: large images cut into overlapping sub-images, folders packed into an LMDB.

Work is done in a hidden folder beside the target, `.NAME.partial`, whose journal says which images are finished: the
same call goes on where an earlier one stopped, was killed or met a broken image. A target that exists is complete.
"""

import contextlib
import itertools
import json
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from vheatir.data.sources import ImageSource, close_environments, map_threads
from vheatir.errors import UserError
from vheatir.utils.files import writing
from vheatir.utils.lock import Lock

Progress = Callable[[int, int], None]
_AT_ONCE = 64  # images held in memory between two writes
_JOURNAL = "journal.jsonl"
_GO_ON = "make room, or choose another place; the same command goes on"


class _Partial:
    """The folder in which a target is being made; `done` holds what was noted for each finished image."""

    def __init__(self, target: Path, images: ImageSource, settings: dict[str, Any]):
        self.folder = target.with_name(f".{target.name}.partial")
        self._stamps = {key: images.stamp(key) for key in images.keys}
        self._first = {"source": str(images.root.resolve()), **settings}
        found = self._read()
        self.done = found or {}
        if found is None:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir()
            self._append([self._first])

    def _read(self) -> dict[str, dict[str, Any]] | None:
        """None where there is nothing to go on with: other settings, changed images, or lines that are damaged."""
        try:
            lines = (self.folder / _JOURNAL).read_text(encoding="utf-8").split("\n")[:-1]  # the last may be torn
            records = [json.loads(line) for line in lines]
            changed = any(self._stamps.get(record["key"]) != record["stamp"] for record in records[1:])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None
        if not records or records[0] != self._first or changed:
            return None
        (self.folder / _JOURNAL).write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        return {record["key"]: record for record in records[1:]}

    def _append(self, records: list[dict[str, Any]]) -> None:
        with open(self.folder / _JOURNAL, "a", encoding="utf-8") as file:
            file.writelines(json.dumps(record) + "\n" for record in records)

    def note(self, records: list[dict[str, Any]]) -> None:
        """Images whose results are in the folder; each record has a `key`."""
        records = [record | {"stamp": self._stamps[record["key"]]} for record in records]
        self._append(records)
        self.done.update((record["key"], record) for record in records)


@contextmanager
def _built_aside(target: Path, images: ImageSource, settings: dict[str, Any]) -> Iterator[_Partial]:
    """A folder that becomes `target` when the block succeeds, and stays to be gone on with when it fails."""
    if target.exists():
        raise UserError(f"{target} exists already; remove it or choose another name")
    with writing(target, _GO_ON):
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = Lock(target.with_name(f".{target.name}.lock"), str(target), "wait for it, or choose another name")
        try:
            partial = _Partial(target, images, settings)
            yield partial
            (partial.folder / _JOURNAL).unlink()
            partial.folder.rename(target)
        finally:
            lock.release()


def patch_starts(side: int, size: int, overlap: int) -> list[int]:
    """Where sub-images of `size` begin along a side: every `size - overlap` pixels, the last flush with the end.

    Args:
        side: of the image in pixels.
        size: of the sub-images in pixels.
        overlap: of neighbors in pixels, less than `size`.
    """
    if side <= size:
        return [0]
    return [*range(0, side - size, size - overlap), side - size]


def _encode(image: np.ndarray, compress_level: int, name: str) -> bytes:
    bgr = image if image.ndim == 2 else np.ascontiguousarray(image[:, :, ::-1])
    done, data = cv2.imencode(".png", bgr, [cv2.IMWRITE_PNG_COMPRESSION, compress_level])
    if not done:
        raise UserError(f"{name}: cannot be encoded as PNG")
    return data.tobytes()


def _check_compress_level(compress_level: int) -> None:
    if compress_level not in range(10):
        raise UserError(f"compress_level: expected 0 (fast, large) to 9 (slow, small), got {compress_level!r}")


def _check_cut(size: int, overlap: int, shrink: int, min_detail: float) -> None:
    if size < 1 or not 0 <= overlap < size:
        raise UserError(f"expected size >= 1 and 0 <= overlap < size, got size {size}, overlap {overlap}")
    if shrink < 1:
        raise UserError(f"shrink: expected 1 (as they are) or more, got {shrink}")
    if not 0 <= min_detail < 510:
        raise UserError(f"min_detail: expected 0 (all) to 510, got {min_detail}")


def extract_patches(
    source: str | Path,
    target: str | Path,
    size: int = 512,
    overlap: int = 96,
    compress_level: int = 3,
    progress: Progress | None = None,
    shrink: int = 1,
    min_detail: float = 0.0,
) -> int:
    """Cut every image of a folder into PNG sub-images `stem_y_x.png`.

    512 pixels with 96 of overlap is usual for DFWB: reading a crop then costs one small file instead of a 2K one, and
    the overlap keeps all positions likely.

    Args:
        source: folder of images, searched recursively.
        target: folder to make.
        size: side of a sub-image in pixels; an image no larger on an axis stays whole along it.
        overlap: pixels that neighbors share.
        compress_level: of PNG, 0 fast to 9 small.
        progress: called with images done and in all.
        shrink: first make each square of that many pixels a side one, their mean: large JPEGs lose their artifacts.
        min_detail: leave out sub-images whose mean change of brightness to the pixel below and to the pixel at the
            right is less together, on the 0-255 scale: blue skies and blurred backgrounds teach little. 0 keeps all.

    Returns:
        How many sub-images.

    Raises:
        UserError: arguments out of range, the target exists, images that cannot be read, or none with enough detail.
    """
    _check_cut(size, overlap, shrink, min_detail)
    _check_compress_level(compress_level)
    images = ImageSource(source)
    stems = {key: stem for stem, key in images.by_stem().items()}
    settings = {"work": "patches", "size": size, "overlap": overlap, "compress_level": compress_level, "shrink": shrink}
    settings["min_detail"] = min_detail

    with _built_aside(Path(target), images, settings) as partial:

        def cut(key: str) -> dict[str, Any]:
            image = _shrunk(images, key, shrink)
            base = partial.folder / stems[key]
            base.parent.mkdir(parents=True, exist_ok=True)
            starts = [patch_starts(side, size, overlap) for side in image.shape[:2]]
            count = 0
            for y, x in itertools.product(*starts):
                part = image[y : y + size, x : x + size]
                if min_detail > 0 and _detail(part) < min_detail:
                    continue
                data = _encode(part, compress_level, images.describe(key))
                base.with_name(f"{base.name}_{y:05d}_{x:05d}.png").write_bytes(data)
                count += 1
            return {"key": key, "count": count}

        for records in _in_batches(cut, images.keys, partial.done, progress):
            partial.note(records)
        return _total(partial, f"{source}: no sub-image has a detail of {min_detail:g}; choose a smaller min_detail")


def _total(partial: _Partial, if_none: str) -> int:
    count = sum(record["count"] for record in partial.done.values())
    if not count:  # a folder without images would be taken for finished
        raise UserError(if_none)
    return count


def _detail(image: np.ndarray) -> float:
    gray = image.mean(axis=2, dtype=np.float32) if image.ndim == 3 else image.astype(np.float32)
    return float(sum(np.abs(np.diff(gray, axis=axis)).mean() for axis in (0, 1) if gray.shape[axis] > 1))


def _shrunk(images: ImageSource, key: str, shrink: int) -> np.ndarray:
    image = images.read_native(key)
    if shrink == 1:
        return image
    height, width = (side // shrink for side in image.shape[:2])
    if not height or not width:
        raise UserError(f"{images.describe(key)}: too small to be shrunk {shrink} times; remove it")
    return cv2.resize(image[: height * shrink, : width * shrink], (width, height), interpolation=cv2.INTER_AREA)


def _in_batches(function: Callable, keys: list[str], done: dict[str, Any], progress: Progress | None) -> Iterator[list]:
    todo = [key for key in keys if key not in done]
    before = len(keys) - len(todo)
    for start in range(0, len(todo), _AT_ONCE):
        yield map_threads(function, todo[start : start + _AT_ONCE])
        if progress is not None:
            progress(before + min(start + _AT_ONCE, len(todo)), len(keys))


def make_lmdb(source: str | Path, target: str | Path, compress_level: int = 1, progress: Progress | None = None) -> int:
    """Pack every image of a folder into an LMDB in BasicSR's layout.

    A key is the relative path without suffix, the value a PNG, `meta_info.txt` has `key.png (h,w,c) compress_level`
    lines in the folder's order, so that training on the LMDB draws the same samples. 16-bit images are stored as 8
    bits. The map grows with the data instead of being guessed; everything is read back and compared before the
    rename.

    Args:
        source: folder of images, searched recursively.
        target: LMDB to make, whose name ends in .lmdb.
        compress_level: of PNG, 0 fast to 9 small.
        progress: called with images done and in all.

    Returns:
        How many images.

    Raises:
        UserError: arguments out of range, the target exists, images that cannot be read, or none with enough detail.
    """
    target = Path(target)
    if target.suffix != ".lmdb":
        raise UserError(f"{target}: the name of an LMDB ends in .lmdb")
    _check_compress_level(compress_level)
    images = ImageSource(source)
    keys = {key: stem for stem, key in images.by_stem().items()}
    if odd := [images.describe(key) for key, stem in keys.items() if not _is_text(stem)]:
        raise UserError(f"LMDB keys are text, these names are not; rename {', '.join(map(ascii, odd))}")
    if long := [images.describe(key) for key, stem in keys.items() if len(stem.encode()) > 511]:
        raise UserError(f"LMDB keys hold at most 511 bytes; shorten these paths: {', '.join(long)}")

    def encode(key: str) -> tuple[bytes, dict[str, Any]]:
        image = images.read_native(key)
        height, width = image.shape[:2]
        line = f"{keys[key]}.png ({height},{width},{1 if image.ndim == 2 else 3}) {compress_level}"
        data = _encode(image, compress_level, images.describe(key))
        return data, {"key": key, "line": line, "sum": zlib.crc32(image.tobytes())}

    with _built_aside(target, images, {"work": "lmdb", "compress_level": compress_level}) as partial:
        with _open_for_writing(partial.folder) as environment:
            for batch in _in_batches(encode, images.keys, partial.done, progress):
                _put(environment, [(keys[record["key"]].encode(), data) for data, record in batch])
                partial.note([record for _, record in batch])
        records = [partial.done[key] for key in images.keys]
        lines = "".join(f"{record['line']}\n" for record in records)
        (partial.folder / "meta_info.txt").write_text(lines, encoding="utf-8")
        try:
            _verify(partial.folder, {keys[record["key"]]: record["sum"] for record in records})
        except UserError:
            shutil.rmtree(partial.folder)  # nothing that could be gone on with
            raise
    return len(records)


def _is_text(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


@contextmanager
def _open_for_writing(folder: Path) -> Iterator[Any]:
    try:
        import lmdb
    except ImportError as error:
        raise UserError("making an LMDB needs the lmdb package; run `pip install lmdb`") from error
    try:
        with contextlib.closing(lmdb.open(str(folder), map_size=1 << 20, meminit=False)) as environment:
            yield environment
    except lmdb.Error as error:  # as on a full disk
        raise UserError(f"{folder}: cannot be written ({error}); {_GO_ON}") from error


def _put(environment, items: list[tuple[bytes, bytes]]) -> None:
    """Write one batch in one transaction, after making room for it."""
    page = environment.stat()["psize"]
    used = (environment.info()["last_pgno"] + 1) * page
    needed = sum(len(data) + 2 * page for _, data in items)
    environment.set_mapsize(max(environment.info()["map_size"], used + 2 * needed + (1 << 20)))
    with environment.begin(write=True) as transaction:
        for key, data in items:
            transaction.put(key, data)


def _verify(folder: Path, sums: dict[str, int]) -> None:
    """Read everything back; a difference is a UserError that names the images."""
    written = ImageSource(folder, "lmdb")
    try:
        changed = [
            key
            for batch in _in_batches(
                lambda key: (key, zlib.crc32(written.read_native(key).tobytes())), written.keys, {}, None
            )
            for key, checksum in batch
            if checksum != sums[key]
        ]
    finally:
        close_environments()
    if changed or len(written) != len(sums):
        raise UserError(f"{folder}: differs from its source when read back: {', '.join(changed) or 'entries missing'}")
