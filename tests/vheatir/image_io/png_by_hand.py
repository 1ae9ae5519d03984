"""PNG files written by hand, of kinds that no library writes."""

import struct
import zlib

import numpy as np


def chunk(kind: bytes, data: bytes) -> bytes:
    """One chunk with its checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    array: np.ndarray, color_type: int, *extra: bytes, width: int | None = None, height: int | None = None
) -> bytes:
    """A file of any color type with 8 or 16 bits and any further chunks.

    Args:
        array: the pixels as they are stored, (H, W[, C]).
        color_type: as in the header.
        *extra: chunks in front of the pixels.
        width: what the header says; by default that of the array.
        height: likewise.
    """
    header = struct.pack(
        ">IIBBBBB", width or array.shape[1], height or array.shape[0], array.itemsize * 8, color_type, 0, 0, 0
    )
    rows = b"".join(b"\0" + row.astype(row.dtype.newbyteorder(">")).tobytes() for row in array)
    chunks = [chunk(b"IHDR", header), *extra, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)
