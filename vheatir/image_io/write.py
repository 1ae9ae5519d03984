"""Write images: blocks of rows as PNG, TIFF, JPEG, WebP, HEIC or BMP, atomically, with their metadata."""

import io
import math
import struct
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np
from PIL import Image as Pillow

from vheatir.errors import UserError
from vheatir.image_io.arrays import check_image
from vheatir.image_io.formats import DEPTHS, MOST_SIDE, Image, blocks_of, upright, usable_dpi, written_format
from vheatir.image_io.heif import write_heif
from vheatir.image_io.jpeg import APP13, COMMENT, JpegInfo, exif_segments, with_metadata
from vheatir.image_io.png import LIGHT_LEVELS, is_xmp, metadata_chunks, write_png
from vheatir.image_io.tiff_exif import orientation_of, read_ifds
from vheatir.image_io.tiff_info import IN_OTHER_FORMATS, TiffInfo, info_of
from vheatir.image_io.tiff_write import write_tiff
from vheatir.utils.files import atomic_open

QUALITY = 95  # of written JPEG and HEIC (with full-resolution color) and lossy WebP
_XMP_EXTENSION = b"http://ns.adobe.com/xmp/extension/\0"  # begins the segments of a JPEG that hold it
_MOST_XMP = 65502  # bytes that a JPEG segment has for it
_DTYPES = {8: "uint8", 16: "uint16", 32: "float32"}


def write_image(path: str | Path, image: Image) -> None:
    """Write an image in the format of the path's suffix, atomically; pixels are clipped to [0, 1] unless float.

    Metadata of the file it was read from is carried over; between formats color profile, EXIF, and where both formats
    have a place for them XMP, resolution and numbers that describe the colors (`lost` says what is not).

    Raises:
        TypeError: no `Image`, or pixels or alpha in it that are not floats.
        UserError: a suffix that is not written.
        ValueError: the format cannot hold the bits, the alpha or the size; pixels of another shape or NaN.
    """
    path = Path(path)
    if not isinstance(image, Image):
        raise TypeError(
            f"{path}: expected an Image, got {type(image).__name__}; of an array of floats in [0, 1] make "
            "vheatir.image_io.Image(array)"
        )
    _check_arrays(path, image)
    kind = written_format(path)
    if image.bit_depth not in DEPTHS[kind]:
        raise ValueError(f"{path}: {kind} cannot hold {image.bit_depth} bits; set bit_depth to one of {DEPTHS[kind]}")
    if image.alpha is not None and kind == "JPEG":
        raise ValueError(f"{path}: JPEG cannot hold alpha; set alpha to None or write another format")
    if max(image.pixels.shape[:2]) > MOST_SIDE.get(kind, math.inf):
        raise ValueError(f"{path}: {kind} cannot hold sides above {MOST_SIDE[kind]} pixels; write another format")
    channels = (1 if image.pixels.ndim == 2 else 3) + (image.alpha is not None)
    write_blocks(path, (*image.pixels.shape[:2], channels), image.bit_depth, blocks_of(image, kind), image.extras)


def _check_arrays(path: Path, image: Image) -> None:
    """TypeError or ValueError with advice where pixels or alpha are not what `Image` says."""
    check_image(image.pixels, f"{path}: pixels")
    planes = {"pixels": image.pixels} | ({} if image.alpha is None else {"alpha": image.alpha})
    for name, plane in planes.items():
        if not isinstance(plane, np.ndarray) or not np.issubdtype(plane.dtype, np.floating):
            got = plane.dtype if isinstance(plane, np.ndarray) else type(plane).__name__
            advice = "bring integers to [0, 1] first, 8 bits with array.astype('float32') / 255"
            raise TypeError(f"{path}: {name} must be floats in [0, 1], got {got}; {advice}")
        if image.bit_depth != 32 and np.isnan(plane).any():
            raise ValueError(f"{path}: {name} hold NaN, which only a TIFF of floats (bit_depth 32) can; replace it")
    if image.alpha is not None and image.alpha.shape != image.pixels.shape[:2]:
        raise ValueError(f"{path}: alpha has the shape {image.alpha.shape}, the pixels {image.pixels.shape[:2]}")


def save_png(path: Path, image_u8: np.ndarray) -> None:
    """Write a uint8 image (HWC RGB or HW) as PNG, atomically; folders are made as needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    done, data = cv2.imencode(".png", image_u8 if image_u8.ndim == 2 else image_u8[:, :, ::-1])
    if not done:
        raise RuntimeError(f"OpenCV could not encode {path}")
    with atomic_open(path) as file:
        file.write(data.tobytes())


def write_blocks(
    path: Path, shape: tuple[int, int, int], bit_depth: int, blocks: Iterable[np.ndarray], extras: dict[str, Any]
) -> None:
    """Write (rows, width, channels) blocks that make up `shape`; PNG and TIFF as they come, the others in one go.

    Whatever the blocks raise while they are made is passed on, and nothing is written under `path`.

    Args:
        path: of the file; its suffix chooses the format.
        shape: height, width and channels of the whole image.
        bit_depth: of the file's numbers.
        blocks: (rows, width, channels), from the top.
        extras: what the format keeps beside the pixels, see `Stored.extras`.
    """
    kind = written_format(path)
    blocks = _Watched(blocks)
    try:
        with atomic_open(path) as file:
            if kind == "PNG":
                chunks = extras.get("png_chunks")
                write_png(file, shape, bit_depth, blocks, metadata_chunks(extras) if chunks is None else chunks)
            elif kind == "TIFF":
                write_tiff(file, shape, blocks, _tiff_info(shape, bit_depth, extras))
            else:
                array = np.empty(shape, _DTYPES[bit_depth])
                top = 0
                for block in blocks:
                    array[top : top + len(block)] = block
                    top += len(block)
                _encode(file, array, kind, extras, str(path))
    except OSError as error:
        if error is blocks.raised:
            raise
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error


def lost(extras: dict[str, Any], kind: str) -> tuple[str, ...]:
    """Notes on what an image loses in a format that is not its own.

    Args:
        extras: see `vheatir.image_io.formats.Stored`.
        kind: the format it is written in.
    """
    notes = []
    profile = extras.get("icc_profile")
    exif = extras.get("exif")
    if extras.get("cicp") and not profile and kind not in ("PNG", "HEIF"):
        primaries, transfer = extras["cicp"]
        notes.append(
            f"its colors are described by numbers (primaries {primaries}, transfer {transfer} of H.273), for which "
            f"{kind} has no place, so programs will show wrong colors; PNG and HEIC keep them"
        )
    if extras.get("gamma"):
        notes.append(
            f"its tone curve has the exponent {extras['gamma']:g}, which only PNG can say; colors will look wrong"
        )
    if extras.get("primaries") and kind not in ("PNG", "TIFF"):
        notes.append("its colors have primaries of their own, which only PNG and TIFF can say; colors will look wrong")
    if kind == "BMP" and (profile or exif or extras.get("xmp")):
        notes.append("BMP has no place for color profile, EXIF and XMP; left out")
    if kind != "TIFF" and extras.get("beyond_white") is not None:
        notes.append("its premultiplied colors above alpha, such as glows, are cut at white; a TIFF keeps them")
    if kind == "WEBP" and _is_for_gray(profile):
        notes.append("its color profile is for gray, WebP holds gray as color; left out")
    if kind == "JPEG" and len(extras.get("xmp") or b"") > _MOST_XMP:
        notes.append(f"its XMP is longer than the {_MOST_XMP} bytes that a segment of a JPEG holds; left out")
    jpeg = extras.get("jpeg")
    if jpeg is not None and jpeg.trailer:
        notes.append(
            f"holds {len(jpeg.trailer)} bytes behind its image (such as the video of a motion photo); left out"
        )
    texts = _texts_of_its_own(extras)
    if texts:
        notes.append(f"{' and '.join(texts)} are for its own format only; left out")
    if kind == "TIFF" and exif:
        try:
            read_ifds(io.BytesIO(exif.removeprefix(b"Exif\0\0")))
        except (ValueError, struct.error):
            notes.append("its EXIF data is damaged; all but the orientation is left out")
    return tuple(notes)


def _is_for_gray(profile: bytes | None) -> bool:
    """Whether a color profile explains numbers of gray alone, by the color space in its header."""
    return (profile or b"")[16:20] == b"GRAY"


def _texts_of_its_own(extras: dict[str, Any]) -> list[str]:
    """What only the format that an image came in holds, by name."""
    found = []
    jpeg = extras.get("jpeg")
    markers = {marker for marker, _ in jpeg.segments} if jpeg is not None else set()
    if extras.get("comment") or COMMENT in markers:
        found.append("comments")
    if jpeg is not None and any(payload.startswith(_XMP_EXTENSION) for _, payload in jpeg.segments):
        found.append("extensions of XMP")
    if APP13 in markers or "metadata" in extras.get("heif", {}):
        found.append("IPTC data")
    chunks = extras.get("png_chunks") or ()
    if extras.get("heif", {}).keys() - {"metadata"} or any(kind in LIGHT_LEVELS for kind, _ in chunks):
        found.append("light levels of HDR")
    if any(kind in (b"tEXt", b"zTXt") or (kind == b"iTXt" and not is_xmp(data)) for kind, data in chunks):
        found.append("texts")
    tiff = extras.get("tiff")
    if tiff is not None and any(tag[0] not in IN_OTHER_FORMATS for tag in tiff.tags):
        found.append("tags such as IPTC or GeoTIFF")
    return found


class _Watched:
    """Blocks, and what went wrong while they were made, to tell it from what goes wrong in writing."""

    def __init__(self, blocks: Iterable[np.ndarray]):
        self._blocks = iter(blocks)
        self.raised: BaseException | None = None

    def __iter__(self) -> "_Watched":
        return self

    def __next__(self) -> np.ndarray:
        try:
            return next(self._blocks)
        except BaseException as error:
            self.raised = error
            raise


def _tiff_info(shape: tuple[int, int, int], bit_depth: int, extras: dict[str, Any]) -> TiffInfo:
    height, width, _ = shape
    info = extras.get("tiff") or info_of(width, height, bit_depth, extras)
    as_float = bit_depth == 32 and info.dtype.startswith("float")
    return replace(info, dtype=info.dtype if as_float else _DTYPES[bit_depth], bit_depth=bit_depth)


def _bmp_with_alpha(array: np.ndarray, dpi: tuple[float, float] | None) -> bytes:
    """A BMP file of 32 bits with a mask for alpha: Pillow writes none, nor does OpenCV before 5.

    Args:
        array: (H, W, 4) RGBA or (H, W, 2) gray and alpha, uint8.
        dpi: dots per inch, or None.
    """
    height, width, channels = array.shape
    pixels = array[::-1, :, [2, 1, 0, 3] if channels == 4 else [0, 0, 0, 1]].tobytes()  # from the lowest row up
    masks = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    per_meter = [round(value / 0.0254) for value in dpi or (0, 0)]
    size = 14 + 108  # the file's header and BITMAPV4HEADER, whose masks (3: BI_BITFIELDS) name the channels
    header = struct.pack("<2sIHHI", b"BM", size + len(pixels), 0, 0, size)
    header += struct.pack("<IiiHHII2iII", 108, width, height, 1, 32, 3, len(pixels), *per_meter, 0, 0)
    return header + struct.pack("<4I4s48x", *masks, b"BGRs") + pixels


def _encode(file: BinaryIO, array: np.ndarray, kind: str, extras: dict[str, Any], name: str) -> None:
    if kind == "HEIF":
        write_heif(file, array, extras, QUALITY, name)
        return
    if kind == "BMP":  # which cannot say how it is to be turned
        array = upright(array, orientation_of(extras.get("exif")))
    if kind == "BMP" and array.shape[2] in (2, 4):
        file.write(_bmp_with_alpha(array, usable_dpi(extras.get("dpi"))))
        return
    options = {name: extras[name] for name in ("icc_profile", "exif", "xmp", "comment") if extras.get(name)}
    dpi = usable_dpi(extras.get("dpi"))
    if dpi:
        options["dpi"] = dpi
    image = Pillow.fromarray(array.squeeze(axis=2) if array.shape[2] == 1 else array)
    if kind == "JPEG":
        file.write(_jpeg(image, options, extras.get("jpeg")))
        return
    if kind == "WEBP":
        if _is_for_gray(options.get("icc_profile")):
            del options["icc_profile"]
        options |= {"quality": QUALITY, "lossless": bool(extras.get("lossless")), "exact": True, "method": 4}
    encoded = io.BytesIO()  # into a file itself, Pillow's encoder of BMP takes no notice of a full disk
    image.save(encoded, kind, **options)
    file.write(encoded.getvalue())


def _jpeg(image: Pillow.Image, options: dict[str, Any], info: JpegInfo | None) -> bytes:
    """A JPEG file with the segments of the one it came from, or with what another format knows of metadata."""
    if info is None:
        info = JpegInfo(segments=list(exif_segments(options.pop("exif", b""))))
    else:
        options = {"dpi": options["dpi"]} if "dpi" in options else {}
    if len(options.get("xmp") or b"") > _MOST_XMP:  # of another format; only JPEG's own reader knows its extensions
        del options["xmp"]
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=QUALITY, subsampling=0, **options)
    return with_metadata(encoded.getvalue(), info)
