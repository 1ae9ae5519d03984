"""EXIF and GPS directories of a TIFF, copied from one file to the end of another.

They are directories of tags inside the file ("IFDs"), found by their position, so a writer of pixels cannot carry them
as plain tags. Values are copied as bytes; only positions are made anew. Camera makers' notes that hold positions of
their own come across as they are, which readers of such notes know.
"""

import io
import struct
from typing import BinaryIO, NamedTuple

POINTERS = (34665, 34853)  # EXIF, GPS; in the first IFD
_INTEROPERABILITY = 40965  # inside EXIF
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
ORIENTATION = 274
_EXIF = b"Exif\0\0"
BYTE = 1
ASCII = 2
SHORT = 3
LONG = 4
_LONG8 = 16
_NUMBERS = {BYTE: "B", SHORT: "H", LONG: "I"}  # how some writers store what should be a SHORT
_MOST_ENTRIES = 1000
_MOST_BYTES = 1 << 24


class Layout(NamedTuple):
    """How a file's IFDs are laid out."""

    order: str  # "<" or ">"
    big: bool  # BigTIFF: 8-byte positions

    @property
    def position(self) -> str:
        return self.order + ("Q" if self.big else "I")

    @property
    def head(self) -> struct.Struct:
        """Number of entries in front of an IFD."""
        return struct.Struct(self.order + ("Q" if self.big else "H"))

    @property
    def entry(self) -> struct.Struct:
        """Tag, type, count and the value (or its position)."""
        return struct.Struct(self.order + ("HHQ8s" if self.big else "HHI4s"))


class Entry(NamedTuple):
    """One tag with its value as bytes, or the IFD that it points to."""

    tag: int
    kind: int
    count: int
    value: bytes
    ifd: "list[Entry] | None" = None


def read_ifds(file: BinaryIO, start: int | None = None) -> dict[int, list[Entry]]:
    """The EXIF and GPS directories, by their tag, of a TIFF's page at `start`; ValueError when they are damaged.

    Args:
        file: a TIFF, or a block of EXIF from its byte order on.
        start: of the page's directory; None for the first one.
    """
    layout, first_start = _header(file)
    start = first_start if start is None else start
    try:
        first = {entry.tag: entry for entry in _read(file, layout, start, values=False)}
        pointers = {tag: first[tag].value for tag in POINTERS if tag in first}
        return {tag: _read(file, layout, _number(layout, value)) for tag, value in pointers.items()}
    except (struct.error, KeyError) as error:
        raise ValueError(f"its EXIF directory is damaged ({error})") from error


def reaches_beyond_end(file: BinaryIO, start: int) -> bool:
    """Whether the IFD at `start`, or a value that it points to, lies behind the end of the file."""
    layout, _ = _header(file)
    end = file.seek(0, 2)
    try:
        entries = _read(file, layout, start, values=False)
    except struct.error:
        return True
    sizes = ((entry, entry.count * _SIZES.get(entry.kind, 1)) for entry in entries)
    return any(size > len(entry.value) and _number(layout, entry.value) + size > end for entry, size in sizes)


def orientation_of(exif: bytes | None) -> int:
    """The orientation that EXIF names, 1 (upright) to 8; 1 where it names none or cannot be read."""
    if not exif:
        return 1
    try:
        order, entries = first_ifd(exif.removeprefix(_EXIF), values=False)
        turned = next((entry for entry in entries if entry.tag == ORIENTATION and entry.kind in _NUMBERS), None)
        found = 1 if turned is None else struct.unpack_from(order + _NUMBERS[turned.kind], turned.value)[0]
    except (struct.error, ValueError):
        return 1
    return found if 1 <= found <= 8 else 1


def with_usual_orientation(exif: bytes) -> bytes:
    """EXIF whose orientation, where it is not upright, has the type that all readers know: SHORT."""
    turned = orientation_of(exif)
    if turned == 1:
        return exif
    block = exif.removeprefix(_EXIF)
    file = io.BytesIO(block)
    layout, start = _header(file)
    file.seek(start)
    (count,) = layout.head.unpack(file.read(layout.head.size))
    for place in range(file.tell(), file.tell() + count * layout.entry.size, layout.entry.size):
        file.seek(place)
        tag, kind, _, _ = layout.entry.unpack(file.read(layout.entry.size))
        if tag == ORIENTATION and kind in _NUMBERS:
            file.seek(place)
            value = struct.pack(layout.order + "HH", turned, 0)
            file.write(layout.entry.pack(ORIENTATION, SHORT, 1, value))
            break
    return exif[: len(exif) - len(block)] + file.getvalue()


def first_ifd(block: bytes, *, values: bool = True) -> tuple[str, list[Entry]]:
    """Byte order, "<" or ">", and the entries of the first directory of a block that is laid out as a TIFF.

    Args:
        block: from the byte order on.
        values: also of the entries whose value stands elsewhere in the block.

    Raises:
        ValueError: the block is damaged.
    """
    file = io.BytesIO(block)
    try:
        layout, start = _header(file)
        return layout.order, _read(file, layout, start, values=values)
    except struct.error as error:
        raise ValueError(f"its directory is damaged ({error})") from error


def exif_block(order: str, entries: list[Entry], ifds: dict[int, list[Entry]]) -> bytes | None:
    """EXIF as other formats carry it, of the entries of a first directory and of the EXIF and GPS directories.

    Args:
        order: byte order of all values, "<" or ">".
        entries: such as camera and orientation.
        ifds: by the tag that points to them.

    Returns:
        The block, with the six bytes that it begins with in a JPEG; None where there is nothing to say.
    """
    if not entries and not ifds:
        return None
    layout = Layout(order, big=False)
    pointers = [Entry(tag, LONG, 1, b"", ifd) for tag, ifd in ifds.items()]
    file = io.BytesIO()
    file.write((b"II*\0" if order == "<" else b"MM\0*") + bytes(4))
    start = _append(file, layout, sorted([*entries, *pointers], key=lambda entry: entry.tag))
    file.seek(4)
    file.write(struct.pack(layout.position, start))
    return _EXIF + file.getvalue()


def append_ifds(file: BinaryIO, ifds: dict[int, list[Entry]]) -> None:
    """Add IFDs to a TIFF of one page, and behind them a first IFD that points to them in the old one's place."""
    layout, start = _header(file)
    file.seek(start)
    (count,) = layout.head.unpack(file.read(layout.head.size))
    records = {}
    for record in [file.read(layout.entry.size) for _ in range(count)]:
        records[layout.entry.unpack(record)[0]] = record
    kind = _LONG8 if layout.big else LONG
    for tag, ifd in ifds.items():
        position = struct.pack(layout.position, _append(file, layout, ifd))
        records[tag] = layout.entry.pack(tag, kind, 1, position)
    first = _ifd_at_end(file, layout, [records[tag] for tag in sorted(records)])
    file.seek(8 if layout.big else 4)
    file.write(struct.pack(layout.position, first))
    file.seek(0, 2)


def _header(file: BinaryIO) -> tuple[Layout, int]:
    file.seek(0)
    head = file.read(16)
    order = "<" if head[:2] == b"II" else ">"
    layout = Layout(order, big=struct.unpack(order + "H", head[2:4])[0] == 43)
    return layout, _number(layout, head[8:16] if layout.big else head[4:8])


def _number(layout: Layout, value: bytes) -> int:
    return struct.unpack_from(layout.position, value)[0]


def _read(file: BinaryIO, layout: Layout, start: int, *, values: bool = True) -> list[Entry]:
    """The entries of the IFD at `start`; without `values` only what stands in the entries themselves."""
    file.seek(start)
    (count,) = layout.head.unpack(file.read(layout.head.size))
    if count > _MOST_ENTRIES:
        raise ValueError(f"its EXIF directory claims {count} entries")
    entries = []
    budget = _MOST_BYTES
    for record in [file.read(layout.entry.size) for _ in range(count)]:
        tag, kind, number, value = layout.entry.unpack(record)
        size = number * _SIZES.get(kind, 1)
        budget -= size
        if values and budget < 0:
            raise ValueError("its EXIF directory claims more than 16 MB")
        ifd = None
        if values and tag == _INTEROPERABILITY:
            ifd = _read(file, layout, _number(layout, value), values=False)
            ifd = [entry for entry in ifd if entry.count * _SIZES.get(entry.kind, 1) <= len(value)]
        elif values and size > len(value):
            file.seek(_number(layout, value))
            value = file.read(size)
            if len(value) < size:
                raise ValueError("its EXIF directory reaches beyond the end of the file")
        entries.append(Entry(tag, kind, number, value, ifd))
    return entries


def _append(file: BinaryIO, layout: Layout, ifd: list[Entry]) -> int:
    """Write an IFD and what it points to at the end of the file; returns its position."""
    fits = struct.calcsize(layout.position)
    records = []
    for tag, kind, count, value, inner in ifd:
        if inner is not None:
            kind, count = (_LONG8, 1) if layout.big else (LONG, 1)
            value = struct.pack(layout.position, _append(file, layout, inner))
        elif count * _SIZES.get(kind, 1) > fits:
            value = struct.pack(layout.position, _at_end(file, value))
        records.append(layout.entry.pack(tag, kind, count, value[:fits]))
    return _ifd_at_end(file, layout, records)


def _ifd_at_end(file: BinaryIO, layout: Layout, records: list[bytes]) -> int:
    no_next_ifd = struct.pack(layout.position, 0)
    return _at_end(file, layout.head.pack(len(records)) + b"".join(records) + no_next_ifd)


def _at_end(file: BinaryIO, data: bytes) -> int:
    """Append at an even position."""
    position = file.seek(0, 2)
    if position % 2:
        file.write(b"\0")
        position += 1
    file.write(data)
    return position
