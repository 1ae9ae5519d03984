"""Readers in several threads leave the process's warnings as they were."""

import io
import threading
import warnings

import numpy as np
import pytest
from PIL import Image as Pillow
from PIL import ImageFile

from vheatir.image_io import decode_image


@pytest.mark.parametrize("last", ["first in", "second in"])
def test_warnings_come_back_whichever_thread_ends_last(monkeypatch, last):
    file = io.BytesIO()
    Pillow.fromarray(np.zeros((9, 9, 3), np.uint8)).save(file, "BMP")
    inside = {name: threading.Event() for name in ("first in", "second in")}
    leave = {name: threading.Event() for name in inside}
    load = ImageFile.ImageFile.load

    def waiting(image):
        name = threading.current_thread().name
        inside[name].set()
        assert leave[name].wait(60)
        return load(image)

    monkeypatch.setattr(ImageFile.ImageFile, "load", waiting)
    before = list(warnings.filters)
    threads = {name: threading.Thread(target=decode_image, args=(file.getvalue(), name), name=name) for name in inside}
    for name, thread in threads.items():
        thread.start()
        assert inside[name].wait(60)
    for name in sorted(threads, key=lambda name: name == last):
        leave[name].set()
        threads[name].join()
    assert warnings.filters == before
