"""Files from the web: resumed where an attempt stopped, checked against a published checksum; archives unpacked.

Not by pooch, which starts a broken download anew.
"""

import hashlib
import http.client
import lzma
import os
import shutil
import stat
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import IO
from urllib.parse import quote, urlsplit, urlunsplit

from vheatir.errors import UserError
from vheatir.utils.files import writing

_TRIES = 5
_TIMEOUT = 60.0  # seconds without a byte
_BLOCK = 1 << 20
# What readers of archives raise on damaged bytes; RuntimeError where a password or another method is needed
_DAMAGED = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError)
UNPACKING_FAILED = (*_DAMAGED, EOFError, OSError, RuntimeError)
_KEPT = "%/:=&?~+!$,;'@()*[]|"  # in an address, beside letters and digits
_AGAIN = {408, 425, 429, 500, 502, 503, 504}  # HTTP statuses that may pass; other errors stay


class NoAnswerError(UserError):
    """A server that cannot be reached, breaks off or asks to come again: what may pass."""


def download(url: str, target: Path, checksum: str, progress: Callable[[int, int | None], None] | None = None) -> None:
    """Fetch a file, which appears only when it is whole and has the checksum.

    What an interrupted call has fetched stands in `target.part`, and the next call goes on from there where the server
    allows it.

    Args:
        url: http or https address; letters beyond ASCII and spaces are sent as such addresses need them.
        target: file to write.
        checksum: "sha256:…" or "md5:…" in hexadecimal.
        progress: called with bytes here and in all.

    Raises:
        UserError: the address is not of http(s), or gives an error or other bytes.
        NoAnswerError: a UserError; the server cannot be reached after five tries.
        DiskError: a UserError; the file cannot be written.
    """
    address = _in_ascii(url)
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    for attempt in range(_TRIES):
        try:
            _fetch_rest(address, part, progress)
            break
        except (OSError, http.client.HTTPException) as error:
            refused = isinstance(error, urllib.error.HTTPError) and error.code not in _AGAIN
            if refused or isinstance(error, http.client.InvalidURL):
                raise UserError(f"{url}: cannot be fetched ({error})") from error
            if attempt + 1 == _TRIES:
                raise NoAnswerError(f"{url}: cannot be fetched ({error}); the same command goes on later") from error
            time.sleep(min(2.0**attempt, 10))
    found = file_hash(part, checksum.partition(":")[0])
    if found != checksum:
        part.unlink()
        raise UserError(
            f"{url}: has the checksum {found}, expected {checksum}; it was changed or damaged, nothing is kept"
        )
    os.replace(part, target)


def _in_ascii(url: str) -> str:
    """The address as it is sent; what is escaped already stays.

    Raises:
        UserError: not an address of http(s).
    """
    try:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("another kind of address")
        if url.isascii() and " " not in url:
            return url
        place = parts.netloc if parts.netloc.isascii() else parts.netloc.encode("idna").decode()
        path, query = (quote(part, safe=_KEPT) for part in (parts.path, parts.query))
        return urlunsplit((parts.scheme, place, path, query, ""))
    except ValueError as error:
        raise UserError(f"{url}: expected an http or https address ({error})") from error


def _fetch_rest(url: str, part: Path, progress: Callable[[int, int | None], None] | None) -> None:
    have = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "vheatir"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing is left to fetch; the checksum tells whether that is right
            return
        raise
    go_on = "make room; the same command goes on"
    with response, writing(part, go_on), open(part, "ab" if response.status == 206 else "wb") as file:
        have = have if response.status == 206 else 0
        length = response.headers.get("Content-Length")
        whole = have + int(length) if length else None
        while block := _read(response):
            file.write(block)
            have += len(block)
            if progress is not None:
                progress(have, whole)
    if whole is not None and have < whole:
        raise ConnectionError(f"the connection ended after {have} of {whole} bytes")


def _read(response: http.client.HTTPResponse) -> bytes:
    """The next bytes; what ends the connection is an HTTPException: an OSError would be taken for one of the disk."""
    try:
        return response.read(_BLOCK)
    except OSError as error:
        raise http.client.HTTPException(str(error)) from error


def file_hash(path: Path, algorithm: str) -> str:
    """`algorithm:hexadecimal` of a file's bytes."""
    with open(path, "rb") as file:
        return f"{algorithm}:{hashlib.file_digest(file, algorithm).hexdigest()}"


def unpack(
    archive: Path,
    target: Path,
    members: Sequence[str],
    exclude: Collection[str] = (),
    only: Collection[str] | None = None,
) -> int:
    """Files of a ZIP or TAR archive whose paths match a pattern, side by side in a new folder.

    Of a member's path only the name is used, so that no archive can write elsewhere.

    Args:
        archive: the file.
        target: folder to make.
        members: patterns that paths in the archive must match.
        exclude: names without suffix that are left out.
        only: names without suffix that alone are taken.

    Returns:
        How many files.

    Raises:
        UserError: the archive is damaged or encrypted, no file matches, two have one name, or the disk is full.
    """
    count = 0
    with folder_made_whole(target) as partial:
        for path, source in _members(archive):
            name = PurePosixPath(path).name
            stem = PurePosixPath(path).stem
            if not any(fnmatchcase(path, pattern) for pattern in members) or stem in exclude:
                continue
            if only is not None and stem not in only:
                continue
            if (partial / name).exists():
                raise UserError(f"{archive}: holds two files {name}; unpack it by hand into {target}")
            with open(partial / name, "xb") as file:
                file.writelines(_blocks(archive, source))
            count += 1
        if not count:
            raise UserError(f"{archive}: holds nothing that matches {', '.join(members)}; is it the right archive?")
    return count


@contextmanager
def folder_made_whole(target: Path) -> Iterator[Path]:
    """A hidden folder beside `target`, which takes its name when the block ends, and vanishes after an exception.

    Raises:
        DiskError: it, or what is written within the block, cannot be written.
    """
    partial = target.with_name(f".{target.name}.unpacking")
    with writing(target):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            yield partial
            partial.rename(target)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def _members(archive: Path) -> Iterator[tuple[str, Callable[[], IO[bytes]]]]:
    """Paths of the plain files in an archive, each with a function that opens it."""
    with _named(archive):
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as file:
                for entry in file.infolist():
                    if not entry.is_dir() and not stat.S_ISLNK(entry.external_attr >> 16):
                        yield entry.filename, lambda entry=entry: file.open(entry)
        else:
            with tarfile.open(archive) as file:
                for entry in file:
                    if entry.isfile():
                        yield entry.name, lambda entry=entry: file.extractfile(entry)


def _blocks(archive: Path, source: Callable[[], IO[bytes]]) -> Iterator[bytes]:
    """The content of a file in an archive."""
    with _named(archive), source() as content:
        while block := content.read(_BLOCK):
            yield block


@contextmanager
def _named(archive: Path) -> Iterator[None]:
    try:
        yield
    except UNPACKING_FAILED as error:
        raise UserError(f"{archive}: cannot be unpacked ({error}); fetch it again") from error
