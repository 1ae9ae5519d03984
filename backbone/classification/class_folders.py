"""Images in folders of classes, on disk or in a tar archive: `train/CLASS/...image`.

The first folder names the class, whatever lies below it. Classes of an evaluation set carry the numbers of the training
set's, or of `data.class_map`; what fits neither is refused by name, and nothing is left out silently.
"""

import io
import logging
import os
import tarfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

import numpy as np
from timm.data.readers.reader import Reader
from timm.utils.misc import natural_key

from vheatir.backbone.data.folders import OF_DISKS, files_below
from vheatir.backbone.data.pixels import has_image_suffix, is_image, starts_as_image
from vheatir.backbone.data.text_files import read_json, read_text

_log = logging.getLogger(__name__)
_PASSED_OVER = ("__MACOSX", "__pycache__", "@eaDir", "Thumbs.db", "desktop.ini", OF_DISKS)
_SHOWN = 5


class Contents(NamedTuple):
    """Files below a split: images and others by name relative to it, and the names of its class folders."""

    images: list[str]
    others: list[str]
    classes: list[str]


def _hidden(name: str) -> bool:
    return name.startswith(".") or name in _PASSED_OVER


def _ordered(names: Iterable[str]) -> list[str]:
    return sorted(names, key=lambda name: (natural_key(name), name))


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(repr, names[:_SHOWN])) + more


def folder_classes(folder: Path) -> list[str]:
    """Names of the class folders, in the order of their numbers."""
    return _ordered(path.name for path in folder.iterdir() if path.is_dir() and not _hidden(path.name))


def _folder_contents(folder: Path) -> Contents:
    images = []
    others = []
    for path in files_below(folder, _hidden):
        relative = path.relative_to(folder).as_posix()
        (images if is_image(path) else others).append(relative)
    return Contents(_ordered(images), _ordered(others), folder_classes(folder))


def read_class_map(file: str, *folders: Path) -> dict[str, int]:
    """Numbers of the classes that a file names: a name a line, in the order of their numbers, or the same as JSON.

    Args:
        file: its path, as it is or below one of the folders.
        folders: where else to look.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a name twice, an empty line between names, or no names.
    """
    path = next((one for one in (Path(file), *(folder / file for folder in folders)) if one.is_file()), None)
    if path is None:
        raise FileNotFoundError(f"data.class_map {file}: no such file; expected the names of the classes, one a line")
    if path.suffix == ".pkl":
        raise ValueError(f"data.class_map {file}: a pickle may run code when it is read; write the names one a line")
    content = read_json(path) if path.suffix == ".json" else read_text(path).rstrip().splitlines()
    if isinstance(content, dict) and sorted(content.values()) == list(range(len(content))):
        content = sorted(content, key=content.__getitem__)
    if not isinstance(content, list) or not content or not all(isinstance(name, str) for name in content):
        raise ValueError(f"data.class_map {file}: expected the names of the classes, one a line")
    names = [name.strip() for name in content]
    if "" in names:
        raise ValueError(f"data.class_map {file}: line {names.index('') + 1} is empty; numbers are those of the lines")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"data.class_map {file}: {len(twice)} names come more than once: {_listed(twice)}")
    return {name: number for number, name in enumerate(names)}


def _arrange(where: str, contents: Contents, class_to_idx: dict[str, int] | None, given: str) -> dict[str, int]:
    """The numbers of the classes, checked against what lies in their folders; what is left out is logged.

    Args:
        where: the split, for messages.
        contents: what lies there.
        class_to_idx: numbers of the classes by name; None to number those that are there.
        given: where `class_to_idx` comes from.

    Raises:
        ValueError: images outside the classes' folders, classes without images or without a number.
    """
    stray = [name for name in contents.images if "/" not in name]
    if stray:
        raise ValueError(
            f"{where}: {len(stray)} images lie outside the folders of classes: {_listed(stray)}; move each into its "
            "class's folder, or away"
        )
    counts = Counter(name.partition("/")[0] for name in contents.images)
    if not counts:
        raise ValueError(f"{where}: no images in folders of classes; expected {where}/CLASS/image")
    if contents.others:
        kinds = Counter(PurePosixPath(name).suffix or "no suffix" for name in contents.others)
        said = ", ".join(f"{count} of {kind}" for kind, count in kinds.most_common(_SHOWN))
        _log.warning("%s: left out what is no image: %s; the first is %s", where, said, contents.others[0])
    deeper = next((name for name in contents.images if name.count("/") > 1), None)
    if deeper is not None:
        _log.warning("%s: classes are the first folders, %s is of class %s", where, deeper, deeper.partition("/")[0])
    empty = [name for name in contents.classes if not counts[name]]
    if class_to_idx is None:
        if empty:
            raise ValueError(f"{where}: {len(empty)} folders of classes hold no images: {_listed(empty)}; remove them")
        return {name: number for number, name in enumerate(_ordered(counts))}
    unknown = _ordered(set(counts) - set(class_to_idx))
    if unknown:
        images = sum(counts[name] for name in unknown)
        raise ValueError(
            f"{where}: {len(unknown)} classes with {images} images that {given} lacks: {_listed(unknown)}; classes "
            f"there: {_listed(list(class_to_idx))}"
        )
    return dict(class_to_idx)


def file_name(name: str, whole: str, basename: bool, absolute: bool) -> str:
    """The form of a file's name that timm's `filename` is asked for.

    Args:
        name: within the set.
        whole: the path, with the folder or archive.
        basename: only the last part.
        absolute: `whole`.
    """
    if basename:
        return os.path.basename(name)
    return whole if absolute else name


class ClassReader(Reader):
    """Images by class; subclasses say what lies there and open it.

    Args:
        where: folder or archive of the split.
        contents: what lies there.
        class_to_idx: numbers of the classes by name; None to number what lies there.
        given: where `class_to_idx` comes from, for messages.
        complete: refuse names of `class_to_idx` without images; otherwise they are logged.

    Attributes:
        samples: names of the images below `where`, and their classes.
        targets: the classes.
        class_to_idx: numbers of the classes by name.
        numbered_here: whether the numbers come from this split alone.
    """

    def __init__(
        self,
        where: Path,
        contents: Contents,
        class_to_idx: dict[str, int] | None,
        given: str = "",
        complete: bool = False,
    ):
        super().__init__()
        self.where = where
        self.numbered_here = class_to_idx is None
        self.class_to_idx = _arrange(str(where), contents, class_to_idx, given)
        self.samples = [(name, self.class_to_idx[name.partition("/")[0]]) for name in contents.images]
        self.targets = np.array([target for _, target in self.samples])
        present = set(self.targets.tolist())
        lacking = [name for name, number in self.class_to_idx.items() if number not in present]
        if lacking:
            text = f"{where} has no images of {len(lacking)} classes of {given}: {_listed(lacking)}"
            if complete:
                raise ValueError(f"{text}; correct their names or the folders'")
            _log.warning("%s", text)

    def _open(self, name: str) -> BinaryIO:
        raise NotImplementedError

    def __getitem__(self, index: int) -> tuple[BinaryIO, int]:
        name, target = self.samples[index]
        return self._open(name), target

    def __len__(self) -> int:
        return len(self.samples)

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        name = self.samples[index][0]
        return file_name(name, str(self.where / name), basename, absolute)


class ClassFolders(ClassReader):
    """Images of a folder of classes.

    Args:
        folder: of the split, with a folder for each class.
        class_to_idx, given, complete: see `ClassReader`.
    """

    def __init__(
        self, folder: Path, class_to_idx: dict[str, int] | None = None, given: str = "", complete: bool = False
    ):
        super().__init__(folder, _folder_contents(folder), class_to_idx, given, complete)

    def _open(self, name: str) -> BinaryIO:
        return open(self.where / name, "rb")


class ClassTar(ClassReader):
    """The same in an uncompressed tar archive, or in one that holds an archive for each class, named after it.

    Args:
        archive: of the split.
        class_to_idx, given, complete: see `ClassReader`.
    """

    def __init__(
        self, archive: Path, class_to_idx: dict[str, int] | None = None, given: str = "", complete: bool = False
    ):
        self._places = _tar_places(archive)
        root = _shared_root(list(self._places))
        if root and not (class_to_idx and root.partition("/")[0] in class_to_idx):
            self._places = {name.removeprefix(root): place for name, place in self._places.items()}
        contents = _tar_contents(archive, self._places)
        super().__init__(archive, contents, class_to_idx, given, complete)

    def _open(self, name: str) -> BinaryIO:
        start, size = self._places[name]
        with open(self.where, "rb") as file:
            file.seek(start)
            return io.BytesIO(file.read(size))


def tar_classes(archive: Path) -> list[str]:
    """Names of the classes in an archive, in the order of their numbers."""
    return list(ClassTar(archive).class_to_idx)


def _tar_places(archive: Path) -> dict[str, tuple[int, int]]:
    """Names of the files in an archive, those of archives inside it included, with offset and size of their bytes."""
    places: dict[str, tuple[int, int]] = {}
    try:
        with tarfile.open(archive, "r:") as outer:
            for entry in outer:
                if entry.isfile() and entry.name.lower().endswith(".tar"):
                    with tarfile.open(fileobj=outer.extractfile(entry), mode="r:") as inner:
                        for part in inner:
                            if part.isfile():
                                name = f"{PurePosixPath(entry.name).with_suffix('')}/{PurePosixPath(part.name)}"
                                places[name] = (entry.offset_data + part.offset_data, part.size)
                elif entry.isfile():
                    places[str(PurePosixPath(entry.name))] = (entry.offset_data, entry.size)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ValueError(f"{archive}: not a whole, uncompressed tar archive ({error})") from error
    return {name: place for name, place in places.items() if not any(map(_hidden, name.split("/")))}


def _shared_root(names: Sequence[str]) -> str:
    """The folder, with its slash, that all names lie in and that has folders itself; "" where there is none."""
    root = ""
    while names:
        rest = [name.removeprefix(root) for name in names]
        first = {name.partition("/")[0] for name in rest}
        if len(first) > 1 or not all(name.count("/") > 1 for name in rest):
            return root
        root += first.pop() + "/"
    return root


def _tar_contents(archive: Path, places: dict[str, tuple[int, int]]) -> Contents:
    images = []
    others = []
    with open(archive, "rb") as file:
        for name, (start, _) in places.items():
            known = has_image_suffix(name)
            if not known:
                file.seek(start)
                known = starts_as_image(file.read(12))
            (images if known else others).append(name)
    return Contents(_ordered(images), _ordered(others), [])
