"""Freely licensed photographs out of Debian's packages: found by their SHA-256, shrunk, each with its license."""

import csv
import hashlib
import io
import tarfile
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import IO, Any

import cv2
import numpy as np

from vheatir.errors import UserError
from vheatir.image_io import decode_image
from vheatir.prepare.download import UNPACKING_FAILED, folder_made_whole

_MAGIC = b"!<arch>\n"
_HEADER = 60  # bytes before each member of an ar archive: name 16, date 12, user 6, group 6, mode 8, size 10, end 2
_COPYRIGHT = "usr/share/doc/{}/copyright"


def read_photos(path: Path) -> list[dict[str, str]]:
    """The rows of a list of photographs in packages.

    Args:
        path: CSV with name, package, path (in the package), sha256, license (SPDX), author, stated_for (file or
            package: what the license is stated for) and shrink (side of the squares of pixels that become one).

    Returns:
        A dictionary for each photograph.
    """
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def collect_photos(
    rows: Sequence[dict[str, str]], downloads: Path, folder: Path, installed: Path = Path("/")
) -> dict[str, dict[str, Any]]:
    """Make a folder of PNGs from photographs in packages, and beside it `NAME.copyright` with the packages' texts.

    A photograph is taken from any version of its package whose file has the listed SHA-256: from packages in
    `downloads`, or as installed. All or none: the folder appears when every photograph is in it.

    Args:
        rows: of `read_photos`.
        downloads: where .deb files lie.
        folder: to make.
        installed: the root below which packages are installed.

    Returns:
        Author, license and source of each file, by file name.

    Raises:
        UserError: photographs are missing (says how to get the packages), or cannot be read.
    """
    texts = folder.with_name(f"{folder.name}.copyright")
    with folder_made_whole(folder) as partial:
        missing = {row["path"]: row for row in rows}
        copyrights: dict[str, bytes] = {}
        for path, data in _files(rows, downloads, installed):
            row = missing.get(path)
            if row is not None and hashlib.sha256(data).hexdigest() == row["sha256"]:
                _write_shrunk(data, row, partial)
                del missing[path]
            elif path.endswith("/copyright"):
                copyrights.setdefault(PurePosixPath(path).parent.name, data)
        if missing:
            raise UserError(_how_to_get(list(missing.values()), len(rows), downloads))
        texts.mkdir(exist_ok=True)
        for package, text in copyrights.items():
            (texts / f"{package}.txt").write_bytes(text)
    kept = ("author", "license", "stated_for", "package", "path", "shrink")
    return {f"{row['name']}.png": {"source_sha256": row["sha256"], **{key: row[key] for key in kept}} for row in rows}


def _files(rows: Sequence[dict[str, str]], downloads: Path, installed: Path) -> Iterator[tuple[str, bytes]]:
    """Path in its package and content of each file that may be listed, and of the copyright texts."""
    paths = {row["path"] for row in rows}
    packages = sorted({row["package"] for row in rows})
    paths |= {_COPYRIGHT.format(package) for package in packages}
    for package in packages:
        for archive in sorted(downloads.glob(f"{package}_*.deb")):
            yield from _members(archive, lambda path: path in paths)
    for path in sorted(paths):
        if (found := installed / path).is_file():
            yield path, found.read_bytes()


def _members(archive: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Files of a Debian package, an ar archive whose member data.tar.* holds them (deb(5))."""
    with open(archive, "rb") as file:
        name, content = _data_member(archive, file)
        try:
            with tarfile.open(fileobj=content) as inner:
                for entry in inner:
                    path = entry.name.removeprefix("./")
                    if entry.isfile() and wanted(path):
                        yield path, inner.extractfile(entry).read()
        except UNPACKING_FAILED as error:
            todo = f"fetch it again, or install the package ({name} needs a Python that reads its compression)"
            raise UserError(f"{archive}: cannot be unpacked ({error}); {todo}") from error


def _data_member(archive: Path, file: IO[bytes]) -> tuple[str, io.BytesIO]:
    if file.read(len(_MAGIC)) != _MAGIC:
        raise UserError(f"{archive}: is not a Debian package; fetch it again")
    while len(header := file.read(_HEADER)) == _HEADER:
        name = header[:16].decode("ascii", "replace").strip().rstrip("/")
        size = header[48:58].strip()
        if not size.isdigit():
            break
        content = file.read(int(size) + int(size) % 2)[: int(size)]  # members begin at even places
        if fnmatchcase(name, "data.tar*"):
            return name, io.BytesIO(content)
    raise UserError(f"{archive}: ends before its files (truncated); fetch it again")


def _write_shrunk(data: bytes, row: dict[str, str], folder: Path) -> None:
    """The photograph with each square of `shrink` pixels a side made one, their mean: grain and JPEG go with it."""
    image = _decode(data, row["path"])
    shrink = int(row["shrink"])
    height, width = (side // shrink for side in image.shape[:2])
    small = cv2.resize(image[: height * shrink, : width * shrink], (width, height), interpolation=cv2.INTER_AREA)
    done, png = cv2.imencode(".png", small[:, :, ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 3])
    if not done:
        raise UserError(f"{row['path']}: cannot be encoded as PNG")
    (folder / f"{row['name']}.png").write_bytes(png.tobytes())


def _decode(data: bytes, name: str) -> np.ndarray:
    if not name.endswith(".jxl"):
        image = decode_image(data, name)
    else:
        try:
            import imagecodecs
        except ImportError:
            raise UserError(f"{name}: JPEG XL needs imagecodecs; run `pip install imagecodecs`") from None
        image = imagecodecs.jpegxl_decode(data)
    if image.dtype != np.uint8 or image.ndim != 3:
        raise UserError(f"{name}: expected 8-bit color, got {image.dtype} of shape {image.shape}")
    return image[:, :, :3]


def _how_to_get(missing: list[dict[str, str]], wanted: int, downloads: Path) -> str:
    packages = " ".join(sorted({row["package"] for row in missing}))
    return (
        f"{len(missing)} of {wanted} photographs are missing. On Debian: mkdir -p {downloads} && cd {downloads} && "
        f"apt-get download {packages} (each release has some of them; any release's package will do), elsewhere put "
        f"the packages' .deb files into {downloads}; then run the same command. First missing: {missing[0]['path']} "
        f"of {missing[0]['package']}"
    )
