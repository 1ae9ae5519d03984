"""PNG chunk by chunk: checks every checksum, carries metadata over, writes 8 and 16 bits.

Pillow reduces 16-bit color to 8 bits and OpenCV drops metadata; therefore Pillow and OpenCV only decode, and the file
is checked here beforehand and written here. Neither these nor imagecodecs encode by rows, which large images need.
"""

import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import cv2
import numpy as np

from vheatir.errors import UserError
from vheatir.image_io.formats import Encoded, Stored, color_numbers, own_primaries, usable_dpi
from vheatir.image_io.opencv import decode_with_opencv
from vheatir.image_io.pillow import decode_with_pillow
from vheatir.image_io.tiff_exif import orientation_of

SIGNATURE = b"\x89PNG\r\n\x1a\n"
# color types of the header
GRAY = 0
RGB = 2
PALETTE = 3
GRAY_ALPHA = 4
RGB_ALPHA = 6
_CHANNELS = {1: GRAY, 2: GRAY_ALPHA, 3: RGB, 4: RGB_ALPHA}
_OPENCV = {GRAY: cv2.IMREAD_UNCHANGED, RGB: cv2.IMREAD_COLOR_RGB | cv2.IMREAD_ANYDEPTH}

# What describes the image whatever its bit depth and color type; chunks such as bKGD and sBIT depend on them.
_KEPT = (b"iCCP", b"sRGB", b"gAMA", b"cHRM", b"cICP", b"pHYs", b"eXIf", b"tEXt", b"zTXt", b"iTXt", b"tIME")
LIGHT_LEVELS = (b"mDCV", b"cLLI", b"mDCv", b"cLLi")  # of HDR, also as drafts of the standard spelled them
_KEPT += LIGHT_LEVELS
_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")  # all that a decoder needs to see
# What follows from the pixels, would not hold for others, or belongs to a single frame of an animation.
_OF_PIXELS = (*_PIXELS, b"bKGD", b"sBIT", b"hIST", b"sPLT", b"iDOT", b"acTL", b"fcTL", b"fdAT")
_EXIF = b"Exif\0\0"
_MOST_METADATA = 64 << 20  # bytes that texts and profile may have when they are inflated
_XMP = b"XML:com.adobe.xmp\0\0\0\0\0"  # keyword, not compressed, no language, no translation
_METERS_PER_INCH = 0.0254
_USUAL_GAMMA = 0.02  # relative difference from 1 / 2.2 that is not worth a word
_STRIP_BYTES = 1 << 22  # raw bytes filtered and compressed at a time


@dataclass
class PngInfo:
    """The header of a PNG, the chunks that are carried over, and a file of the pixels alone."""

    width: int
    height: int
    bit_depth: int
    color_type: int
    interlaced: bool
    transparent: bytes | None = None
    chunks: list[tuple[bytes, bytes]] = field(default_factory=list)
    left_out: set[bytes] = field(default_factory=set)  # kinds of other chunks
    pixels: bytes = b""
    behind: int = 0  # bytes that follow the end


def read(encoded: Encoded) -> Stored:
    """A PNG file of one image, every checksum checked."""
    info = scan_png(encoded)
    if info.bit_depth == 16 or (info.bit_depth == 8 and info.color_type != PALETTE and not info.transparent):
        array = _with_opencv(info)
    else:
        array = None
    if array is None:
        _check_count(encoded.name, info)
        if info.bit_depth == 16:
            raise UserError(f"{encoded.name}: the 16-bit PNG file cannot be decoded, it is damaged")
        array, _ = decode_with_pillow(encoded, "PNG", info.pixels)
        if info.color_type == GRAY and info.transparent and info.bit_depth < 8:
            array = _transparent_gray(array[..., 0], info)
    exif = next((data for kind, data in info.chunks if kind == b"eXIf"), None)
    extras = {}
    if encoded.metadata:
        exif_block = None if exif is None else _EXIF + exif
        extras = {"png_chunks": info.chunks, "icc_profile": _inflated_metadata(encoded.name, info), "exif": exif_block}
        extras |= _colors_of(dict(info.chunks), info.color_type) | _texts_of(info.chunks)
    about = {"suffix": encoded.suffix, "extras": extras, "orientation": orientation_of(exif), "notes": _notes(info)}
    return Stored.of_array(array, 16 if info.bit_depth == 16 else 8, **about)


def _notes(info: PngInfo) -> tuple[str, ...]:
    names = ", ".join(kind.decode("latin-1") for kind in sorted(info.left_out))
    notes = (f"holds data of a program ({names}); left out",) if names else ()
    behind = (f"holds {info.behind} bytes behind the end of the image; they are left out",) if info.behind else ()
    return notes + behind


def scan_png(encoded: Encoded) -> PngInfo:
    """Walk through all chunks; UserError when one is cut short, damaged or missing, or the image is too large."""
    info = None
    pixels = [SIGNATURE]
    data = encoded.content()
    for kind, start, end in _chunks(data, encoded.name):
        if info is None:
            if kind != b"IHDR" or end - start != 13:
                raise UserError(f"{encoded.name}: a PNG must begin with its header chunk, this file is damaged")
            info = PngInfo(*struct.unpack_from(">IIBB", data, start), interlaced=data[start + 12] == 1)
            encoded.check_size(info.width, info.height)
        elif kind == b"eXIf":  # some writers put the beginning of JPEG's segments in front
            info.chunks.append((kind, data[start:end].removeprefix(_EXIF)))
        elif kind in _KEPT:
            info.chunks += [(kind, data[start:end])] if encoded.metadata else []
        elif kind == b"tRNS":
            info.transparent = data[start:end]
        elif kind == b"acTL" and end - start == 8 and (frames := int.from_bytes(data[start : start + 4])) > 1:
            raise UserError(
                f"{encoded.name}: an animated PNG of {frames} frames; save its frames as single images first"
            )
        elif kind not in _OF_PIXELS:
            info.left_out.add(kind)
        if kind in _PIXELS:
            pixels.append(data[start - 8 : end + 4])
            info.behind = len(data) - end - 4
    assert info is not None, "without a header chunk the first chunk raises"
    info.pixels = b"".join(pixels)
    return info


def _chunks(data: bytes, name: str) -> Iterator[tuple[bytes, int, int]]:
    """Kind, begin and end of each chunk's data."""
    view = memoryview(data)
    position = len(SIGNATURE)
    kind = b""
    while kind != b"IEND":
        if position + 12 > len(data):
            raise UserError(f"{name}: the PNG file ends too early (truncated); copy or download it again")
        size, kind = struct.unpack_from(">I4s", data, position)
        start = position + 8
        end = position + 8 + size
        if end + 4 > len(data):
            raise UserError(f"{name}: the PNG file ends too early (truncated); copy or download it again")
        if zlib.crc32(view[position + 4 : end]) != int.from_bytes(view[end : end + 4]):
            raise UserError(f"{name}: a checksum in the PNG file is wrong (damaged); copy or download it again")
        yield kind, start, end
        position = end + 4


def _with_opencv(info: PngInfo) -> np.ndarray | None:
    """8 or 16 bits as HW, or HWC with gray and alpha, RGB, or RGB and alpha; None where OpenCV refuses."""
    flags = _OPENCV.get(info.color_type, cv2.IMREAD_UNCHANGED)
    array = decode_with_opencv(info.pixels, flags)
    if array is None or 8 * array.itemsize != info.bit_depth or array.shape[:2] != (info.height, info.width):
        return None
    if info.color_type == GRAY_ALPHA:
        array = array[..., [0, 3]]
    elif info.color_type == RGB_ALPHA:
        array = cv2.cvtColor(array, cv2.COLOR_BGRA2RGBA)
    if info.color_type in (GRAY, RGB) and info.transparent:
        channels = 1 if info.color_type == GRAY else 3
        color = array.reshape(*array.shape[:2], -1)[..., :channels]
        key = np.frombuffer(info.transparent, dtype=">u2", count=channels)
        alpha = np.where((color == key).all(axis=-1), 0, 65535).astype(np.uint16)
        array = np.dstack([color, alpha])
    return array


def _transparent_gray(gray: np.ndarray, info: PngInfo) -> np.ndarray:
    """Gray of 1, 2 or 4 bits, stretched to 8, with alpha; Pillow compares stretched values with the stored key."""
    assert info.transparent is not None, "called for such files only"
    key = int.from_bytes(info.transparent[:2]) * 255 // (2**info.bit_depth - 1)
    return np.dstack([gray, np.where(gray == key, 0, 255).astype(np.uint8)])


def _colors_of(chunks: dict[bytes, bytes], color_type: int) -> dict[str, Any]:
    """How the file describes its colors where no profile does, and they are not those of sRGB.

    Args:
        chunks: content by kind.
        color_type: of the header.

    Returns:
        "cicp": primaries and transfer in the numbers of H.273. "gamma": the exponent of the file's tone curve.
        "primaries": x and y of white, red, green and blue.
    """
    if len(chunks.get(b"cICP", b"")) == 4:
        return {"cicp": color_numbers(*chunks[b"cICP"][:2])}
    if b"iCCP" in chunks or b"sRGB" in chunks:
        return {}
    found: dict[str, Any] = {}
    if len(chunks.get(b"gAMA", b"")) == 4:
        gamma = int.from_bytes(chunks[b"gAMA"]) / 1e5
        found |= {} if abs(gamma * 2.2 - 1) < _USUAL_GAMMA else {"gamma": gamma}
    if len(chunks.get(b"cHRM", b"")) == 32 and color_type not in (GRAY, GRAY_ALPHA):
        found["primaries"] = own_primaries([number / 1e5 for number in struct.unpack(">8I", chunks[b"cHRM"])])
    return found


def is_xmp(text: bytes) -> bool:
    """Whether the content of an iTXt chunk is XMP that other formats can take."""
    return text.startswith(_XMP)


def _texts_of(chunks: list[tuple[bytes, bytes]]) -> dict[str, Any]:
    """XMP and dots per inch, for other formats."""
    found: dict[str, Any] = {}
    for kind, data in chunks:
        if kind == b"iTXt" and data.startswith(_XMP):
            found["xmp"] = data.removeprefix(_XMP)
        elif kind == b"pHYs" and len(data) == 9 and data[8] == 1:
            across, down = struct.unpack_from(">II", data)
            found["dpi"] = usable_dpi((across * _METERS_PER_INCH, down * _METERS_PER_INCH))
    return found


def _check_count(name: str, info: PngInfo) -> None:
    """UserError when there are fewer pixels than the header says; some decoders silently fill them up."""
    missing = _pixel_bytes(info)
    inflater = zlib.decompressobj()
    for kind, start, end in _chunks(info.pixels, name):
        data = info.pixels[start:end] if kind == b"IDAT" else b""
        while data and missing > 0:
            missing -= len(inflater.decompress(data, min(missing, _STRIP_BYTES)))
            data = inflater.unconsumed_tail
    if missing:
        raise UserError(f"{name}: the PNG file holds fewer pixels than its header says; it is damaged")


def _pixel_bytes(info: PngInfo) -> int:
    """Bytes of all rows with their filter numbers; an interlaced image is stored as seven smaller ones."""
    channels = {RGB: 3, GRAY_ALPHA: 2, RGB_ALPHA: 4}.get(info.color_type, 1)
    starts = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
    total = 0
    for top, left, down, right in starts if info.interlaced else ((0, 0, 1, 1),):
        rows = -(-(info.height - top) // down)
        columns = -(-(info.width - left) // right)
        if rows > 0 and columns > 0:
            total += rows * (1 + -(-columns * channels * info.bit_depth // 8))
    return total


def _inflated_metadata(name: str, info: PngInfo) -> bytes | None:
    """The color profile; UserError when it and the compressed texts would inflate beyond all measure."""
    profile = None
    left = _MOST_METADATA
    for kind, data in info.chunks:
        key, _, rest = data.partition(b"\0")
        if kind == b"iTXt" and rest[:1] == b"\1":
            packed = rest[2:].partition(b"\0")[2].partition(b"\0")[2]
        elif kind in (b"zTXt", b"iCCP"):
            packed = rest[1:]
        else:
            continue
        try:
            found = _inflated(packed, left)
        except zlib.error:
            continue  # carried over as it is; other programs pass over it too
        if found is None:
            what = "color profile" if kind == b"iCCP" else f"text {key.decode('latin-1')!r}"
            raise UserError(
                f"{name}: its {what} inflates to more than {_MOST_METADATA >> 20} MiB, the limit for all texts and the "
                "profile of a PNG; remove it and save the file again"
            )
        left -= len(found)
        profile = found if kind == b"iCCP" else profile
    return profile


def _inflated(packed: bytes, limit: int) -> bytes | None:
    """What a stream inflates to, in pieces; None where that is more than `limit` bytes."""
    inflater = zlib.decompressobj()
    pieces: list[bytes] = []
    size = 0
    while packed and not inflater.eof:
        piece = inflater.decompress(packed, _STRIP_BYTES)
        if not piece:
            break
        pieces.append(piece)
        size += len(piece)
        if size > limit:
            return None
        packed = inflater.unconsumed_tail
    return b"".join(pieces)


def write_png(
    file: BinaryIO,
    shape: tuple[int, int, int],
    bit_depth: int,
    blocks: Iterable[np.ndarray],
    chunks: list[tuple[bytes, bytes]],
) -> None:
    """Write blocks of rows, (rows, width, 1 to 4 channels with alpha last), as they come; rows get the Paeth filter.

    Args:
        file: opened for writing.
        shape: height, width and channels of the whole image.
        bit_depth: 8 or 16.
        blocks: (rows, width, channels), from the top.
        chunks: type and content of further chunks.
    """
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
    left = padded[1:, :-step]
    up = padded[:-1, step:]
    corner = padded[:-1, :-step]
    to_left = abs(up - corner)
    to_up = abs(left - corner)
    to_corner = abs(left + up - 2 * corner)
    nearest_left = (to_left <= to_up) & (to_left <= to_corner)
    predicted = np.where(nearest_left, left, np.where(to_up <= to_corner, up, corner))
    residual = (padded[1:, step:] - predicted).astype(np.uint8)  # wraps modulo 256, as the format wants
    return np.pad(residual, ((0, 0), (1, 0)), constant_values=4).tobytes()


def _write_chunk(file: BinaryIO, kind: bytes, data: bytes) -> None:
    file.write(struct.pack(">I4s", len(data), kind))
    file.write(data)
    file.write(struct.pack(">I", zlib.crc32(data, zlib.crc32(kind))))


def metadata_chunks(extras: dict[str, Any]) -> list[tuple[bytes, bytes]]:
    """Metadata of another format as PNG chunks: color profile or numbers, resolution, EXIF, XMP.

    Args:
        extras: see `vheatir.image_io.formats.Stored`.
    """
    profile = extras.get("icc_profile")
    chunks = []
    if profile:
        chunks.append((b"iCCP", b"ICC profile\0\0" + zlib.compress(profile)))
    elif extras.get("cicp"):
        chunks.append((b"cICP", bytes([*extras["cicp"], 0, 1])))  # RGB, of full range
    elif extras.get("primaries"):
        chunks.append((b"cHRM", struct.pack(">8I", *(round(value * 1e5) for value in extras["primaries"]))))
    dpi = usable_dpi(extras.get("dpi"))
    if dpi:
        chunks.append((b"pHYs", struct.pack(">IIB", *(round(value / _METERS_PER_INCH) for value in dpi), 1)))
    if extras.get("exif"):
        chunks.append((b"eXIf", extras["exif"].removeprefix(b"Exif\0\0")))
    if extras.get("xmp"):
        chunks.append((b"iTXt", _XMP + extras["xmp"]))
    return chunks
