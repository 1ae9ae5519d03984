"""Readers of labeled images beside timm's own: lists of files, and ZIP archives with their bytes kept or not."""

import importlib.util
import io
import logging
import lzma
import os
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from timm.data import create_dataset
from timm.data.readers.reader import Reader

from vheatir.backbone.classification.class_folders import (
    ClassFolders,
    ClassTar,
    file_name,
    folder_classes,
    read_class_map,
    tar_classes,
)
from vheatir.backbone.classification.recipe import READERS, ClassificationData
from vheatir.backbone.data.text_files import read_json, read_text

_log = logging.getLogger(__name__)
# What the prefixes of timm's readers need beside timm, and how to get it.
_LIBRARIES = {
    "wds": ("webdataset", "pip install 'vheatir[readers]'"),
    "hfds": ("datasets", "pip install 'vheatir[readers]'"),
    "hfids": ("datasets", "pip install 'vheatir[readers]'"),
    "tfds": ("tensorflow_datasets", "pip install tensorflow tensorflow-datasets"),
}
# Data sets of torchvision of which timm takes the test images for every split whose name is not one for training.
_OF_TWO_SPLITS = ("cifar10", "cifar100", "mnist", "kmnist", "fashion_mnist", "qmnist")
_SPLITS = ("train", "training", "val", "valid", "validation", "eval", "evaluation", "test")


def read_labels(path: Path) -> list[tuple[str, int]]:
    """Names and classes from lines `name<tab or space>class`, or a JSON list of such pairs.

    Raises:
        FileNotFoundError: no such list.
        ValueError: a line that is none, or an empty list; named with its number.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such list; expected a file of lines `relative/path class`")
    try:
        if path.suffix == ".json":
            lines = [(str(entry[0]), str(entry[1])) for entry in read_json(path)]
        else:
            text = read_text(path)
            lines = [
                tuple(line.rsplit("\t" if "\t" in line else None, 1)) for line in text.splitlines() if line.strip()
            ]
    except (LookupError, TypeError) as error:
        raise ValueError(f"{path}: not a list of names and classes ({error})") from error
    for number, line in enumerate(lines, 1):
        if len(line) != 2 or not line[1].strip().isdecimal():
            raise ValueError(f"{path}: entry {number}: expected `relative/path class`, got {' '.join(line)!r}")
    if not lines:
        raise ValueError(f"{path}: the list is empty")
    return [(name.strip(), int(label)) for name, label in lines]


def _missing(folder: Path, names: Sequence[str]) -> list[str]:
    """Names that no file below a folder has; each folder is listed once, which is faster than asking for each file."""
    held: dict[str, set[str]] = {}
    for place in {name.rpartition("/")[0] for name in names}:
        held[place] = set(os.listdir(folder / place)) if (folder / place).is_dir() else set()
    unlisted = [name for name in names if name.rpartition("/")[2] not in held[name.rpartition("/")[0]]]
    return [name for name in unlisted if not (folder / name).is_file()]


class ListReader(Reader):
    """Images below `folder`, named and labeled by a list."""

    def __init__(self, folder: Path, labels: Path):
        super().__init__()
        self.folder = folder
        self.samples = read_labels(labels)
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder; {labels} names images below it")
        missing = _missing(folder, [name for name, _ in self.samples])
        if missing:
            raise ValueError(f"{folder} lacks {len(missing)} files that {labels} names, the first is {missing[0]!r}")
        self.targets = np.array([label for _, label in self.samples])

    def __getitem__(self, index: int):
        name, target = self.samples[index]
        return open(self.folder / name, "rb"), target

    def __len__(self) -> int:
        return len(self.samples)

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        name = self.samples[index][0]
        return file_name(name, str(self.folder / name), basename, absolute)


class ZipReader(Reader):
    """Images of an archive, labeled by a list of its members.

    Args:
        archive: the ZIP file.
        labels: list of members and classes; names may carry the published prefix `train.zip@/`.
        keep: entries whose bytes are read now and kept in memory, shared with loader processes; None for none.
    """

    def __init__(self, archive: Path, labels: Path, keep: slice | None = None):
        super().__init__()
        if not archive.is_file():
            raise FileNotFoundError(f"{archive}: no such archive")
        self.archive = archive
        self._opened = {}
        self._kept = {}
        self.samples = [(name.rpartition("@/")[2], label) for name, label in read_labels(labels)]
        self.targets = np.array([label for _, label in self.samples])
        members = {info.filename: info.file_size for info in self._zip().infolist()}
        missing = [name for name, _ in self.samples if name not in members]
        if missing:
            raise ValueError(f"{archive} lacks {len(missing)} files that {labels} names, the first is {missing[0]!r}")
        self._keep(range(len(self.samples))[keep] if keep else (), members)

    def _zip(self) -> zipfile.ZipFile:
        """The archive, opened by each process for itself: forks would share one position in the file."""
        if os.getpid() not in self._opened:
            try:
                self._opened = {os.getpid(): zipfile.ZipFile(self.archive)}
            except (OSError, zipfile.BadZipFile) as error:
                raise ValueError(f"{self.archive}: not a whole ZIP archive ({error})") from error
        return self._opened[os.getpid()]

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_opened": {}}

    def _keep(self, keep: Sequence[int], sizes: dict[str, int]) -> None:
        # One array: forked processes share its pages, which they would copy from single bytes objects.
        ends = np.cumsum([0, *(sizes[self.samples[index][0]] for index in keep)])
        self._bytes = np.empty(ends[-1], np.uint8)
        for index, start, end in zip(keep, ends[:-1], ends[1:], strict=True):
            try:
                content = self._read(index)
            except OSError as error:
                raise ValueError(f"{self.filename(index, absolute=True)}: {error}") from error
            self._bytes[start:end] = np.frombuffer(content, np.uint8)
            self._kept[index] = (int(start), int(end))

    def _read(self, index: int) -> bytes:
        try:
            return self._zip().read(self.samples[index][0])
        except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError) as error:
            raise OSError(f"damaged in the archive: {error}") from error
        except RuntimeError as error:  # an unknown compression, or a password
            raise OSError(f"cannot be unpacked: {error}") from error

    def __getitem__(self, index: int):
        start, end = self._kept.get(index, (0, 0))
        content = self._bytes[start:end].tobytes() if end else self._read(index)
        return io.BytesIO(content), self.samples[index][1]

    def __len__(self) -> int:
        return len(self.samples)

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        name = self.samples[index][0]
        return file_name(name, f"{self.archive}@/{name}", basename, absolute)


class TorchvisionReader(Reader):
    """A data set of torchvision that timm knows, such as torch/cifar10; gives images, not files."""

    def __init__(self, dataset, name: str):
        super().__init__()
        self.dataset = dataset
        self.name = name

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return self.dataset[index]

    def __len__(self) -> int:
        return len(self.dataset)

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        return f"{self.name}, image {index}"


def open_timm_reader(data: ClassificationData, split: str, **how) -> Reader:
    """A reader of timm with a prefix, such as hfds/NAME, torch/NAME or wds/NAME.

    Args:
        data: names the reader, `root` and `class_map`.
        split: as the reader names it.
        **how: is_training, seed and batch_size, for readers that give images in a row.

    Raises:
        ValueError: an unknown prefix, a library that is not installed, or what the reader says.
    """
    prefix = data.reader.partition("/")[0].lower()
    library, advice = _LIBRARIES.get(prefix, ("torchvision", ""))
    if prefix not in (*_LIBRARIES, "torch"):
        raise ValueError(f"data.reader {data.reader}: timm knows the prefixes {', '.join((*_LIBRARIES, 'torch'))}")
    found = importlib.util.find_spec(library)
    if found is None or found.origin is None:  # a folder of that name beside the run is no library
        raise ValueError(f"data.reader {data.reader} needs {library}; run: {advice}")
    if prefix == "torch" and data.reader.rpartition("/")[2].lower() in _OF_TWO_SPLITS and split not in _SPLITS:
        raise ValueError(f"data.reader {data.reader} has no split {split!r}; known: {', '.join(_SPLITS)}")
    try:
        # "" leaves 16-bit numbers and orientation to `as_pixels`.
        how |= {} if prefix == "tfds" else {"input_img_mode": ""}
        dataset: Any = create_dataset(data.reader, data.root, split, class_map=data.class_map, **how)
    except (OSError, RuntimeError, ValueError, LookupError, AssertionError, TypeError) as error:
        raise ValueError(f"data.reader {data.reader}, split {split}, root {data.root}: {error}") from error
    return TorchvisionReader(dataset, data.reader) if prefix == "torch" else dataset.reader


def _list_for(root: Path, names: Sequence[str]) -> Path:
    return next((root / name for name in names if (root / name).is_file()), root / names[0])


def _shared_class_to_idx(data: ClassificationData, split: str) -> tuple[dict[str, int] | None, str]:
    """Numbers of the classes that hold for every split, and where they are from; None where a split has its own."""
    root = Path(data.root)
    if data.class_map:
        return read_class_map(data.class_map, root, root / split), f"data.class_map {data.class_map}"
    training = root / (data.train if data.reader == "folder" else f"{data.train}.tar")
    if split == data.train or not training.exists():
        return None, ""
    names = folder_classes(training) if data.reader == "folder" else tar_classes(training)
    return {name: number for number, name in enumerate(names)}, str(training)


def _class_reader(data: ClassificationData, split: str, own_numbers: bool) -> Reader:
    root = Path(data.root)
    kind = ClassFolders if data.reader == "folder" else ClassTar
    where = root / (split if data.reader == "folder" else f"{split}.tar")
    if kind is ClassTar and not where.is_file():
        raise FileNotFoundError(f"{where}: no such archive of folders of classes")
    if kind is ClassFolders and not where.is_dir():
        held = ", ".join(sorted(path.name for path in root.iterdir() if path.is_dir())) or "none"
        raise FileNotFoundError(f"data.root {root} has no folder {split!r}; folders there: {held}")
    class_to_idx, given = (None, "") if own_numbers else _shared_class_to_idx(data, split)
    return kind(where, class_to_idx, given, complete=bool(data.class_map) and split == data.train)


def make_reader(
    data: ClassificationData, split: str, rank: int = 0, world: int = 1, *, own_numbers: bool = False
) -> Reader:
    """The reader of a split, for data sets with access to any image; `streams` has the others.

    Args:
        data: where the set is.
        split: name of the split.
        rank: of this process.
        world: how many processes there are.
        own_numbers: number the folders of this split by themselves, for sets that a mapping file brings to classes.

    Raises:
        FileNotFoundError, ValueError: what is missing or wrong, named.
    """
    root = Path(data.root)
    if data.reader not in READERS:
        return open_timm_reader(data, split)
    if not root.is_dir():
        raise FileNotFoundError(f"data.root {root}: no such folder; set it to the data set's folder")
    if data.reader == "list":
        return ListReader(root / split, _list_for(root, (f"meta/{split}.txt", f"meta/{split}.json")))
    if data.reader == "zip":
        keep = {"none": None, "full": slice(None), "part": slice(rank, None, world)}[data.cache]
        return ZipReader(root / f"{split}.zip", _list_for(root, (f"{split}_map.txt", f"{split}_map.json")), keep)
    return _class_reader(data, split, own_numbers)


def check_classes(reader: Reader, split: str, num_classes: int) -> None:
    """Refuse targets that a network of so many classes does not have, or whose numbers nothing vouches for.

    Args:
        reader: of the split.
        split: its name, for messages.
        num_classes: of the network.

    Raises:
        ValueError: more classes than the network's, or other ones.
    """
    targets = getattr(reader, "targets", None)
    if targets is None:
        return
    if targets.max() >= num_classes:
        first = reader.filename(int((targets >= num_classes).argmax()), absolute=True)
        raise ValueError(
            f"{split}: {targets.max() + 1} classes, but the model has {num_classes}; set model.num_classes "
            f"(first image beyond: {first})"
        )


def check_evaluation_classes(reader: Reader, data: ClassificationData, split: str, num_classes: int) -> None:
    """The same for a split that is evaluated; lists whose classes differ from training's are logged.

    Args:
        reader: of the split.
        data: where the set is.
        split: its name.
        num_classes: of the network.

    Raises:
        ValueError: see `check_classes`; or folders whose numbers nothing states.
    """
    check_classes(reader, split, num_classes)
    _check_folders(reader, data, split)
    numbered = getattr(reader, "class_to_idx", {}) if getattr(reader, "numbered_here", False) else {}
    if numbered and split != data.train and len(numbered) != num_classes:
        raise ValueError(
            f"{split} has {len(numbered)} classes, the model {num_classes}, and there is no {data.train} "
            "beside it that numbers them; name all classes in data.class_map, or map them by val.subset"
        )
    if data.reader in ("list", "zip") and split != data.train:
        names = (f"meta/{data.train}.txt", f"meta/{data.train}.json")
        file = _list_for(Path(data.root), names if data.reader == "list" else (f"{data.train}_map.txt",))
        if file.is_file():
            _compare_lists(reader, split, file)


def _check_folders(reader: Reader, data: ClassificationData, split: str) -> None:
    """Refuse folders read by torchvision, which numbers each split by itself, where a split lacks a class."""
    of_folders = data.reader.rpartition("/")[2].lower() in ("folder", "image_folder")
    if not isinstance(reader, TorchvisionReader) or not of_folders or split == data.train:
        return
    if not (Path(data.root) / data.train).is_dir():
        return
    training: Any = open_timm_reader(data, data.train)
    if reader.dataset.class_to_idx != training.dataset.class_to_idx:
        raise ValueError(
            f"{split} has other classes than {data.train}, and {data.reader} numbers those of each by itself; take "
            "data.reader folder, which reads the same folders"
        )


def _compare_lists(reader: Reader, split: str, training: Path) -> None:
    known = {label for _, label in read_labels(training)}
    found = set(reader.targets.tolist())
    if found - known:  # the lists number them, so that nothing is mistaken for another class
        _log.warning(
            "%s: classes %s are none of %s: no network can learn them", split, _first_classes(found - known), training
        )
    if known - found:
        _log.warning("%s has no images of classes %s of %s", split, _first_classes(known - found), training)


def _first_classes(classes: set[int]) -> str:
    listed = sorted(classes)
    return ", ".join(map(str, listed[:5])) + (f" and {len(listed) - 5} more" if len(listed) > 5 else "")
