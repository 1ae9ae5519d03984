"""JPEG segment by segment: truncation is detected, metadata and data after the image are carried over.

OpenCV decodes what is usual, Pillow the rest. What follows the end of the image, such as the video of a motion photo,
is found by its distance from the end of the file, and so stays valid behind another image.
"""

import io
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

import cv2

from vheatir.errors import UserError
from vheatir.image_io.formats import Encoded, Stored
from vheatir.image_io.jpeg_further import images_of, names_gain_map, without_images
from vheatir.image_io.opencv import decode_with_opencv
from vheatir.image_io.pillow import decode_with_pillow, open_with_pillow
from vheatir.image_io.tiff_exif import orientation_of
from vheatir.utils.quiet import quiet

_SOI = 0xD8
_EOI = 0xD9
_SOS = 0xDA
_APP0 = 0xE0
_APP1 = 0xE1
_APP2 = 0xE2
APP13 = 0xED
COMMENT = 0xFE
_ALONE = (0x01, *range(0xD0, 0xD9))  # markers without a length
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_LOSSLESS_OR_HIERARCHICAL = frozenset({0xC3, 0xC5, 0xC6, 0xC7, 0xCB, 0xCD, 0xCE, 0xCF})
_NEXT_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")
_OTHERS = frozenset(range(0xE2, 0xF0)) - {0xEE}  # application data, but for JFIF and Adobe's, which the codec makes
_FURTHER_IMAGES = b"MPF\0"
_EXIF = b"Exif\0\0"
_ICC = b"ICC_PROFILE\0"
_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_IMAGE = b"\xff\xd8\xff"
_MOST_PAYLOAD = 65533


@dataclass
class JpegInfo:
    """The frame header of a JPEG, its segments of metadata (marker, payload), and what follows its end."""

    width: int = 0
    height: int = 0
    bits: int = 0
    components: int = 0
    process: int = 0  # the marker of the frame header
    segments: list[tuple[int, bytes]] = field(default_factory=list)
    left_out: list[int] = field(default_factory=list)  # markers of other segments
    index: tuple[bytes, int] | None = None  # of further images: content from its byte order on, and where it stands
    scan: int = 0  # where the first scan begins
    trailer: bytes = b""

    def exif(self) -> bytes | None:
        """EXIF, joined where it takes several segments."""
        parts = [data.removeprefix(_EXIF) for marker, data in self.segments if marker == _APP1 and _is_exif(data)]
        return _EXIF + b"".join(parts) if parts else None


def _is_exif(data: bytes) -> bool:
    return data.startswith(_EXIF)


def read(encoded: Encoded) -> Stored:
    """A JPEG file of 8 bits, gray or RGB; of several images (MPO) the first one."""
    data = encoded.content()
    info = _scan(data, encoded)
    _check_kind(encoded, info)
    end = _end(data, info.scan) if encoded.metadata or not data.endswith(b"\xff\xd9") else len(data)
    if end is None:  # decoders fill up what is missing
        raise UserError(
            f"{encoded.name}: the JPEG file ends too early (truncated or damaged); copy or download it again"
        )
    color = cv2.IMREAD_GRAYSCALE if info.components == 1 else cv2.IMREAD_COLOR_RGB
    array = decode_with_opencv(data, color)
    if array is None or array.shape[:2] != (info.height, info.width):
        array, _ = decode_with_pillow(encoded, "JPEG")
    exif = info.exif()
    extras = {}
    notes = ()
    if encoded.metadata:
        extras, notes = _metadata(data, info, end)
    about = {"suffix": encoded.suffix, "extras": extras, "notes": notes, "orientation": orientation_of(exif)}
    return Stored.of_array(array, 8, **about)


def _scan(data: bytes, encoded: Encoded) -> JpegInfo:
    """All segments before the first scan."""
    info = JpegInfo()
    position = 2
    while not info.scan:
        position = data.find(b"\xff", position)
        while position >= 0 and data[position + 1 : position + 2] == b"\xff":
            position += 1
        if position < 0 or position + 4 > len(data):
            raise UserError(f"{encoded.name}: the JPEG file is truncated or damaged; copy or download it again")
        marker = data[position + 1]
        if marker in _ALONE or marker == 0:
            position += 2
            continue
        size = int.from_bytes(data[position + 2 : position + 4])
        start = position + 4
        payload, position = data[start : position + 2 + size], position + 2 + max(size, 2)
        if marker == _SOS:
            info.scan = position
        elif marker in _FRAMES and len(payload) >= 6:
            info.bits = payload[0]
            info.components = payload[5]
            info.process = marker
            info.height = int.from_bytes(payload[1:3])
            info.width = int.from_bytes(payload[3:5])
            encoded.check_size(info.width, info.height)
        elif marker in (_APP1, APP13, COMMENT) or (marker == _APP2 and payload.startswith(_ICC)):
            info.segments.append((marker, payload))
        elif marker == _APP2 and payload.startswith(_FURTHER_IMAGES):
            info.index = payload.removeprefix(_FURTHER_IMAGES), start + len(_FURTHER_IMAGES)
        elif marker in _OTHERS:
            info.left_out.append(marker)
    return info


def _check_kind(encoded: Encoded, info: JpegInfo) -> None:
    if info.process in _LOSSLESS_OR_HIERARCHICAL:
        raise UserError(
            f"{encoded.name}: a lossless or hierarchical JPEG, which no common decoder reads; convert it to PNG or TIFF"
        )
    if info.bits not in (0, 8):
        raise UserError(
            f"{encoded.name}: a JPEG of {info.bits} bits per sample, 8 can be read; convert it to a 16-bit PNG or TIFF"
        )
    if info.components == 4:
        raise UserError(f"{encoded.name}: colors are stored as CMYK; convert the file to RGB or gray first")
    if info.components not in (1, 3):
        raise UserError(f"{encoded.name}: a JPEG of {info.components} channels, 1 or 3 can be read; it may be damaged")


def _end(data: bytes, position: int) -> int | None:
    """Where the image ends, by its markers; None where its end is missing."""
    while found := _NEXT_MARKER.search(data, position):
        marker = data[found.start() + 1]
        position = found.end()
        if marker == _EOI:
            return position
        if marker != _SOI:  # tables or a further scan, which may hold bytes that look like a marker
            position += max(int.from_bytes(data[position : position + 2]), 2)
    return None


def _metadata(data: bytes, info: JpegInfo, end: int) -> tuple[dict, tuple[str, ...]]:
    """What a writer needs, for JPEG and for other formats, and notes.

    Args:
        data: the file.
        info: of its segments; what follows the end is added to it.
        end: of the image.
    """
    with quiet(), open_with_pillow(io.BytesIO(data), "JPEG") as image:  # odd EXIF is carried over as it is
        found = dict(image.info)
        quantization = getattr(image, "quantization", None)
    extras = {name: found.get(name) for name in ("icc_profile", "xmp", "dpi", "comment")}
    extras |= {"exif": info.exif(), "quantization": quantization, "jpeg": info}
    numbers = ", ".join(f"APP{marker - _APP0}" for marker in sorted(set(info.left_out)))
    notes = (f"holds data of a program ({numbers}); left out",) if numbers else ()
    further, count = _end_of_further_images(data, info, end)
    info.trailer = data[further:]
    if count:
        images = f"holds {count + 1} images; only the first one is restored and kept"
        notes = (images, *_without_further_images(info, extras), *notes)
    return extras, notes


def _end_of_further_images(data: bytes, info: JpegInfo, end: int) -> tuple[int, int]:
    """Where the images that follow the first one end, and how many they are."""
    images: list[tuple[int, int]] = []
    if info.index:
        try:
            images = images_of(*info.index)
        except ValueError:
            images = []
    if images and all(_is_image(data, start, stop) and start >= end for start, stop in images):
        return max(stop for _, stop in images), len(images)
    named = info.index or any(names_gain_map(payload) for _, payload in info.segments if payload.startswith(_XMP))
    count = 0
    while named and data.startswith(_IMAGE, end) and (stop := _end(data, end + 2)) is not None:
        end, count = stop, count + 1
    return end, count


def _is_image(data: bytes, start: int, stop: int) -> bool:
    """Whether a JPEG, perhaps padded, lies there; the index of a file that was edited since may be wrong."""
    last = _end(data, start + 2) if data.startswith(_IMAGE, start) else None
    return last is not None and last <= stop <= len(data) and not data[last:stop].strip(b"\0\xff")


def _without_further_images(info: JpegInfo, extras: dict) -> tuple[str, ...]:
    """Take what describes further images out of the XMP; a note where XMP is lost by that."""
    notes = ()
    kept = []
    for marker, payload in info.segments:
        if payload.startswith(_XMP):
            edited = without_images(payload.removeprefix(_XMP), _MOST_PAYLOAD - len(_XMP))
            extras["xmp"] = edited
            if edited is None:
                notes = ("its XMP describes them in a way that cannot be edited; left out",)
                continue
            payload = _XMP + edited
        kept.append((marker, payload))
    info.segments = kept
    return notes


def with_metadata(jpeg: bytes, info: JpegInfo) -> bytes:
    """A JPEG file with the segments of metadata of another one and what follows its end."""
    begin = 2
    while jpeg[begin + 1] == _APP0:
        begin += 2 + int.from_bytes(jpeg[begin + 2 : begin + 4])
    carried = b"".join(_segment(marker, payload) for marker, payload in info.segments)
    return jpeg[:begin] + carried + jpeg[begin:] + info.trailer


def exif_segments(exif: bytes) -> Iterable[tuple[int, bytes]]:
    """EXIF of any length as segments, several where one cannot hold it."""
    body = exif.removeprefix(_EXIF)
    most = _MOST_PAYLOAD - len(_EXIF)
    return [(_APP1, _EXIF + body[start : start + most]) for start in range(0, len(body), most)]


def _segment(marker: int, payload: bytes) -> bytes:
    return bytes((0xFF, marker)) + (len(payload) + 2).to_bytes(2) + payload
