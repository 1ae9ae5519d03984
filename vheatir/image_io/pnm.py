"""PPM and PGM, which data sets come in."""

import re

import cv2
import numpy as np

from vheatir.errors import UserError
from vheatir.image_io.formats import Encoded, Stored
from vheatir.image_io.pillow import open_with_pillow

_HEADER = re.compile(rb"P[56]" + 3 * rb"(?:\s|#[^\r\n]*)+(\d+)")  # width, height, number of white; comments between


def read(encoded: Encoded) -> Stored:
    """A PPM or PGM file of 8 or 16 bits; white may be any number, such as 1023 of a sensor with 10 bits."""
    image = open_with_pillow(encoded.file, "PPM")
    encoded.check_size(*image.size)
    data = encoded.content()
    array = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    header = _HEADER.match(data)
    if (
        array is None
        or header is None
        or array.dtype not in (np.uint8, np.uint16)
        or (array.ndim == 3 and array.shape[2] != 3)
    ):
        raise UserError(f"{encoded.name}: the PPM or PGM file is truncated or damaged, or of another kind")
    array = array if array.ndim == 2 else cv2.cvtColor(array, cv2.COLOR_BGR2RGB)
    return Stored.of_array(_stretched(array, int(header[3])), 8 * array.itemsize, suffix=encoded.suffix)


def _stretched(array: np.ndarray, white: int) -> np.ndarray:
    """Numbers from 0 to white, as the file has them, brought to the whole range of their type."""
    top = np.iinfo(array.dtype).max
    if white == top:
        return array
    return ((array.astype(np.uint32).clip(max=white) * top + white // 2) // white).astype(array.dtype)
