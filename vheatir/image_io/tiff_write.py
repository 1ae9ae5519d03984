"""TIFF written by rows, with the tags of the file that the image came from."""

import zlib
from collections.abc import Iterable, Iterator
from typing import BinaryIO

import numpy as np
import tifffile

from vheatir.image_io.formats import ASSOCIATED
from vheatir.image_io.tiff_exif import append_ifds
from vheatir.image_io.tiff_info import MIN_IS_WHITE, TiffInfo, inverted

_STRIP_BYTES = 1 << 18  # of written strips, before compression
_MOST_CLASSIC = (1 << 32) - (1 << 25)  # bytes of pixels; behind 4 GiB only a BigTIFF has positions


def write_tiff(file: BinaryIO, shape: tuple[int, int, int], blocks: Iterable[np.ndarray], info: TiffInfo) -> None:
    """Write blocks of rows, (rows, width, channels) in `info.dtype`, with the tags of the file they were made from.

    Black is 0 in the blocks, also where it is not in the file. The file must be readable too. It is a BigTIFF where
    the pixels need one, compressed ones as well, whose size shows at the end only.

    Args:
        file: opened for writing and reading.
        shape: height, width and channels of the whole image; the last of 2 or 4 channels is alpha.
        blocks: (rows, width, channels), from the top.
        info: of the file that the image was made from.
    """
    height, width, channels = shape
    dtype = np.dtype(info.dtype).newbyteorder(info.byteorder)
    rows = max(1, _STRIP_BYTES // (width * channels * dtype.itemsize))
    alpha = "assocalpha" if info.alpha == ASSOCIATED else "unassalpha"
    gray = "minisblack"
    if info.photometric == MIN_IS_WHITE and channels <= 2:
        gray, blocks = "miniswhite", (inverted(block, info) for block in blocks)
    predictor = 2 if info.compressed and dtype.kind == "u" else 1
    tifffile.imwrite(
        file,
        _strips(blocks, rows, dtype, info.compressed, predictor),
        shape=shape if channels > 1 else shape[:2],
        dtype=dtype,
        byteorder=info.byteorder,
        bigtiff=height * width * channels * dtype.itemsize > _MOST_CLASSIC,
        rowsperstrip=min(rows, height),
        photometric="rgb" if channels >= 3 else gray,
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
    if info.ifds:
        append_ifds(file, info.ifds)


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
