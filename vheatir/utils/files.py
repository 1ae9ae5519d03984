"""Files under their final name are always whole: atomic writing, hashes, names that can be shown."""

import errno
import hashlib
import os
import secrets
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from vheatir.backbone.data.folders import walked
from vheatir.errors import UserError

TEMPORARY_PREFIX = ".vheatir-"
FULL_DISK = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
_BLOCK = 1 << 20  # bytes hashed at a time


def at_home(path: str | Path) -> Path:
    """A path with the user's home for `~` at its start; that of a user whom the system does not know stays as it is."""
    return Path(os.path.expanduser(path))


@contextmanager
def atomic_open(path: Path) -> Iterator[BinaryIO]:
    """A binary file that takes the name `path` only when the block ends without an exception.

    The bytes go to a hidden temporary file in the same folder (a rename is atomic only within a file system), are
    flushed to the disk and renamed. After an exception, Ctrl-C included, the temporary file is removed; after a kill it
    stays behind as `.vheatir-….tmp`, and whatever stood at `path` before is untouched. The error of a full disk, which
    Python raises without a name, and torch.save as a RuntimeError, names `path`.
    """
    # not derived from the final name, which may already be as long as the file system allows
    temporary = path.parent / f"{TEMPORARY_PREFIX}{os.getpid()}-{secrets.token_hex(4)}.tmp"
    try:
        with open(temporary, "x+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in FULL_DISK and error.filename is None:
            error.filename = str(path)
        behind = error.__context__
        if isinstance(error, RuntimeError) and isinstance(behind, OSError) and behind.errno in FULL_DISK:
            raise OSError(behind.errno, behind.strerror, str(path)) from error  # torch.save hides it
        raise


class DiskError(UserError):
    """What the file system refused, as for want of space or of the right to write."""


@contextmanager
def writing(target: Path, advice: str = "make room, or choose another place") -> Iterator[None]:
    """Turn an OSError within the block into a DiskError that names the file, or `target` where the system names none.

    Args:
        target: what is being written.
        advice: ends the error.
    """
    try:
        yield
    except OSError as error:
        raise DiskError(
            f"{error.filename or target}: cannot be written ({error.strerror or error}); {advice}"
        ) from error


def files_below(
    root: Path, *, skip: Callable[[Path], bool] | None = None, onerror: Callable[[OSError], None] | None = None
) -> Iterator[Path]:
    """Every file at any depth below a folder, sorted within each; hidden names are left out.

    So are named pipes, sockets and devices: opening one can wait for ever. Links that lead nowhere are in: what opens
    them can say so. Linked folders are followed, except into a folder that is being gone through already.

    Args:
        root: the folder.
        skip: folders for which it is true are left out.
        onerror: called for a folder that cannot be listed; without it such a folder is passed over.
    """

    def enters(path: str) -> bool:
        return not os.path.basename(path).startswith(".") and not (skip is not None and skip(Path(path)))

    for folder, files in walked(root, enters, onerror):
        found = (Path(folder, name) for name in sorted(files) if not name.startswith("."))
        yield from (path for path in found if may_be_file(path))


def refuse_folder(error: OSError) -> None:
    """The `onerror` of `files_below` for those who must miss nothing: a UserError."""
    raise UserError(f"{error.filename}: the folder cannot be read: {error.strerror}") from error


def may_be_file(path: Path) -> bool:
    """Whether a path, or what it links to, is a regular file, or missing: no folder, named pipe, socket or device."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return True


def skipped_note(others: "Counter[str]") -> str:
    """What to say of files that were passed over, from their numbers by suffix."""
    kinds = ", ".join(f"{count} {suffix or 'without suffix'}" for suffix, count in sorted(others.items()))
    return printable(f"files of other kinds skipped: {kinds}")


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def in_figure(text: str) -> str:
    """A text as matplotlib draws it letter by letter: what stands between two dollars would be taken for a formula."""
    return text.replace("$", r"\$")


def printable(text: str) -> str:
    """A text as one line that any terminal can show, whatever bytes the file names in it hold."""
    text = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)
