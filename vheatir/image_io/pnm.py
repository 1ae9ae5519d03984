"""PPM and PGM, which data sets come in."""

import cv2
import numpy as np

from vheatir.errors import UserError
from vheatir.image_io.formats import Encoded, Stored
from vheatir.image_io.pillow import open_with_pillow


def read(encoded: Encoded) -> Stored:
    """A PPM or PGM file of 8 or 16 bits."""
    image = open_with_pillow(encoded.file, "PPM")
    encoded.check_size(*image.size)
    array = cv2.imdecode(np.frombuffer(encoded.content(), np.uint8), cv2.IMREAD_UNCHANGED)
    if array is None or array.dtype not in (np.uint8, np.uint16) or (array.ndim == 3 and array.shape[2] != 3):
        raise UserError(f"{encoded.name}: the PPM or PGM file is truncated or damaged, or of another kind")
    array = array if array.ndim == 2 else cv2.cvtColor(array, cv2.COLOR_BGR2RGB)
    return Stored.of_array(array, 8 * array.itemsize, suffix=encoded.suffix)
