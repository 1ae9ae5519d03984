"""Camera RAW, developed by LibRaw (rawpy) with its defaults to 16 bits of sRGB.

LibRaw's defaults: white balance of daylight, brightness stretched until 1 % of the pixels are white, the tone curve of
BT.709, turned upright.
"""

import io
from typing import Literal

import tifffile

from vheatir.errors import UserError
from vheatir.image_io.formats import Encoded, Stored
from vheatir.image_io.optional import library
from vheatir.image_io.tiff_exif import POINTERS, Entry, read_ifds
from vheatir.image_io.tiff_info import TiffInfo, metadata_of

_TEXTS = (270, 271, 272, 306, 315, 33432)  # description, make, model, date, artist, copyright
_MAKER_NOTE = 37500


def read(encoded: Encoded) -> Stored:
    """A camera's RAW file, upright, RGB of 16 bits."""
    rawpy = library("rawpy", "raw", encoded.name)
    data = encoded.content()
    try:
        with rawpy.imread(io.BytesIO(data)) as raw:
            encoded.check_size(raw.sizes.width, raw.sizes.height)
            array = raw.postprocess(output_bps=16)
    except rawpy.LibRawFileUnsupportedError:
        raise UserError(
            f"{encoded.name}: LibRaw knows no such camera RAW file; convert it to DNG or develop it to TIFF first"
        ) from None
    height, width = array.shape[:2]
    info = TiffInfo(width, height, 16, photometric=2, dtype="uint16", compressed=True)
    notes = ("developed by LibRaw with its defaults",)
    if encoded.metadata:
        kept = _metadata(data)
        if kept is None:
            notes += ("its EXIF data could not be read; they are left out",)
        else:
            info.tags, info.ifds, info.byteorder = kept
    extras = {"tiff": info} | metadata_of(info)
    return Stored.of_array(array, 16, suffix=encoded.suffix, extras=extras, notes=notes)


def _metadata(data: bytes) -> tuple[list[tuple], dict[int, list[Entry]], Literal["<", ">"]] | None:
    """Texts, directories of EXIF and GPS, and byte order, of RAW files that are TIFFs inside; None for others.

    The maker's note stays behind: in the pixels' file its positions would mislead.
    """
    file = io.BytesIO(data)
    try:
        with tifffile.TiffFile(file) as tiff:
            page = tiff.pages[0].aspage()
            texts = [page.tags[code] for code in _TEXTS if code in page.tags and int(page.tags[code].dtype) == 2]
            tags = [(tag.code, 2, tag.count, _bytes_of(data, tag), True) for tag in texts]
            ifds = read_ifds(file, page.offset) if any(code in page.tags for code in POINTERS) else {}
            order = tiff.byteorder
    except (tifffile.TiffFileError, ValueError, IndexError):  # RAF, CR3 and others, or damaged directories
        return None
    ifds = {tag: [entry for entry in entries if entry.tag != _MAKER_NOTE] for tag, entries in ifds.items()}
    return tags, ifds, order


def _bytes_of(data: bytes, tag: tifffile.TiffTag) -> bytes:
    return data[tag.valueoffset : tag.valueoffset + tag.count]
