"""Where clean images come from: a folder or an LMDB, read the same way.

Every image is handed out as uint8, HWC RGB or HW. Nothing is open after construction: files and LMDB environments are
opened on first use in each process, so a source can be pickled and works in forked and in spawned loader workers.
"""

import importlib.util
import multiprocessing
import os
import re
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np

from vheatir.backbone.data.folders import OF_DISKS
from vheatir.errors import UserError
from vheatir.image_io import Stored, decode_image, decode_opencv_gray, gray_opencv, open_bytes
from vheatir.utils.files import at_home, files_below, refuse_folder

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm"})
CACHES = ("none", "memory")
_META_LINE = re.compile(r"^(?P<name>.+)\.[^.\s]+ \((?P<h>\d+), ?(?P<w>\d+), ?(?P<c>\d+)\)(?: \d+)?$")


def list_images(
    root: str | Path, suffixes: Collection[str] = SUFFIXES, others: Counter[str] | None = None
) -> list[str]:
    """Relative POSIX paths of all images below `root`, sorted; links are followed, hidden names are left out.

    Args:
        root: a folder.
        suffixes: of images.
        others: gets the number of files with another suffix, by suffix.

    Raises:
        UserError: a folder that cannot be read, whose images would be missed; not `lost+found` of a disk.
    """
    root = Path(root)
    found = []
    for path in files_below(root, skip=lambda folder: folder.name == OF_DISKS, onerror=refuse_folder):
        if path.suffix.lower() in suffixes:
            found.append(path.relative_to(root).as_posix())
        elif others is not None:
            others[path.suffix.lower()] += 1
    return sorted(found)


class _Folder:
    """Image files below a folder; a key is the relative path."""

    def __init__(self, root: Path, suffixes: Collection[str]):
        if not root.is_dir():
            advice = "this is a file, give its folder" if root.exists() else "check the path"
            raise UserError(f"{root}: no such folder, expected one with images; {advice}")
        self.root = root
        self.others = Counter()
        self.keys = list_images(root, suffixes, self.others)
        if not self.keys:
            known = " ".join(sorted(suffixes))
            raise UserError(f"{root}: holds no images ({known}); see datasets/README.md for how to get some")

    def describe(self, key: str) -> str:
        return str(self.root / key)

    def stem(self, key: str) -> str:
        return str(PurePosixPath(key).with_suffix(""))

    def fetch(self, key: str) -> bytes:
        try:
            return (self.root / key).read_bytes()
        except OSError as error:
            raise UserError(f"{self.describe(key)}: cannot be read ({error.strerror}); restore the file") from error


class _Lmdb:
    """An LMDB in BasicSR's layout: `data.mdb` and `meta_info.txt` with `key.png (h,w,c) compress_level` lines."""

    def __init__(self, root: Path):
        meta = root / "meta_info.txt"
        if not (root / "data.mdb").is_file() or not meta.is_file():
            raise UserError(f"{root}: expected data.mdb and meta_info.txt; make it with `vheatir prepare --lmdb`")
        self.root = root
        self.shapes = {}
        for number, line in enumerate(meta.read_text(encoding="utf-8").splitlines(), 1):
            if not line.strip():
                continue
            match = _META_LINE.match(line.strip())
            if match is None:
                raise UserError(f"{meta} line {number}: expected `key.png (h,w,channels) compress_level`, got {line!r}")
            self.shapes[match["name"]] = tuple(int(match[axis]) for axis in "hwc")
        _environment(root)  # one that was not copied whole shows before training
        self.keys = list(self.shapes)
        if not self.keys:
            raise UserError(f"{meta}: lists no images; make the LMDB again with `vheatir prepare --lmdb`")

    def describe(self, key: str) -> str:
        return f"{self.root / key}.png"

    def stem(self, key: str) -> str:
        return key

    def fetch(self, key: str) -> bytes:
        with _environment(self.root).begin(buffers=False) as transaction:
            data = transaction.get(key.encode("utf-8"))
        if data is None:
            raise UserError(f"{self.describe(key)}: is in meta_info.txt but not in data.mdb; make the LMDB again")
        return data


_environments: dict[str, Any] = {}  # one per LMDB and process: LMDB allows no second one, nor one from a parent
_environments_lock = threading.Lock()


def _environment(root: Path):
    import lmdb

    path = os.path.realpath(root)
    with _environments_lock:
        if path not in _environments:
            try:
                _environments[path] = lmdb.open(path, readonly=True, lock=False, readahead=False, meminit=False)
                _check_whole(root, _environments[path])
            except lmdb.Error as error:
                raise UserError(f"{root}: cannot be opened as an LMDB ({error}); make it again") from error
            except UserError:
                _environments.pop(path).close()
                raise
        return _environments[path]


def _check_whole(root: Path, environment) -> None:
    """UserError when data.mdb is shorter than it says: reading behind the end of a mapped file ends the process."""
    needed = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    size = (root / "data.mdb").stat().st_size
    if size < needed:
        raise UserError(
            f"{root / 'data.mdb'}: has {size} bytes, but says that it holds {needed}; it was not copied whole, "
            "copy it again or make it again with `vheatir prepare --lmdb`"
        )


def close_environments() -> None:
    """Close every LMDB this process has open; they reopen on the next read."""
    while _environments:
        _environments.popitem()[1].close()


def _after_fork() -> None:
    global _environments_lock
    _environments_lock = threading.Lock()
    close_environments()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _resolve(root: str) -> Path:
    """The folder that `root` means; `package:NAME/FOLDER` lies in an installed package."""
    if not root.startswith("package:"):
        return at_home(root)
    name, _, folder = root.removeprefix("package:").partition("/")
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"{root}: there is no installed package {name!r}")
    return Path(next(iter(spec.submodule_search_locations)), folder)


class ImageSource:
    """Images of a folder (recursively) or of an LMDB, under sorted (folder) or recorded (LMDB) keys.

    `backend` is "disk", "lmdb" or None: then a name ending in .lmdb is an LMDB. `cache="memory"` keeps decoded uint8
    arrays; they are not pickled, so fill the cache (`check`) before workers are forked, or each fills its own.
    `include` and `exclude` are shell patterns of keys; those of an LMDB have no suffix, and match patterns with
    one too; `without_match` lists those that match no key. A root `package:NAME/FOLDER` is a folder of an installed
    Python package, such as `package:skimage/data`.

    Args:
        root: a folder, an LMDB, or `package:NAME/FOLDER`.
        backend: "disk", "lmdb" or None.
        cache: "none" or "memory".
        include, exclude: shell patterns of keys.
        suffixes: of the images of a folder.
    """

    def __init__(
        self,
        root: str | Path,
        backend: str | None = None,
        cache: str = "none",
        include: Sequence[str] = ("*",),
        exclude: Sequence[str] = (),
        suffixes: Collection[str] = SUFFIXES,
    ):
        self.root = _resolve(str(root))
        backend = backend or ("lmdb" if self.root.suffix == ".lmdb" else "disk")
        if backend not in ("disk", "lmdb"):
            raise UserError(f"io_backend type {backend!r}: expected disk or lmdb")
        if cache not in CACHES:
            raise UserError(f"cache {cache!r}: expected one of {', '.join(CACHES)}")
        self._store = _Lmdb(self.root) if backend == "lmdb" else _Folder(self.root, suffixes)
        self.without_match = [
            pattern
            for pattern in (*include, *exclude)
            if not any(fnmatchcase(key, one) for one in self._patterns(pattern) for key in self._store.keys)
        ]
        self.keys: list[str] = self.matching(include, exclude)
        if not self.keys:
            raise UserError(f"{self.root}: no image matches include {list(include)} without exclude {list(exclude)}")
        self._cache: dict[str, np.ndarray] | None = {} if cache == "memory" else None
        self._process: int | None = None

    def matching(self, include: Sequence[str], exclude: Sequence[str]) -> list[str]:
        """Keys of all images that are there, whatever `keys` is, which match one of some patterns and none of others.

        Args:
            include: shell patterns of keys.
            exclude: likewise.
        """
        wanted, unwanted = ([one for given in each for one in self._patterns(given)] for each in (include, exclude))
        return [
            key
            for key in self._store.keys
            if any(fnmatchcase(key, pattern) for pattern in wanted)
            and not any(fnmatchcase(key, pattern) for pattern in unwanted)
        ]

    def _patterns(self, pattern: str) -> list[str]:
        """A pattern of file names as those of keys: those of an LMDB have no suffix, and would all slip through.

        What looks like a suffix may be none, as in the key clip.0001.
        """
        place = PurePosixPath(pattern)
        is_of_file = place.suffix.lower() in (*SUFFIXES, ".*")
        return [pattern, pattern.removesuffix(place.suffix)] if self.is_lmdb and is_of_file else [pattern]

    def __len__(self) -> int:
        return len(self.keys)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_cache": None if self._cache is None else {}, "_process": None}

    @property
    def is_lmdb(self) -> bool:
        return isinstance(self._store, _Lmdb)

    @property
    def others(self) -> Counter[str]:
        """How many files of a folder have another suffix than images, by suffix."""
        return Counter() if isinstance(self._store, _Lmdb) else self._store.others

    def describe(self, key: str) -> str:
        """A path that names the image in messages and results."""
        return self._store.describe(key)

    def stem(self, key: str) -> str:
        """Relative path without suffix."""
        return self._store.stem(key)

    def by_stem(self) -> dict[str, str]:
        """Relative path without suffix -> key. Two files that differ only in their suffix are refused."""
        stems: dict[str, str] = {}
        for key in self.keys:
            stem = self.stem(key)
            if stem in stems:
                raise UserError(
                    f"{self.describe(key)} and {self.describe(stems[stem])} differ only in suffix; keep one"
                )
            stems[stem] = key
        return stems

    def stamp(self, key: str) -> list[int]:
        """What changes when the image does: bytes and time of change of its file, or of the LMDB."""
        path = self.root / key if isinstance(self._store, _Folder) else self.root / "data.mdb"
        status = path.stat()
        return [status.st_size, status.st_mtime_ns]

    def read_native(self, key: str) -> np.ndarray:
        """uint8 as stored: HWC RGB, or HW for a gray file. Do not write to it when the source has a cache."""
        if self._process != os.getpid():
            self._process = os.getpid()
            if multiprocessing.parent_process() is not None:
                cv2.setNumThreads(0)  # OpenCV's thread pool does not survive a fork, and workers share the cores
        if self._cache is not None and key in self._cache:
            return self._cache[key]
        image = decode_image(self._store.fetch(key), self.describe(key))
        if self._cache is not None:
            image.flags.writeable = False
            self._cache[key] = image
        return image

    def open(self, key: str) -> Stored:
        """The image in its own numbers, see `vheatir.image_io`."""
        return open_bytes(self._store.fetch(key), self.describe(key))

    def read_opencv_gray(self, key: str) -> np.ndarray:
        """uint8 HW as OpenCV's gray read gives it, see `vheatir.image_io.decode_opencv_gray`."""
        return decode_opencv_gray(self._store.fetch(key), self.describe(key))

    def read(self, key: str, gray: bool = False) -> np.ndarray:
        """uint8 HWC RGB, or HW when `gray` (color is converted with OpenCV's full-range weights)."""
        image = self.read_native(key)
        if gray:
            return image if image.ndim == 2 else gray_opencv(image)
        return image if image.ndim == 3 else np.repeat(image[:, :, None], 3, axis=2)

    def problems(
        self, min_size: int = 1, channels: int | None = None, keys: Sequence[str] | None = None, why: str = ""
    ) -> list[str]:
        """Every image that cannot be decoded, is smaller than `min_size` on a side, or is gray where 3 channels count.

        Decodes everything (`keys`, where they are given) once, on several threads; with a memory cache that fills the
        cache.

        Args:
            min_size: least side in pixels.
            channels: 3 refuses gray images; None and 1 take both.
            keys: images to look at; None for all.
            why: what asks for `min_size`, to follow it in the message.
        """

        def inspect(key: str) -> str | None:
            try:
                image = self.read_native(key)
            except UserError as error:
                return str(error)
            height, width = image.shape[:2]
            if min(height, width) < min_size:
                return f"{self.describe(key)}: {height}x{width} pixels, expected at least {min_size} on each side{why}"
            if channels == 3 and image.ndim == 2:
                return f"{self.describe(key)}: is gray, expected color"
            return None

        keys = self.keys if keys is None else keys
        return [problem for problem in map_threads(inspect, keys) if problem is not None]

    def check(
        self, min_size: int = 1, channels: int | None = None, keys: Sequence[str] | None = None, why: str = ""
    ) -> None:
        """Raise one UserError that lists all `problems`.

        Args:
            min_size: see `problems`.
            channels: see `problems`.
            keys: see `problems`.
            why: see `problems`.
        """
        raise_problems(
            self.root, self.problems(min_size, channels, keys, why), len(self.keys if keys is None else keys)
        )


def map_threads(function: Callable, items: Iterable) -> list:
    """`[function(item) for item in items]` on a few threads: decoding and encoding release the interpreter lock."""
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(function, items))


def raise_problems(root: Path, problems: list[str], total: int) -> None:
    """Raise one UserError that lists `problems`; nothing happens when there are none.

    Args:
        root: of the images, for the message.
        problems: a line each.
        total: images looked at.
    """
    if problems:
        lines = "\n  ".join(problems)
        raise UserError(f"{root}: {len(problems)} of {total} images cannot be used; replace or remove them:\n  {lines}")
