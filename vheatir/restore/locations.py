"""Local paths and URLs side by side: files behind fsspec URLs are fetched, results stored whole or not at all."""

import posixpath
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec

from vheatir.errors import UserError
from vheatir.utils.files import TEMPORARY_PREFIX

# Where an object appears under its name only when the upload is complete.
_WHOLE_OR_NOTHING = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oss", "oci", "r2"}


def is_url(text: str) -> bool:
    """Whether a text names something by a protocol; everything else is a path."""
    return "://" in text


@dataclass(frozen=True)
class Url:
    """A file or folder behind an fsspec URL, with the parts of `Path` that are needed.

    A URL may be a chain, `zip://folder/a.png::https://host/b.zip`: paths are those of its first part.
    """

    text: str

    def __str__(self) -> str:
        return self.text

    def __truediv__(self, below: Any) -> "Url":
        head, chain = self._parts()
        return Url(f"{head if head.endswith('://') else head.rstrip('/') + '/'}{PurePosixPath(below)}{chain}")

    def _parts(self) -> tuple[str, str]:
        head, link, rest = self.text.partition("::")
        return head, link + rest

    @property
    def name(self) -> str:
        head, _ = self._parts()
        return posixpath.basename(head.partition("?")[0] if head.startswith("http") else head)

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix

    @property
    def parents(self) -> list["Url"]:
        head, chain = self._parts()
        protocol, _, below = head.partition("://")
        return [Url(f"{protocol}://{parent}{chain}") for parent in PurePosixPath(below).parents]

    def open(self) -> tuple[Any, str]:
        """The file system and the path in it; UserError when that cannot be had."""
        try:
            return fsspec.core.url_to_fs(self.text)
        except Exception as error:  # an unknown protocol, a missing library or key: every file system's own kinds
            raise UserError(f"{self.text}: {error}") from error

    def full(self, path: str, file_system: Any = None) -> "Url":
        """A path in this URL's file system as a URL; `file_system` where it is open already."""
        file_system = file_system or self.open()[0]
        return Url(file_system.unstrip_protocol(path) + self._parts()[1])

    def exists(self) -> bool:
        """Whether something is there; UserError where its file system does not answer."""
        file_system, path = self.open()
        with _named(self):
            return file_system.exists(path)

    def is_dir(self) -> bool:
        """Whether it is a folder; UserError where its file system does not answer."""
        file_system, path = self.open()
        with _named(self):
            return file_system.isdir(path)


Location = Path | Url


def location(text: str | Path | Url) -> Location:
    """A path or a URL; UserError for an empty text, which as a path would be the current folder."""
    if isinstance(text, Url):
        return text
    if text == "":
        raise UserError("an input or output is empty, as of a shell variable that is not set; give a file or folder")
    return Url(str(text)) if is_url(str(text)) else Path(text)


def size_of(source: Location) -> int:
    """Bytes of a local file, for the progress bar; 1 where that is not known cheaply."""
    try:
        return max(source.stat().st_size, 1) if isinstance(source, Path) else 1
    except OSError:
        return 1


def existing(targets: list[Location], out: Location) -> set[Location]:
    """Which targets exist; behind a URL by listing OUT once."""
    if isinstance(out, Path):
        return {target for target in targets if target.exists()}
    file_system, path = out.open()
    with _named(out):
        try:
            found = {file_system.unstrip_protocol(name) for name in file_system.find(path)}
        except FileNotFoundError:
            return set()
    urls = [target for target in targets if isinstance(target, Url)]
    return {target for target in urls if file_system.unstrip_protocol(target.open()[1]) in found}


@contextmanager
def fetched(source: Location) -> Iterator[Path]:
    """A local file with the content of `source`; a copy of it when that is behind a URL."""
    if isinstance(source, Path):
        yield source
        return
    file_system, path = source.open()
    with tempfile.TemporaryDirectory(prefix="vheatir-") as folder:
        local = Path(folder) / f"input{source.suffix}"
        with _named(source):
            file_system.get_file(path, str(local))
        yield local


@contextmanager
def stored(target: Location) -> Iterator[Path]:
    """A local path to write; what it holds at the end of the block goes to `target`, unless the block raises."""
    if isinstance(target, Path):
        make_folder(target.parent)
        yield target
        return
    file_system, path = target.open()
    with tempfile.TemporaryDirectory(prefix="vheatir-") as folder:
        local = Path(folder) / f"output{target.suffix}"
        yield local
        with _named(target):
            _upload(file_system, local, path)


def _upload(file_system: Any, local: Path, path: str) -> None:
    protocols = file_system.protocol if isinstance(file_system.protocol, tuple | list) else (file_system.protocol,)
    if _WHOLE_OR_NOTHING & set(protocols):
        file_system.put_file(str(local), path)
        return
    folder = posixpath.dirname(path)
    file_system.makedirs(folder, exist_ok=True)
    temporary = posixpath.join(folder, f"{TEMPORARY_PREFIX}{secrets.token_hex(6)}.tmp")
    try:
        file_system.put_file(str(local), temporary)
        file_system.mv(temporary, path)
    except BaseException:
        if file_system.exists(temporary):
            file_system.rm_file(temporary)
        raise


@contextmanager
def _named(where: Url) -> Iterator[None]:
    """Whatever a file system's library raises, as a UserError that names the URL."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{where}: {type(error).__name__}: {error}") from error


def make_folder(folder: Path) -> None:
    """Make a folder and those above it; UserError when that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: the output folder cannot be made: {error.strerror}") from error
