"""TIFF of 16-bit integers and floats, which Pillow cannot hold, read and written by rows, and the tags carried over."""

import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
import tifffile

from vheatir.errors import UserError
from vheatir.image_io.tiff_exif import POINTERS, Entry, append_folders, read_folders

_INTEGER, _FLOAT = 1, 3  # SampleFormat
_MIN_IS_WHITE, _MIN_IS_BLACK, _RGB, _PALETTE, _YCBCR = 0, 1, 2, 3, 6  # PhotometricInterpretation
ASSOCIATED, _STRAIGHT = 1, 2  # ExtraSamples: colour multiplied with alpha beforehand, or not
_ICC_PROFILE = 34675

_SAMPLES = {(16, _INTEGER): "uint16", (16, _FLOAT): "float16", (32, _FLOAT): "float32", (64, _FLOAT): "float64"}
_STRIP_BYTES = 1 << 18  # of written strips, before compression

# Description, make, model, orientation, software, date, artist, XMP, GeoTIFF (6 tags), copyright, IPTC.
_KEPT = (270, 271, 272, 274, 305, 306, 315, 700)
_KEPT += (33550, 33922, 34264, 34735, 34736, 34737, 33432, 33723)


@dataclass
class TiffInfo:
    """What the header of a single-page TIFF says."""

    width: int
    height: int
    bit_depth: int  # 8 stands for everything that fits in 8 bits, 32 for floats
    photometric: int
    dtype: str = "uint8"  # of the samples in the file
    byteorder: str = "<"
    alpha: int = 0  # ExtraSamples of the last channel; 0: no alpha
    compressed: bool = False
    icc_profile: bytes | None = None
    resolution: tuple[tuple[float, float], int] | None = None  # pixels per unit in x and y, the unit
    tags: list[tuple] = field(default_factory=list)  # as tifffile takes them: code, type, count, value, write once
    folders: dict[int, list[Entry]] = field(default_factory=dict)  # EXIF and GPS
    notes: tuple[str, ...] = ()


def scan_tiff(path: Path) -> TiffInfo:
    """Read the header; UserError for what cannot be restored and written back."""
    with tifffile.TiffFile(path) as tiff:
        if len(tiff.pages) != 1:
            raise UserError(f"{path}: holds {len(tiff.pages)} pages; split it into files of one page each")
        page = tiff.pages[0]
        bits = page.bitspersample
        bits = max(bits) if isinstance(bits, tuple) else bits
        photometric, extra = int(page.photometric), tuple(int(kind) for kind in page.extrasamples)
        if photometric not in (_MIN_IS_WHITE, _MIN_IS_BLACK, _RGB, _PALETTE, _YCBCR):
            name = getattr(page.photometric, "name", photometric)
            raise UserError(f"{path}: colours are stored as {name}; convert the file to RGB or gray first")
        sample = (bits, int(page.sampleformat))
        if bits > 8 and sample not in _SAMPLES:
            raise UserError(
                f"{path}: holds {bits}-bit samples of sample format {int(page.sampleformat)}; "
                "8- and 16-bit unsigned integers and floats can be restored, convert the file first"
            )
        colors = 3 if photometric in (_RGB, _YCBCR) else 1
        surplus = page.samplesperpixel - colors
        if surplus == 1 and not extra:  # some writers, OpenCV among them, leave out what the fourth channel is
            extra = (_STRAIGHT,)
        if bits > 8 and (surplus, extra) not in ((0, ()), (1, (ASSOCIATED,)), (1, (_STRAIGHT,))):
            raise UserError(
                f"{path}: holds {page.samplesperpixel} channels; expected gray or RGB, with or without alpha"
            )
        profile = page.tags.get(_ICC_PROFILE)
        carried = [page.tags[code] for code in _KEPT if code in page.tags]
        folders, notes = _folders(path) if any(code in page.tags for code in POINTERS) else ({}, ())
        return TiffInfo(
            width=page.imagewidth,
            height=page.imagelength,
            bit_depth=8 if bits <= 8 else 16 if sample == (16, _INTEGER) else 32,
            photometric=photometric,
            dtype=_SAMPLES.get(sample, "uint8") if bits > 8 else "uint8",
            byteorder=tiff.byteorder,
            alpha=extra[0] if extra else 0,
            compressed=int(page.compression) != 1,
            icc_profile=bytes(profile.value) if profile else None,
            resolution=(page.get_resolution(), int(page.resolutionunit)) if 282 in page.tags else None,
            tags=[(tag.code, int(tag.dtype), tag.count, tag.value, True) for tag in carried],
            folders=folders,
            notes=notes,
        )


def _folders(path: Path) -> tuple[dict[int, list[Entry]], tuple[str, ...]]:
    try:
        return read_folders(path), ()
    except ValueError as error:
        return {}, (f"{error}; it is left out, the picture is not affected",)


def read_tiff(path: Path, info: TiffInfo) -> np.ndarray:
    """The pixels of a 16-bit or float TIFF as stored: HW, or HWC with gray and alpha, RGB, RGBA."""
    try:
        with tifffile.TiffFile(path) as tiff:
            page = tiff.pages[0]
            array = page.asarray()
            if array.ndim == 3 and int(page.planarconfig) == 2:
                array = np.moveaxis(array, 0, -1)
    except (ValueError, KeyError) as error:  # LZW and others need imagecodecs; OpenCV brings its own libtiff
        if "imagecodecs" not in str(error):
            raise
        array = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        if array is None:
            raise UserError(
                f"{path}: the TIFF file is damaged, or compressed in a way that needs `pip install imagecodecs`"
            ) from error
        if array.ndim == 3:
            array = cv2.cvtColor(array, cv2.COLOR_BGRA2RGBA if array.shape[2] == 4 else cv2.COLOR_BGR2RGB)
    array = array.squeeze(axis=-1) if array.ndim == 3 and array.shape[-1] == 1 else array
    if array.shape[:2] != (info.height, info.width) or array.ndim > 3:
        raise UserError(f"{path}: the TIFF file holds {array.shape}, its header says {(info.height, info.width)}")
    if info.photometric == _MIN_IS_WHITE and info.bit_depth == 16:
        array = 65535 - array
    return array


class TiffRows:
    """Rows of a TIFF, decoded as they are asked for: strips or tiles, of which the last ones used are kept."""

    def __init__(self, path: Path, info: TiffInfo):
        self._path, self._info = path, info
        self._tiff = tifffile.TiffFile(path)
        self._page = self._tiff.pages[0]
        self._kept: dict[int, tuple] = {}
        tiled = self._page.is_tiled
        self._tall = self._page.tilelength if tiled else self._page.rowsperstrip
        self._across = -(-info.width // self._page.tilewidth) if tiled else 1
        self.channels = self._page.samplesperpixel

    @classmethod
    def open(cls, path: Path, info: TiffInfo) -> "TiffRows | None":
        """None where this file must be read as a whole: other colours, or a compression unknown without imagecodecs."""
        rows = cls(path, info)
        try:
            page = rows._page
            plain = info.photometric in (_MIN_IS_BLACK, _RGB) and page.dtype == np.dtype(info.dtype)
            extras = rows.channels - (3 if info.photometric == _RGB else 1)
            if plain and extras in (0, 1) and page.imagedepth == 1 and int(page.compression) not in (6, 7):
                rows._check_bounds()
                rows(0, 1)
                return rows
        except (ValueError, KeyError, NotImplementedError) as error:
            if isinstance(error, UserError) or "imagecodecs" not in str(error):
                rows.close()
                raise
        rows.close()
        return None

    def _check_bounds(self) -> None:
        ends = np.add(self._page.dataoffsets, self._page.databytecounts)
        planes = self.channels if int(self._page.planarconfig) == 2 else 1
        if len(ends) != planes * self._across * -(-self._info.height // self._tall):
            raise UserError(f"{self._path}: the TIFF file lists {len(ends)} strips or tiles, its size needs others")
        if ends.max() > self._path.stat().st_size:
            raise UserError(f"{self._path}: the TIFF file ends too early (truncated); copy or download it again")

    def __call__(self, start: int, stop: int) -> np.ndarray:
        """Rows start:stop as (rows, width, channels)."""
        page, down = self._page, -(-self._info.height // self._tall)
        planes = self.channels if int(page.planarconfig) == 2 else 1
        result = np.empty((stop - start, self._info.width, self.channels), page.dtype)
        wanted = range(start // self._tall * self._across, ((stop - 1) // self._tall + 1) * self._across)
        indices = [plane * down * self._across + index for plane in range(planes) for index in wanted]
        self._kept = {index: self._kept[index] if index in self._kept else self._decode(index) for index in indices}
        for segment, (plane, _, top, left, _), (_, height, width, _) in self._kept.values():
            first, last = max(top, start), min(top + height, stop)
            width = min(width, self._info.width - left)  # tiles reach beyond the picture
            place = (slice(first - start, last - start), slice(left, left + width))
            part = segment[0, first - top : last - top, :width]
            if planes > 1:
                result[(*place, plane)] = part[..., 0]
            else:
                result[place] = part
        return result

    def _decode(self, index: int) -> tuple:
        page, file = self._page, self._tiff.filehandle
        file.seek(page.dataoffsets[index])
        segment, place, shape = page.decode(file.read(page.databytecounts[index]), index)
        if segment is None:
            raise UserError(f"{self._path}: strip or tile {index} of the TIFF file is empty; copy or download it again")
        return segment, place, shape

    def close(self) -> None:
        self._tiff.close()


def write_tiff(file: BinaryIO, shape: tuple[int, int, int], blocks: Iterable[np.ndarray], info: TiffInfo) -> None:
    """Write blocks of rows, (rows, width, channels) in `info.dtype`, with the tags of the file they were made from.

    shape: of the whole picture; the last of 2 or 4 channels is alpha. The file must be readable too.
    """
    height, width, channels = shape
    dtype = np.dtype(info.dtype).newbyteorder(info.byteorder)
    rows = max(1, _STRIP_BYTES // (width * channels * dtype.itemsize))
    alpha = "assocalpha" if info.alpha == ASSOCIATED else "unassalpha"
    predictor = 2 if info.compressed and dtype.kind == "u" else 1
    tifffile.imwrite(
        file,
        _strips(blocks, rows, dtype, info.compressed, predictor),
        shape=shape if channels > 1 else shape[:2],
        dtype=dtype,
        byteorder=info.byteorder,
        rowsperstrip=min(rows, height),
        photometric="rgb" if channels >= 3 else "minisblack",
        planarconfig="contig" if channels > 1 else None,
        extrasamples=[alpha] if channels in (2, 4) else None,
        compression="zlib" if info.compressed else None,
        predictor=predictor if info.compressed else None,
        iccprofile=info.icc_profile,
        resolution=info.resolution[0] if info.resolution else None,
        resolutionunit=info.resolution[1] if info.resolution else None,
        extratags=info.tags,
        metadata=None,
        software=False,
    )
    if info.folders:
        append_folders(file, info.folders)


def _strips(
    blocks: Iterable[np.ndarray], rows: int, dtype: np.dtype, compress: bool, predictor: int
) -> Iterator[bytes]:
    """Blocks of any height as encoded strips of `rows` rows."""
    waiting: list[np.ndarray] = []
    count = 0
    for block in blocks:
        waiting.append(block)
        count += len(block)
        if count >= rows:
            joined = np.concatenate(waiting) if len(waiting) > 1 else block
            whole = count // rows * rows
            yield from (_strip(joined[top : top + rows], dtype, compress, predictor) for top in range(0, whole, rows))
            waiting, count = [joined[whole:].copy()], count - whole
    if count:
        yield _strip(np.concatenate(waiting), dtype, compress, predictor)


def _strip(rows: np.ndarray, dtype: np.dtype, compress: bool, predictor: int) -> bytes:
    if predictor == 2:  # differences along the row, modulo the integers' range
        rows = np.concatenate([rows[:, :1], np.diff(rows, axis=1)], axis=1)
    data = np.ascontiguousarray(rows, dtype=dtype).tobytes()
    return zlib.compress(data, 6) if compress else data
