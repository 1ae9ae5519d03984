"""Parts that the tests of odd files share: pixels, copies of committed files, and what stands in a file."""

from pathlib import Path

import numpy as np
import tifffile

from vheatir.image_io import open_image
from vheatir.image_io.tiff_exif import ORIENTATION, SHORT, Entry, exif_block

ODD = Path(__file__).parents[2] / "data" / "odd"
RNG = np.random.default_rng(0)
DTYPES = ("uint8", "uint16", "float16", "float32", "float64")
BOTH = (None, 0)  # by_rows: decoded as a whole, and row by row


def pixels(shape, dtype):
    if np.dtype(dtype).kind == "f":
        return RNG.uniform(0, 1, shape).astype(dtype)
    return RNG.integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)


def again(path, by_rows=None):
    """The same file after reading and writing, with the pixels as they were read."""
    target = path.with_name(f"again{path.suffix}")
    stored = open_image(path, by_rows=by_rows)
    from vheatir.image_io.write import write_blocks

    shape = (stored.height, stored.width, stored.channels)
    blocks = (stored.raw(0, stored.floats(0, stored.height)[0]) for _ in range(1))
    write_blocks(target, shape, stored.bit_depth, blocks, stored.extras)
    stored.close()
    return target


def raw_tag(path, code):
    """Type and bytes of a tag, as they stand in the file."""
    with tifffile.TiffFile(path) as tiff:
        tag = tiff.pages[0].tags[code]
        with open(path, "rb") as file:
            file.seek(tag.valueoffset)
            return int(tag.dtype), file.read(tag.valuebytecount)


def copied(tmp_path, name):
    path = tmp_path / Path(name).name
    path.write_bytes((ODD / name).read_bytes())
    return path


def exif_of_orientation(number: int) -> bytes:
    exif = exif_block("<", [Entry(ORIENTATION, SHORT, 1, bytes([number, 0, 0, 0]))], {})
    assert exif is not None
    return exif
