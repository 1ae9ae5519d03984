"""TIFF: what its header says, which tags are carried over, and its pixels as stored, whole or by rows.

`tifffile` decodes, where imagecodecs is installed all that it knows. Pillow decodes palettes, less than 8 bits, YCbCr
and JPEG, and 8 bits in compressions that need imagecodecs; OpenCV 16 bits in such ones. Both turn pixels by the
orientation tag, and one divides, the other multiplies colors by alpha: the copy that they get says nothing of either.
"""

import io
import logging
from typing import Any

import cv2
import numpy as np
import tifffile

from vheatir.errors import UserError
from vheatir.image_io.formats import ASSOCIATED, STRAIGHT, Encoded, Stored
from vheatir.image_io.opencv import decode_with_opencv
from vheatir.image_io.pillow import decode_with_pillow
from vheatir.image_io.tiff_exif import ASCII, BYTE, ORIENTATION, POINTERS, Entry, reaches_beyond_end, read_ifds
from vheatir.image_io.tiff_info import (
    MIN_IS_BLACK,
    MIN_IS_WHITE,
    PRIMARIES,
    RGB,
    STARS,
    TEXTS_OF_WINDOWS,
    WHITE_POINT,
    TiffInfo,
    inverted,
    metadata_of,
)

logging.getLogger("tifffile").addHandler(logging.NullHandler())  # what is wrong with a file is said once, by us

# SampleFormat
_INTEGER = 1
_FLOAT = 3
# PhotometricInterpretation
_PALETTE = 3
_YCBCR = 6
# bits of NewSubfileType
_REDUCED = 1
_MASK = 4
# Compression
_OLD_JPEG = 6
_JPEG = 7
_ICC_PROFILE = 34675
_EXTRA_SAMPLES = 338

_SAMPLES = {(8, _INTEGER): "uint8", (16, _INTEGER): "uint16"}
_SAMPLES |= {(16, _FLOAT): "float16", (32, _FLOAT): "float32", (64, _FLOAT): "float64"}

# Description, make, model, orientation, software, date, artist, XMP, GeoTIFF (6 tags), copyright, IPTC; names of
# document, page and computer, Photoshop's resources, GDAL's metadata and value of no data; what Windows writes; colors.
_KEPT = (270, 271, 272, 274, 305, 306, 315, 700)
_KEPT += (33550, 33922, 34264, 34735, 34736, 34737, 33432, 33723)
_KEPT += (269, 285, 316, 34377, 42112, 42113)
_KEPT += (*STARS, *TEXTS_OF_WINDOWS)
_KEPT += (WHITE_POINT, PRIMARIES)
_LAYERS = 37724  # Photoshop's, which show the image as it was
_PRIVATE = 32768  # numbers from here on are tags that companies and programs have had registered
_OF_PIXELS = (32995, 32996, 32997, 32998, 33421, 33422)  # alpha, samples, depth and color filters, by private numbers


def read(encoded: Encoded) -> Stored:
    """A TIFF file of one image: 8 or 16 bits or floats, gray or RGB, with or without alpha."""
    with tifffile.TiffFile(encoded.file) as tiff:
        page, notes = _page_of_image(encoded, tiff)
        try:
            info = _info(encoded, tiff, page, notes)
        except UserError as error:
            if reaches_beyond_end(encoded.file, page.offset):  # then the header cannot be believed
                raise _truncated(encoded) from error
            raise
        encoded.check_size(info.width, info.height)
        about: dict[str, Any] = {"suffix": encoded.suffix, "notes": info.notes, "orientation": info.orientation}
        extras = {"tiff": info, "icc_profile": info.icc_profile} | metadata_of(info)
        about |= {"extras": extras, "premultiplied": info.alpha == ASSOCIATED}
        if encoded.by_rows is not None and info.width * info.height > encoded.by_rows:
            rows = TiffRows.open(encoded, info, page)
            if rows is not None:
                size = (info.height, info.width, rows.channels, info.bit_depth)
                return Stored(*size, rows, by_rows=True, close=encoded.file.close, **about)
        return Stored.of_array(_whole(encoded, info, page), info.bit_depth, **about)


def _truncated(encoded: Encoded) -> UserError:
    return UserError(f"{encoded.name}: the TIFF file ends too early (truncated); copy or download it again")


def _page_of_image(encoded: Encoded, tiff: tifffile.TiffFile) -> tuple[tifffile.TiffPage, tuple[str, ...]]:
    """The page of the image, where all the others are thumbnails of it, and a note on those."""
    pages = [tiff.pages[index].aspage() for index in range(len(tiff.pages))]
    if not pages:
        raise _truncated(encoded)
    masks = [page for page in pages if int(page.subfiletype) & _MASK]
    whole = [page for page in pages if not int(page.subfiletype) & _REDUCED]
    if masks and len(pages) > 1:
        raise UserError(f"{encoded.name}: holds a transparency mask as a page; save it with alpha or without")
    if len(whole) > 1 or (not whole and len(pages) > 1):
        raise UserError(f"{encoded.name}: holds {len(pages)} pages; split it into files of one page each")
    page = whole[0] if whole else pages[0]
    reduced = len(pages) - 1 + len(page.subifds or ())
    if not reduced:
        return page, ()
    return page, (f"holds {reduced} further, smaller image{'s' * (reduced > 1)} (thumbnails); left out",)


def _info(encoded: Encoded, tiff: tifffile.TiffFile, page: tifffile.TiffPage, notes: tuple[str, ...]) -> TiffInfo:
    photometric, sample, extra = _checked(encoded, page)
    profile = page.tags.get(_ICC_PROFILE)
    carried = [page.tags[code] for code in _KEPT if code in page.tags] if encoded.metadata else []
    if encoded.metadata:
        texts, others = _of_programs(page)
        carried += texts
        notes += (f"holds data of a program (tags {', '.join(map(str, others))}); left out",) if others else ()
    ifds: dict[int, list[Entry]] = {}
    if encoded.metadata and any(code in page.tags for code in POINTERS):
        try:
            ifds = read_ifds(encoded.file, page.offset)
        except ValueError as error:
            notes += (f"{error}; it is left out, the image is not affected",)
    if _LAYERS in page.tags:
        notes += ("holds layers of Photoshop beside the whole image; they are left out",)
    turned = page.tags[ORIENTATION].value if ORIENTATION in page.tags else 1
    turned = turned[0] if isinstance(turned, bytes) and turned else turned  # of a writer that takes a BYTE
    return TiffInfo(
        width=page.imagewidth,
        height=page.imagelength,
        bit_depth=_bit_depth(sample),
        photometric=photometric,
        dtype=_SAMPLES.get(sample, "uint8"),
        byteorder=tiff.byteorder,
        alpha=extra[0] if extra else 0,
        compressed=int(page.compression) != 1,
        icc_profile=bytes(profile.value) if profile else None,
        resolution=(page.get_resolution(), int(page.resolutionunit)) if 282 in page.tags else None,
        tags=[_tag(encoded, tag) for tag in carried],
        ifds=ifds,
        orientation=turned if isinstance(turned, int) and 1 <= turned <= 8 else 1,
        notes=notes,
    )


def _of_programs(page: tifffile.TiffPage) -> tuple[list[tifffile.TiffTag], list[int]]:
    """Private tags that nobody here knows: texts, such as those of electron microscopes, and numbers of the others.

    What is no text may hold positions in the file, which would mislead in another one.
    """
    known = {*_KEPT, *POINTERS, *_OF_PIXELS, _ICC_PROFILE, _LAYERS}
    private = [tag for tag in page.tags if tag.code >= _PRIVATE and tag.code not in known]
    texts = [tag for tag in private if int(tag.dtype) == ASCII]
    return texts, [tag.code for tag in private if int(tag.dtype) != ASCII]


def _bit_depth(sample: tuple[int, int]) -> int:
    if sample[0] <= 8:
        return 8
    return 16 if sample == (16, _INTEGER) else 32


def _tag(encoded: Encoded, tag: tifffile.TiffTag) -> tuple:
    """A tag as tifffile writes it. Texts are copied as bytes: many programs write other letters than ASCII there."""
    value = tag.value
    if int(tag.dtype) == ASCII or (tag.code in TEXTS_OF_WINDOWS and int(tag.dtype) == BYTE):
        encoded.file.seek(tag.valueoffset)
        value = encoded.file.read(tag.count)
    return tag.code, int(tag.dtype), tag.count, value, True


def _checked(encoded: Encoded, page: tifffile.TiffPage) -> tuple[int, tuple[int, int], tuple[int, ...]]:
    """Photometric interpretation, bits and format of the samples, kind of alpha; UserError for what is not ours."""
    photometric = int(page.photometric)
    extra = tuple(int(kind) for kind in page.extrasamples)
    bits = page.bitspersample if isinstance(page.bitspersample, tuple) else (page.bitspersample,)
    sample = (max(bits), int(page.sampleformat))
    if photometric not in (MIN_IS_WHITE, MIN_IS_BLACK, RGB, _PALETTE, _YCBCR):
        name = getattr(page.photometric, "name", photometric)
        raise UserError(f"{encoded.name}: colors are stored as {name}; convert the file to RGB or gray first")
    known = sample in _SAMPLES or (sample[0] < 8 and sample[1] == _INTEGER)
    if not known or len(set(bits)) > 1 or (sample[0] > 8 and photometric in (_PALETTE, _YCBCR)):
        raise UserError(
            f"{encoded.name}: holds {sample[0]}-bit samples of sample format {sample[1]}; "
            "8- and 16-bit unsigned integers and floats can be restored, convert the file first"
        )
    colors = 3 if photometric in (RGB, _YCBCR) else 1
    surplus = page.samplesperpixel - colors
    if surplus == 1 and not extra:  # some writers, OpenCV among them, leave out what the fourth channel is
        extra = (STRAIGHT,)
    if (surplus, extra) not in ((0, ()), (1, (ASSOCIATED,)), (1, (STRAIGHT,))):
        kinds = {0: "unspecified", ASSOCIATED: "associated alpha", STRAIGHT: "unassociated alpha"}
        beside = ", ".join(kinds.get(kind, f"kind {kind}") for kind in extra) or "nothing said"
        raise UserError(
            f"{encoded.name}: holds {page.samplesperpixel} channels, beside the {colors} of the image: {beside}; "
            "expected gray or RGB, with or without alpha; save the others as files of their own"
        )
    return photometric, sample, extra


def _whole(encoded: Encoded, info: TiffInfo, page: tifffile.TiffPage) -> np.ndarray:
    """All pixels as stored, black 0: HW, or HWC of gray and alpha, RGB, RGBA."""
    _check_bounds(encoded, page)
    plain = info.photometric in (MIN_IS_WHITE, MIN_IS_BLACK, RGB) and page.dtype == np.dtype(info.dtype)
    if info.photometric == _YCBCR and int(page.compression) == 1:  # which Pillow takes for truncated
        return _with_opencv(encoded, info, page)
    if not plain or int(page.compression) in (_OLD_JPEG, _JPEG):
        return _with_pillow(encoded, page)
    try:
        array = page.asarray()
        if array.ndim == 3 and int(page.planarconfig) == 2:
            array = np.moveaxis(array, 0, -1)
    except (ValueError, KeyError, ImportError) as error:
        if isinstance(error, tifffile.TiffFileError) or not _lacks_codec(page, error):
            raise
        if info.bit_depth == 8:
            return _with_pillow(encoded, page)  # which has black 0 already
        array = _with_opencv(encoded, info, page)
    array = array.squeeze(axis=-1) if array.ndim == 3 and array.shape[-1] == 1 else array
    if array.shape[:2] != (info.height, info.width) or array.ndim > 3:
        raise UserError(f"{encoded.name}: the TIFF file holds {array.shape}, its header says {info.height, info.width}")
    return inverted(array, info) if info.photometric == MIN_IS_WHITE else array


def _lacks_codec(page: tifffile.TiffPage, error: Exception) -> bool:
    return (
        isinstance(error, ImportError)
        or "imagecodecs" in str(error)
        or int(page.compression) not in tifffile.TIFF.DECOMPRESSORS
    )


def _with_pillow(encoded: Encoded, page: tifffile.TiffPage) -> np.ndarray:
    try:
        array, _ = decode_with_pillow(encoded, "TIFF", _pixels_only(encoded, page), page.index)
    except UserError:
        raise
    except Exception as error:  # whatever libtiff says of a codec or of damage
        raise _undecodable(encoded, page) from error
    return array


def _with_opencv(encoded: Encoded, info: TiffInfo, page: tifffile.TiffPage) -> np.ndarray:
    """16 bits or floats in a compression that needs imagecodecs, or plain YCbCr; OpenCV brings its own libtiff."""
    array = None
    if page.index == 0 and (int(page.planarconfig) == 1 or page.samplesperpixel == 1):
        array = decode_with_opencv(_pixels_only(encoded, page), cv2.IMREAD_UNCHANGED)
    if array is None or array.dtype != np.dtype(info.dtype):
        raise _undecodable(encoded, page)
    if array.ndim == 3:
        array = cv2.cvtColor(array, cv2.COLOR_BGRA2RGBA if array.shape[2] == 4 else cv2.COLOR_BGR2RGB)
    if array.size != info.height * info.width * page.samplesperpixel:
        raise _undecodable(encoded, page)
    return array


def _undecodable(encoded: Encoded, page: tifffile.TiffPage) -> UserError:
    code = int(page.compression)
    name = getattr(page.compression, "name", "an unknown way")
    if code == 1:
        return UserError(f"{encoded.name}: the TIFF file is damaged, or of a kind that is not read; save it as RGB")
    return UserError(
        f"{encoded.name}: the TIFF file is compressed by {name} (number {code}) and cannot be decoded: it is "
        "damaged, or this kind needs `pip install imagecodecs`; else save it uncompressed, by LZW or by Deflate"
    )


def _pixels_only(encoded: Encoded, page: tifffile.TiffPage) -> bytes:
    """The file without what decoders do to pixels by themselves: it lies upright, and alpha is not in the colors."""
    data = bytearray(encoded.content())
    order = "little" if page.parent.byteorder == "<" else "big"
    for code, value in ((ORIENTATION, 1), (_EXTRA_SAMPLES, STRAIGHT)):
        tag = page.tags.get(code)
        if tag is not None and tag.count == 1:
            size = tag.valuebytecount
            data[tag.valueoffset : tag.valueoffset + size] = value.to_bytes(size, order)
    return bytes(data)


def _check_bounds(encoded: Encoded, page: tifffile.TiffPage) -> None:
    """UserError when strips or tiles are missing or lie behind the end; decoders silently fill them up."""
    starts = page.dataoffsets
    sizes = page.databytecounts
    planes = page.samplesperpixel if int(page.planarconfig) == 2 else 1
    tall = page.tilelength if page.is_tiled else page.rowsperstrip
    across = -(-page.imagewidth // page.tilewidth) if page.is_tiled else 1
    count = planes * across * -(-page.imagelength // tall) * page.imagedepth
    size = encoded.file.seek(0, io.SEEK_END)
    if len(starts) != len(sizes) or len(starts) != count:
        raise UserError(f"{encoded.name}: the TIFF file lists {len(starts)} strips or tiles, its size needs {count}")
    if not starts or min(starts) < 1 or min(sizes) < 1:
        raise UserError(f"{encoded.name}: strips or tiles of the TIFF file are missing; copy or download it again")
    if max(start + length for start, length in zip(starts, sizes, strict=True)) > size:
        raise _truncated(encoded)


class TiffRows:
    """Rows of a TIFF, decoded as they are asked for: strips or tiles, of which the last ones used are kept.

    Args:
        encoded: the file.
        info: what its header says.
        page: the image in it.
    """

    def __init__(self, encoded: Encoded, info: TiffInfo, page: tifffile.TiffPage):
        self._encoded = encoded
        self._info = info
        self._page = page
        self._starts = page.dataoffsets
        self._sizes = page.databytecounts
        self._kept: dict[int, tuple] = {}
        tiled = page.is_tiled
        self._tall = page.tilelength if tiled else page.rowsperstrip
        self._across = -(-info.width // page.tilewidth) if tiled else 1
        self.channels = page.samplesperpixel

    @classmethod
    def open(cls, encoded: Encoded, info: TiffInfo, page: tifffile.TiffPage) -> "TiffRows | None":
        """None where this file must be read as a whole: other colors, or a compression unknown without imagecodecs.

        Args:
            encoded: the file.
            info: what its header says.
            page: the image in it.
        """
        plain = info.photometric in (MIN_IS_WHITE, MIN_IS_BLACK, RGB) and page.dtype == np.dtype(info.dtype)
        if not plain or page.imagedepth > 1 or int(page.compression) in (_OLD_JPEG, _JPEG):
            return None
        rows = cls(encoded, info, page)
        _check_bounds(encoded, page)
        try:
            rows(0, 1)
        except (ValueError, KeyError, NotImplementedError, ImportError) as error:
            if isinstance(error, UserError | tifffile.TiffFileError) or not _lacks_codec(page, error):
                raise
            return None
        return rows

    def __call__(self, start: int, stop: int) -> np.ndarray:
        """Rows start:stop as (rows, width, channels)."""
        page = self._page
        down = -(-self._info.height // self._tall)
        planes = self.channels if int(page.planarconfig) == 2 else 1
        result = np.empty((stop - start, self._info.width, self.channels), page.dtype)
        wanted = range(start // self._tall * self._across, ((stop - 1) // self._tall + 1) * self._across)
        indices = [plane * down * self._across + index for plane in range(planes) for index in wanted]
        self._kept = {index: self._kept[index] if index in self._kept else self._decode(index) for index in indices}
        for segment, (plane, _, top, left, _), (_, height, width, _) in self._kept.values():
            first = max(top, start)
            last = min(top + height, stop)
            width = min(width, self._info.width - left)  # tiles reach beyond the image
            place = (slice(first - start, last - start), slice(left, left + width))
            part = segment[0, first - top : last - top, :width]
            if planes > 1:
                result[(*place, plane)] = part[..., 0]
            else:
                result[place] = part
        return inverted(result, self._info) if self._info.photometric == MIN_IS_WHITE else result

    def _decode(self, index: int) -> tuple:
        page = self._page
        file = self._encoded.file
        file.seek(self._starts[index])
        segment, place, shape = page.decode(file.read(self._sizes[index]), index)
        if segment is None:
            raise UserError(f"{self._encoded.name}: strip or tile {index} of the TIFF file is empty")
        return segment, place, shape
