"""Which images an AVIF holds beside the one that is shown: gain maps, depth maps, thumbnails.

Pillow and imagecodecs decode one image and say nothing of others, so the boxes of the file are read here.

Source: boxes of ISO/IEC 14496-12 and items of ISO/IEC 23008-12 (HEIF).
"""

import struct
from collections.abc import Iterator

_IMAGES = frozenset({b"av01", b"grid", b"iovl", b"iden", b"hvc1", b"jpeg"})  # kinds of items that are images
_OF_OTHERS = frozenset({b"grid", b"iovl", b"iden"})  # and that are put together of others

Reference = tuple[bytes, int, tuple[int, ...]]  # its kind, the item that has it, and those that it names


def further_images(data: bytes, has_alpha: bool) -> int:
    """How many images are in a file beside the one that is shown; 0 where its boxes cannot be read.

    Args:
        data: of the file.
        has_alpha: whether the one that is shown has alpha, which is an image of its own in the file.
    """
    try:
        begin, end = _only(data, b"meta", 0, len(data))
        begin += 4
        place, _ = _only(data, b"pitm", begin, end)
        (shown,) = struct.unpack_from(">I" if data[place] else ">H", data, place + 4)
        kinds = _kinds(data, *_only(data, b"iinf", begin, end))
        references = _references(data, begin, end)
    except (struct.error, IndexError, StopIteration):
        return 0
    parts = {shown}
    for kind, item, named in references:
        if kind == b"dimg" and kinds.get(item) in _OF_OTHERS:
            parts.update(named)
    beside = [item for kind, item, named in references if kind == b"auxl" and shown in named]
    if has_alpha and beside:  # which of them it is does not matter for the number
        parts.add(beside[0])
    return sum(kind in _IMAGES and item not in parts for item, kind in kinds.items())


def _boxes(data: bytes, position: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Kind, begin and end of the content of each box, up to one that is damaged."""
    while position + 8 <= end:
        size, kind = struct.unpack_from(">I4s", data, position)
        begin = position + 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, begin)
            begin += 8
        after = position + size if size else end
        if not begin <= after <= end:
            return
        yield kind, begin, after
        position = after


def _only(data: bytes, wanted: bytes, begin: int, end: int) -> tuple[int, int]:
    """Begin and end of the first box of a kind; StopIteration where there is none."""
    return next((start, stop) for kind, start, stop in _boxes(data, begin, end) if kind == wanted)


def _kinds(data: bytes, begin: int, end: int) -> dict[int, bytes]:
    """Kinds of all items, by their number."""
    found = {}
    for _, start, _ in _boxes(data, begin + (8 if data[begin] else 6), end):
        version = data[start]
        if version >= 2:
            number, kind = struct.unpack_from(">H2x4s" if version == 2 else ">I2x4s", data, start + 4)
            found[number] = kind
    return found


def _references(data: bytes, begin: int, end: int) -> list[Reference]:
    found = []
    for outer, start, stop in _boxes(data, begin, end):
        if outer != b"iref":
            continue
        number = "I" if data[start] else "H"
        for kind, at, _ in _boxes(data, start + 4, stop):
            item, count = struct.unpack_from(f">{number}H", data, at)
            named = struct.unpack_from(f">{count}{number}", data, at + struct.calcsize(f">{number}H"))
            found.append((kind, item, named))
    return found
