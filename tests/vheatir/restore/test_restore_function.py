"""`vheatir.restore`: one file into another, many into a folder, what stays and what is raised."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image as Pillow

import vheatir
from vheatir.errors import UserError
from vheatir.image_io import read_image
from vheatir.restore.progress import Progress


@pytest.fixture
def weights(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tiny.write_weights(tmp_path / "w.safetensors")


def test_one_file_becomes_another_and_stays_the_next_time(weights, tiny):
    tiny.image("in.png", (40, 30, 3))
    (first,) = vheatir.restore("in.png", "deep/out.png", task="denoise", weights=weights)
    assert (first.source, first.target, first.outcome.status) == (Path("in.png"), Path("deep/out.png"), "done")
    want = vheatir.Restorer("denoise", weights).restore(read_image("in.png").pixels)
    np.testing.assert_allclose(read_image("deep/out.png").pixels, want, atol=0.51 / 255)
    before = Path("deep/out.png").stat().st_mtime_ns
    (again,) = vheatir.restore("in.png", "deep/out.png", task="denoise", weights=weights)
    assert again.outcome.status == "kept" and Path("deep/out.png").stat().st_mtime_ns == before
    (anew,) = vheatir.restore("in.png", "deep/out.png", task="denoise", weights=weights, overwrite=True)
    assert anew.outcome.status == "done" and Path("deep/out.png").stat().st_mtime_ns > before


@pytest.mark.parametrize("array", [np.zeros((4, 4, 3)), torch.zeros(3, 4, 4), Pillow.new("RGB", (4, 4))], ids=type)
def test_images_in_memory_are_referred_to_the_restorer(weights, array):
    for inputs in (array, ["in.png", array]):
        with pytest.raises(TypeError, match=r"expected paths, got \w+; vheatir\.Restorer\(task\)\.restore\(array\)"):
            vheatir.restore(inputs, "out", task="denoise", weights=weights)
    assert not Path("out").exists()


def test_the_format_is_that_of_the_name_where_it_can_hold_the_image(weights, tiny):
    tiny.image("in.png", (40, 30, 3))
    vheatir.restore("in.png", "out.jpg", task="denoise", weights=weights)
    assert Path("out.jpg").read_bytes().startswith(b"\xff\xd8")
    cv2.imwrite("deep.png", np.full((40, 30, 3), 40000, np.uint16))
    with pytest.raises(UserError, match=r"deep\.png.*JPEG cannot hold 16 bits; write PNG, TIFF"):
        vheatir.restore("deep.png", "deep.jpg", task="denoise", weights=weights)
    cv2.imwrite("clear.png", np.full((40, 30, 4), 100, np.uint8))
    with pytest.raises(UserError, match="JPEG cannot hold transparency"):
        vheatir.restore("clear.png", "clear.jpg", task="denoise", weights=weights)
    assert not Path("deep.jpg").exists() and not Path("clear.jpg").exists()


def test_no_input_is_refused_for_a_file_and_nothing_for_a_folder(weights):
    with pytest.raises(UserError, match=r"no input was given for out\.png"):
        vheatir.restore([], "out.png", task="denoise", weights=weights)
    assert vheatir.restore([], "out", task="denoise", weights=weights) == []


def test_one_file_that_cannot_be_restored_raises_and_several_say_so(weights, tiny):
    tiny.image("good.png", (40, 30, 3))
    Path("bad.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"bad\.png"):
        vheatir.restore("bad.png", "out.png", task="denoise", weights=weights)
    with pytest.raises(UserError, match=r"good\.png is an input and would be overwritten"):
        vheatir.restore("good.png", "good.png", task="denoise", weights=weights)
    results = vheatir.restore(["good.png", "bad.png"], "out", task="denoise", weights=weights)
    assert [result.outcome.status for result in results] == ["done", "failed"]
    assert "bad.png" in results[1].outcome.message and Path("out/good.png").is_file()


def test_a_listener_hears_of_every_file(weights, tiny):
    for number in range(3):
        tiny.image(f"in/{number}.png", (40, 30, 3))
    heard = []

    class Listener(Progress):
        def begin(self, jobs):
            heard.append(("begin", len(jobs)))

        def ended(self, number, outcome):
            heard.append(("ended", number, outcome.status))

        def end(self):
            heard.append(("end",))

    vheatir.restore("in", "out", task="denoise", weights=weights, workers=1, progress=Listener())
    assert heard == [("begin", 3), *(("ended", number, "done") for number in range(3)), ("end",)]
