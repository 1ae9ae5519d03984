"""TIFF of 16-bit integers and 32-bit floats, which Pillow cannot hold, and the tags that are carried over."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
import tifffile

from vheatir.errors import UserError

_INTEGER, _FLOAT = 1, 3  # SampleFormat
_MIN_IS_WHITE, _MIN_IS_BLACK, _RGB, _PALETTE, _YCBCR = 0, 1, 2, 3, 6  # PhotometricInterpretation
_ASSOCIATED, _STRAIGHT = 1, 2  # ExtraSamples: colour multiplied with alpha beforehand, or not
_ICC_PROFILE = 34675

# Description, make, model, orientation, software, date, artist, XMP, GeoTIFF (6 tags), copyright, IPTC. The EXIF folder
# (34665) points to other parts of the file and is not carried over.
_KEPT = (270, 271, 272, 274, 305, 306, 315, 700)
_KEPT += (33550, 33922, 34264, 34735, 34736, 34737, 33432, 33723)


@dataclass
class TiffInfo:
    """What the header of a single-page TIFF says."""

    width: int
    height: int
    bit_depth: int  # 8 stands for everything that fits in 8 bits
    photometric: int
    alpha: int = 0  # ExtraSamples of the last channel; 0: no alpha
    compressed: bool = False
    icc_profile: bytes | None = None
    resolution: tuple[tuple[float, float], int] | None = None  # pixels per unit in x and y, the unit
    tags: list[tuple] = field(default_factory=list)  # as tifffile takes them: code, type, count, value, write once


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
        if bits > 8 and (bits, int(page.sampleformat)) not in ((16, _INTEGER), (32, _FLOAT)):
            raise UserError(
                f"{path}: holds {bits}-bit samples of sample format {int(page.sampleformat)}; "
                "8- and 16-bit unsigned integers and 32-bit floats can be restored, convert the file first"
            )
        colors = 3 if photometric in (_RGB, _YCBCR) else 1
        surplus = page.samplesperpixel - colors
        if surplus == 1 and not extra:  # some writers, OpenCV among them, leave out what the fourth channel is
            extra = (_STRAIGHT,)
        if bits > 8 and (surplus, extra) not in ((0, ()), (1, (_ASSOCIATED,)), (1, (_STRAIGHT,))):
            raise UserError(
                f"{path}: holds {page.samplesperpixel} channels; expected gray or RGB, with or without alpha"
            )
        profile = page.tags.get(_ICC_PROFILE)
        carried = [page.tags[code] for code in _KEPT if code in page.tags]
        return TiffInfo(
            width=page.imagewidth,
            height=page.imagelength,
            bit_depth=8 if bits <= 8 else bits,
            photometric=photometric,
            alpha=extra[0] if extra else 0,
            compressed=int(page.compression) != 1,
            icc_profile=bytes(profile.value) if profile else None,
            resolution=(page.get_resolution(), int(page.resolutionunit)) if 282 in page.tags else None,
            tags=[(tag.code, int(tag.dtype), tag.count, tag.value, True) for tag in carried],
        )


def read_tiff(path: Path, info: TiffInfo) -> np.ndarray:
    """The pixels of a 16-bit or float TIFF as stored (uint16 or float32): HW, or HWC with gray and alpha, RGB, RGBA."""
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


def write_tiff(file: BinaryIO, array: np.ndarray, info: TiffInfo | None) -> None:
    """Write HW or HWC (alpha last when there are 2 or 4 channels) with the tags of the file it was made from."""
    channels = 1 if array.ndim == 2 else array.shape[2]
    alpha = {_ASSOCIATED: "assocalpha"}.get(info.alpha if info else 0, "unassalpha")
    tifffile.imwrite(
        file,
        array,
        photometric="rgb" if channels >= 3 else "minisblack",
        planarconfig="contig" if channels > 1 else None,
        extrasamples=[alpha] if channels in (2, 4) else None,
        compression="zlib" if info and info.compressed else None,
        iccprofile=info.icc_profile if info else None,
        resolution=info.resolution[0] if info and info.resolution else None,
        resolutionunit=info.resolution[1] if info and info.resolution else None,
        extratags=info.tags if info else (),
        metadata=None,
        software=False,
    )
