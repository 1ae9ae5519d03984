"""PNG at the level of its chunks: checks every checksum, carries metadata over, writes 8 and 16 bits.

Pillow reduces 16-bit colour to 8 bits and OpenCV drops metadata; therefore Pillow and OpenCV only decode, and the file
is checked here beforehand and written here.
"""

import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np

from vheatir.errors import UserError

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GRAY, RGB, PALETTE, GRAY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6  # colour types of the header
_CHANNELS = {1: GRAY, 2: GRAY_ALPHA, 3: RGB, 4: RGB_ALPHA}

# What describes the picture whatever its bit depth and colour type; chunks such as bKGD and sBIT depend on them.
_KEPT = (b"iCCP", b"sRGB", b"gAMA", b"cHRM", b"cICP", b"pHYs", b"eXIf", b"tEXt", b"zTXt", b"iTXt", b"tIME")
_STRIP_BYTES = 1 << 22  # raw bytes filtered and compressed at a time


@dataclass
class PngInfo:
    """The header of a PNG and the chunks that are carried over."""

    width: int
    height: int
    bit_depth: int
    color_type: int
    frames: int = 1
    transparent: bytes | None = None
    chunks: list[tuple[bytes, bytes]] = field(default_factory=list)


def scan_png(path: Path, check_size: Callable[[int, int], None]) -> PngInfo:
    """Walk through all chunks; UserError when one is cut short, damaged or missing.

    `check_size` gets width and height before anything is inflated, and raises when they are too large.
    """
    info = pixels = None
    with open(path, "rb") as file:
        file.seek(len(SIGNATURE))
        for kind, data in _chunks(file, path):
            if info is None:
                if kind != b"IHDR" or len(data) != 13:
                    raise UserError(f"{path}: a PNG must begin with its header chunk, this file is damaged")
                info = PngInfo(*struct.unpack(">IIBB", data[:10]))
                check_size(info.width, info.height)
                pixels = _PixelCount(_pixel_bytes(info, interlaced=data[12] == 1))
            elif kind == b"IDAT":
                pixels.add(data)
            elif kind in _KEPT:
                info.chunks.append((kind, data))
            elif kind == b"tRNS":
                info.transparent = data
            elif kind == b"acTL" and len(data) == 8:
                info.frames = struct.unpack(">I", data[:4])[0]
    if info is None or pixels.missing:
        raise UserError(f"{path}: the PNG file holds fewer pixels than its header says; it is damaged")
    return info


class _PixelCount:
    """How many bytes of pixels are still to come; decoders fill up what is missing without a word."""

    def __init__(self, expected: int):
        self.missing = expected
        self._inflater = zlib.decompressobj()

    def add(self, data: bytes) -> None:
        while data and self.missing > 0:
            self.missing -= len(self._inflater.decompress(data, min(self.missing, _STRIP_BYTES)))
            data = self._inflater.unconsumed_tail


def _pixel_bytes(info: PngInfo, interlaced: bool) -> int:
    """Bytes of all rows with their filter numbers; an interlaced picture is stored as seven smaller ones."""
    channels = {RGB: 3, GRAY_ALPHA: 2, RGB_ALPHA: 4}.get(info.color_type, 1)
    starts = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
    total = 0
    for top, left, down, right in starts if interlaced else ((0, 0, 1, 1),):
        rows, columns = -(-(info.height - top) // down), -(-(info.width - left) // right)
        if rows > 0 and columns > 0:
            total += rows * (1 + -(-columns * channels * info.bit_depth // 8))
    return total


def _chunks(file: BinaryIO, path: Path) -> Iterator[tuple[bytes, bytes]]:
    kind = b""
    left = path.stat().st_size - len(SIGNATURE)
    while kind != b"IEND":
        head = file.read(8)
        size, kind = struct.unpack(">I4s", head) if len(head) == 8 else (0, b"")
        left -= size + 12
        if len(head) < 8 or left < 0:
            raise UserError(f"{path}: the PNG file ends too early (truncated); copy or download it again")
        data = file.read(size)
        if zlib.crc32(data, zlib.crc32(kind)) != int.from_bytes(file.read(4)):
            raise UserError(f"{path}: a checksum in the PNG file is wrong (damaged); copy or download it again")
        yield kind, data


def read_png16(path: Path, info: PngInfo) -> np.ndarray:
    """A 16-bit PNG as uint16: HW, or HWC with gray and alpha, RGB, or RGB and alpha."""
    array = cv2.imdecode(np.fromfile(path, dtype=np.uint8), cv2.IMREAD_UNCHANGED)
    if array is None or array.dtype != np.uint16 or array.shape[:2] != (info.height, info.width):
        raise UserError(f"{path}: the 16-bit PNG file cannot be decoded, it is damaged")
    if info.color_type == GRAY_ALPHA:
        array = array[..., [0, 3]] if array.ndim == 3 and array.shape[2] == 4 else array
    elif array.ndim == 3:
        array = cv2.cvtColor(array, cv2.COLOR_BGRA2RGBA if array.shape[2] == 4 else cv2.COLOR_BGR2RGB)
    if info.color_type in (GRAY, RGB) and info.transparent:
        channels = 1 if info.color_type == GRAY else 3
        color = array.reshape(*array.shape[:2], -1)[..., :channels]
        key = np.frombuffer(info.transparent, dtype=">u2", count=channels)
        alpha = np.where((color == key).all(axis=-1), 0, 65535).astype(np.uint16)
        array = np.dstack([color, alpha])
    return array


def write_png(
    file: BinaryIO,
    shape: tuple[int, int, int],
    bit_depth: int,
    blocks: Iterable[np.ndarray],
    chunks: list[tuple[bytes, bytes]],
) -> None:
    """Write blocks of rows, (rows, width, 1 to 4 channels with alpha last), as they come; rows get the Paeth filter."""
    height, width, channels = shape
    header = struct.pack(">IIBBBBB", width, height, bit_depth, _CHANNELS[channels], 0, 0, 0)
    file.write(SIGNATURE)
    for kind, data in [(b"IHDR", header), *chunks]:
        _write_chunk(file, kind, data)
    compressor = zlib.compressobj(6)
    step = channels * bit_depth // 8
    rows = max(1, _STRIP_BYTES // (width * step))
    above = np.zeros((1, width * step), dtype=np.uint8)
    for strip in (block[top : top + rows] for block in blocks for top in range(0, len(block), rows)):
        raw = np.ascontiguousarray(strip, dtype=strip.dtype.newbyteorder(">")).view(np.uint8).reshape(len(strip), -1)
        compressed = compressor.compress(_filtered(np.concatenate([above, raw]), step))
        above = raw[-1:]
        if compressed:
            _write_chunk(file, b"IDAT", compressed)
    _write_chunk(file, b"IDAT", compressor.flush())
    _write_chunk(file, b"IEND", b"")


def _filtered(rows: np.ndarray, step: int) -> bytes:
    """Paeth residuals of all rows but the first, which is only looked back at; each row led by the filter's number."""
    padded = np.pad(rows, ((0, 0), (step, 0))).astype(np.int16)
    left, up, corner = padded[1:, :-step], padded[:-1, step:], padded[:-1, :-step]
    to_left, to_up, to_corner = abs(up - corner), abs(left - corner), abs(left + up - 2 * corner)
    nearest_left = (to_left <= to_up) & (to_left <= to_corner)
    predicted = np.where(nearest_left, left, np.where(to_up <= to_corner, up, corner))
    residual = (padded[1:, step:] - predicted).astype(np.uint8)  # wraps modulo 256, as the format wants
    return np.pad(residual, ((0, 0), (1, 0)), constant_values=4).tobytes()


def _write_chunk(file: BinaryIO, kind: bytes, data: bytes) -> None:
    file.write(struct.pack(">I4s", len(data), kind))
    file.write(data)
    file.write(struct.pack(">I", zlib.crc32(data, zlib.crc32(kind))))


def metadata_chunks(icc_profile: bytes | None, exif: bytes | None) -> list[tuple[bytes, bytes]]:
    """Colour profile and EXIF of another format as PNG chunks."""
    chunks = []
    if icc_profile:
        chunks.append((b"iCCP", b"ICC profile\0\0" + zlib.compress(icc_profile)))
    if exif:
        chunks.append((b"eXIf", exif.removeprefix(b"Exif\0\0")))
    return chunks
