"""HEIC, the photographs of phones, by pillow-heif, and AVIF, by Pillow and, above 8 bits, imagecodecs.

A file of 10 or 12 bits is passed on as one of 16: v of 10 bits becomes v * 65535 / 1023, rounded, from which v comes
back exactly.
"""

import io
import struct
from typing import Any, BinaryIO

import numpy as np
from PIL import features

from vheatir.errors import UserError
from vheatir.image_io.avif_items import further_images
from vheatir.image_io.formats import Encoded, Stored, color_numbers
from vheatir.image_io.optional import library
from vheatir.image_io.pillow import decode_with_pillow
from vheatir.image_io.tiff_exif import orientation_of, with_usual_orientation

_EXTRA = "phone"
# What a display needs to know of HDR, and further blocks such as IPTC, as pillow-heif names them on both ways.
_CARRIED = ("metadata", "content_light_level", "mastering_display_colour_volume")
_CARRIED += ("ambient_viewing_environment", "nominal_diffuse_white_luminance")
_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}  # by channels
_ANIMATED = (b"avis", b"hevc", b"hevx", b"msf1")  # brands of image sequences
_BT2020 = 9  # H.273: primaries
_MATRIX_BT2020 = 9
_MATRIX_BT601 = 6
_KNOWN_BOXES = frozenset({b"ftyp", b"meta", b"mdat", b"idat", b"free", b"skip", b"styp"})
_TWELVE_BITS = 0x20  # flags of the AV1 configuration box
_MORE_THAN_EIGHT = 0x40


def kind_of_boxes(head: bytes) -> str | None:
    """HEIF, AVIF or RAW (Canon's CR3) by the file type box at a file's start; None for other contents."""
    if head[4:8] != b"ftyp":
        return None
    size = min(int.from_bytes(head[:4], "big"), len(head))
    major = head[8:12]
    compatible = [head[at : at + 4] for at in range(16, size, 4)]
    if major in (b"avif", b"avis") or (major in (b"mif1", b"msf1") and b"avif" in compatible):
        return "AVIF"
    if major == b"crx ":
        return "RAW"
    return "HEIF" if major[:2] == b"he" or major in (b"mif1", b"msf1") else None


def read_heif(encoded: Encoded) -> Stored:
    """A HEIC file: its primary image, upright, as the format's readers show it."""
    pillow_heif = library("pillow_heif", _EXTRA, encoded.name)
    _refuse_sequence(encoded)
    data = encoded.content()
    found = pillow_heif.open_heif(io.BytesIO(data), convert_hdr_to_8bit=False, hdr_to_16bit=False)
    primary = found[found.primary_index]
    encoded.check_size(*primary.size)
    info = dict(primary.info)
    pillow_heif.set_orientation(info)  # the decoder has turned the pixels
    array = np.asarray(primary)
    bits = info["bit_depth"]
    extras = {name: info.get(name) for name in ("icc_profile", "exif", "xmp")}
    extras["heif_bits"] = bits
    blocks = info.get("metadata") or []
    info["metadata"] = [block for block in blocks if len(block["type"]) == 4 and block["type"].isascii()]
    extras["heif"] = {name: info[name] for name in _CARRIED if info.get(name) not in (None, [])}
    nclx = info.get("nclx_profile")
    if nclx:
        extras["nclx"] = tuple(
            int(nclx[name]) for name in ("color_primaries", "transfer_characteristics", "matrix_coefficients")
        )
        extras["cicp"] = color_numbers(*extras["nclx"][:2])
    return Stored.of_array(
        _sixteen_bits(array, bits),
        8 if array.dtype == np.uint8 else 16,
        suffix=encoded.suffix,
        extras=extras,
        notes=_left_out(found, info, len(blocks) - len(info["metadata"])) + _further_data(data),
        premultiplied=bool(primary.premultiplied_alpha),
    )


def read_avif(encoded: Encoded) -> Stored:
    """An AVIF file of one image, pixels as stored; the way they are turned stands in the EXIF data."""
    if not features.check("avif"):
        raise UserError(f"{encoded.name}: this Pillow cannot read AVIF; run `pip install 'vheatir[{_EXTRA}]'`")
    _refuse_sequence(encoded)
    data = encoded.content()
    array, info = decode_with_pillow(encoded, "AVIF")
    bits = _bits_of_av1(data)
    if bits > 8:
        imagecodecs = library("imagecodecs", _EXTRA, encoded.name)
        gray = array.ndim == 2
        array = imagecodecs.avif_decode(data, index=0)
        array = array[..., 0] if gray and array.ndim == 3 else array
    extras = {name: info.get(name) for name in ("icc_profile", "exif", "xmp")}
    extras["heif_bits"] = bits
    at = data.find(b"colrnclx")
    if at >= 0:
        extras["cicp"] = color_numbers(*struct.unpack_from(">2H", data, at + 8))
    turned = orientation_of(extras["exif"])
    return Stored.of_array(
        _sixteen_bits(array, bits),
        8 if bits == 8 else 16,
        suffix=encoded.suffix,
        extras=extras,
        notes=_further_note(further_images(data, array.shape[2:] in ((2,), (4,)))) + _further_data(data),
        orientation=turned,
    )


def check_writer(name: str) -> None:
    """UserError, naming the file to write, where the library is missing that writes HEIC."""
    library("pillow_heif", _EXTRA, name)


def write_heif(file: BinaryIO, array: np.ndarray, extras: dict[str, Any], quality: int, name: str) -> None:
    """Write (height, width, channels) of 8 bits, or of 16 as 10 or 12 bits, with colors of full resolution.

    Args:
        file: opened for writing.
        array: (height, width, channels), uint8 or uint16.
        extras: `icc_profile`, `exif` and `xmp` as bytes; `nclx`: primaries, transfer and matrix as H.273 numbers them;
            `heif_bits`: 12 for those, else 10; `heif`: what else pillow-heif takes.
        quality: of the encoder, from 0 to 100.
        name: of the file, for messages.
    """
    pillow_heif = library("pillow_heif", _EXTRA, name)
    height, width, channels = array.shape
    mode = _MODES[channels]
    bits = 8
    if array.dtype == np.uint16:
        mode += ";16"
        bits = 12 if extras.get("heif_bits") == 12 else 10
        steps = (array.astype(np.uint32) * (2**bits - 1) + 32767) // 65535
        array = (steps << (16 - bits)).astype(np.uint16)  # the encoder shifts back
    kept: dict[str, Any] = {key: extras[key] for key in ("icc_profile", "exif", "xmp") if extras.get(key)}
    if "exif" in kept:  # the encoder turns the image as it says
        kept["exif"] = with_usual_orientation(kept["exif"])
    if "xmp" in kept:
        described = {"xmp": kept["xmp"]}
        pillow_heif.set_orientation(described)  # the encoder would turn the image by what XMP says and EXIF does not
        kept["xmp"] = described["xmp"]
    kept |= extras.get("heif") or {}
    nclx = extras.get("nclx")
    if not nclx and extras.get("cicp"):  # of RGB files, whose numbers name no matrix
        nclx = (*extras["cicp"], _MATRIX_BT2020 if extras["cicp"][0] == _BT2020 else _MATRIX_BT601)
    if nclx and not kept.get("icc_profile"):
        names = ("color_primaries", "transfer_characteristics", "matrix_coefficients")
        kept["nclx_profile"] = dict(zip(names, nclx)) | {"full_range_flag": 1}
    pixels = np.ascontiguousarray(array).tobytes()
    pillow_heif.encode(mode, (width, height), pixels, file, quality=quality, chroma=444, bit_depth=bits, **kept)


def _refuse_sequence(encoded: Encoded) -> None:
    encoded.file.seek(8)
    if encoded.file.read(4) in _ANIMATED:
        raise UserError(f"{encoded.name}: holds an animation; save its images as single files first")


def _left_out(found: Any, info: dict[str, Any], damaged: int) -> tuple[str, ...]:
    """Notes on what else the file holds, which a result does not.

    Args:
        found: all images.
        info: of the primary one.
        damaged: blocks of metadata that no writer takes.
    """
    notes = ("holds metadata of a damaged kind; left out",) if damaged else ()
    others = len(found) - 1 + len(info.get("depth_images") or ()) + sum(map(len, (info.get("aux") or {}).values()))
    return notes + _further_note(others)


def _further_note(count: int) -> tuple[str, ...]:
    if not count:
        return ()
    return (f"holds {count} further image{'s' * (count > 1)} (such as a gain or depth map); left out",)


def _further_data(data: bytes) -> tuple[str, ...]:
    """A note on what stands beside the boxes of an image, such as the video of a motion photo."""
    position = others = 0
    while position + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, position)
        if size == 1 and position + 16 <= len(data):
            (size,) = struct.unpack_from(">Q", data, position + 8)
        begins_anew = kind == b"ftyp" and position > 0  # another file, with boxes of the same names
        left = len(data) - position
        size = left if begins_anew or size < 8 or size > left else size  # 0: to the end
        if begins_anew or kind not in _KNOWN_BOXES:
            others += size
        position += size
    if not others:
        return ()
    return (f"holds {others} bytes beside its images (such as the video of a motion photo); left out",)


def _sixteen_bits(array: np.ndarray, bits: int) -> np.ndarray:
    """Numbers of 9 to 16 bits stretched to 16, 8 bits as they are."""
    if array.dtype == np.uint8 or bits == 16:
        return array
    top = 2**bits - 1
    return ((array.astype(np.uint32) * 65535 + top // 2) // top).astype(np.uint16)


def _bits_of_av1(data: bytes) -> int:
    """8, 10 or 12, by the first AV1 configuration box."""
    at = data.find(b"av1C")
    flags = data[at + 6] if 0 <= at < len(data) - 6 else 0
    if not flags & _MORE_THAN_EIGHT:
        return 8
    return 12 if flags & _TWELVE_BITS else 10
