"""Training data made ready: large images cut into overlapping sub-images, folders packed into an LMDB.

Both write under a temporary name beside the target and rename it at the end, so a target that exists is complete.
"""

import argparse
import contextlib
import logging
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np

from vheatir.data.sources import ImageSource, close_environments, map_threads
from vheatir.errors import UserError

logger = logging.getLogger(__name__)
Progress = Callable[[int, int], None]
_AT_ONCE = 64  # images held in memory between two writes


@contextmanager
def _built_aside(target: Path) -> Iterator[Path]:
    """A fresh folder that becomes `target` when the block succeeds, and is removed when it fails."""
    if target.exists():
        raise UserError(f"{target} exists already; remove it or choose another name")
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def patch_starts(side: int, size: int, overlap: int) -> list[int]:
    """Where sub-images of `size` begin along a side: every `size - overlap` pixels, the last flush with the end."""
    if side <= size:
        return [0]
    return [*range(0, side - size, size - overlap), side - size]


def _encode(image: np.ndarray, compress_level: int, name: str) -> bytes:
    bgr = image if image.ndim == 2 else np.ascontiguousarray(image[:, :, ::-1])
    done, data = cv2.imencode(".png", bgr, [cv2.IMWRITE_PNG_COMPRESSION, compress_level])
    if not done:
        raise UserError(f"{name}: cannot be encoded as PNG")
    return data.tobytes()


def _check_level(compress_level: int) -> None:
    if compress_level not in range(10):
        raise UserError(f"compress_level: expected 0 (fast, large) to 9 (slow, small), got {compress_level!r}")


def extract_patches(
    source: str | Path,
    target: str | Path,
    size: int = 512,
    overlap: int = 96,
    compress_level: int = 3,
    progress: Progress | None = None,
) -> int:
    """Cut every image below `source` into PNG sub-images `stem_y_x.png` below `target`; returns how many.

    An image no larger than `size` on an axis stays whole along it. 512 pixels with 96 of overlap is usual for DFWB:
    reading a crop then costs one small file instead of a 2K one, and the overlap keeps all positions likely.
    """
    if size < 1 or not 0 <= overlap < size:
        raise UserError(f"expected size >= 1 and 0 <= overlap < size, got size {size}, overlap {overlap}")
    _check_level(compress_level)
    images = ImageSource(source)
    stems = {key: stem for stem, key in images.by_stem().items()}

    with _built_aside(Path(target)) as partial:

        def cut(key: str) -> int:
            image, base = images.read_native(key), partial / stems[key]
            base.parent.mkdir(parents=True, exist_ok=True)
            starts = [patch_starts(side, size, overlap) for side in image.shape[:2]]
            for y in starts[0]:
                for x in starts[1]:
                    data = _encode(image[y : y + size, x : x + size], compress_level, images.describe(key))
                    base.with_name(f"{base.name}_{y:05d}_{x:05d}.png").write_bytes(data)
            return len(starts[0]) * len(starts[1])

        return sum(count for counts in _in_batches(cut, images.keys, progress) for count in counts)


def _in_batches(function: Callable, keys: list[str], progress: Progress | None) -> Iterator[list]:
    for start in range(0, len(keys), _AT_ONCE):
        yield map_threads(function, keys[start : start + _AT_ONCE])
        if progress is not None:
            progress(min(start + _AT_ONCE, len(keys)), len(keys))


def make_lmdb(source: str | Path, target: str | Path, compress_level: int = 1, progress: Progress | None = None) -> int:
    """Pack every image below `source` into an LMDB in BasicSR's layout; returns how many.

    A key is the relative path without suffix, the value a PNG, `meta_info.txt` has `key.png (h,w,c) level` lines in the
    folder's order, so that training on the LMDB draws the same samples. 16-bit images are stored as 8 bits. The
    map grows with the data instead of being guessed; everything is read back and compared before the rename.
    """
    target = Path(target)
    if target.suffix != ".lmdb":
        raise UserError(f"{target}: the name of an LMDB ends in .lmdb")
    _check_level(compress_level)
    images = ImageSource(source)
    keys = {key: stem for stem, key in images.by_stem().items()}
    if long := [images.describe(key) for key, stem in keys.items() if len(stem.encode()) > 511]:
        raise UserError(f"LMDB keys hold at most 511 bytes; shorten these paths: {', '.join(long)}")

    def encode(key: str) -> tuple[str, bytes, str, int]:
        image = images.read_native(key)
        height, width = image.shape[:2]
        line = f"{keys[key]}.png ({height},{width},{1 if image.ndim == 2 else 3}) {compress_level}"
        return keys[key], _encode(image, compress_level, images.describe(key)), line, zlib.crc32(image.tobytes())

    with _built_aside(target) as partial:
        lines, sums = [], {}
        with contextlib.closing(_open_for_writing(partial)) as environment:
            for batch in _in_batches(encode, images.keys, progress):
                _put(environment, [(key.encode(), data) for key, data, _, _ in batch])
                lines += [line for _, _, line, _ in batch]
                sums.update((key, checksum) for key, _, _, checksum in batch)
        (partial / "meta_info.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        _verify(partial, sums)
    return len(sums)


def _open_for_writing(folder: Path):
    try:
        import lmdb
    except ImportError as error:
        raise UserError("making an LMDB needs the lmdb package; run `pip install lmdb`") from error
    return lmdb.open(str(folder), map_size=1 << 20, meminit=False)


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
                lambda key: (key, zlib.crc32(written.read_native(key).tobytes())), written.keys, None
            )
            for key, checksum in batch
            if checksum != sums[key]
        ]
    finally:
        close_environments()
    if changed or len(written) != len(sums):
        raise UserError(f"{folder}: differs from its source when read back: {', '.join(changed) or 'entries missing'}")


def _run(argv: list[str], parser: argparse.ArgumentParser, work: Callable) -> int:
    parser.add_argument("source", type=Path, help="folder with images, read recursively")
    parser.add_argument("target", type=Path, help="what to write; must not exist yet")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        count = work(args, lambda done, total: logger.info("%d of %d images", done, total))
    except UserError as error:
        logger.error("error: %s", error)
        return 2
    logger.info("wrote %d images to %s", count, args.target)
    return 0


def main_lmdb(argv: list[str]) -> int:
    """`python datasets/make_lmdb.py SOURCE TARGET.lmdb`."""
    parser = argparse.ArgumentParser(prog="make_lmdb.py", description="Pack a folder of images into an LMDB.")
    parser.add_argument("--compress-level", type=int, default=1, help="PNG compression, 0 fast to 9 small (default 1)")
    return _run(argv, parser, lambda args, show: make_lmdb(args.source, args.target, args.compress_level, show))


def main_patches(argv: list[str]) -> int:
    """`python datasets/extract_patches.py SOURCE TARGET`."""
    parser = argparse.ArgumentParser(prog="extract_patches.py", description="Cut images into overlapping sub-images.")
    parser.add_argument("--size", type=int, default=512, help="side in pixels (default 512)")
    parser.add_argument("--overlap", type=int, default=96, help="shared by neighbours, in pixels (default 96)")
    parser.add_argument("--compress-level", type=int, default=3, help="PNG compression, 0 fast to 9 small (default 3)")

    def work(args: argparse.Namespace, show: Progress) -> int:
        return extract_patches(args.source, args.target, args.size, args.overlap, args.compress_level, show)

    return _run(argv, parser, work)
