"""Colors, numbers, sampling and bits of clips through `vheatir.restore`."""

from pathlib import Path

import numpy as np
import pytest

import vheatir
from tests.vheatir.restore.video.clips import SIZE, hidden, make, read
from vheatir.errors import UserError
from vheatir.restore.one_file import FileOptions
from vheatir.restore.video.encoding import Encoder
from vheatir.restore.video.formats import container_of
from vheatir.restore.video.one_clip import restore_clip
from vheatir.restore.video.reading import Clip

av = pytest.importorskip("av", reason="clips need PyAV: pip install 'vheatir[video]'")


def test_ten_bits_are_refused_before_the_work_where_the_encoder_has_eight(restorer):
    make("in.mkv", 2, pixel_format="yuv420p10le")
    able = {known.name for known in av.Codec("libvpx-vp9", "w").video_formats}
    told = []
    if "yuv420p10le" in able:
        restore_clip(restorer, Path("in.mkv"), Path("out.webm"), FileOptions())
        assert read("out.webm")[2]["format"] == "yuv420p10le"
        return
    with pytest.raises(UserError, match=r"in\.mkv: the encoder libvpx-vp9.*cannot hold 10 bits.*write a \.mkv file"):
        restore_clip(restorer, Path("in.mkv"), Path("out.webm"), FileOptions(), told.append)
    assert told == [] and hidden() == []


@pytest.mark.parametrize("color_range", [0, 1, 2])
@pytest.mark.parametrize("matrix", [1, 2, 6, 9])
def test_colors_stay_where_nothing_is_restored(matrix, color_range, weights):
    make("in.mp4", 2, colorspace=matrix, color_range=color_range)
    nothing = vheatir.Restorer("denoise", weights, strength=0)
    restore_clip(nothing, Path("in.mp4"), Path("out.mp4"), FileOptions(crf=4))
    _, given, before, _ = read("in.mp4")
    _, got, after, _ = read("out.mp4")
    assert after["tags"] == before["tags"]
    assert np.abs(got.astype(float) - given).mean() < 1
    assert np.abs((got.astype(float) - given).mean((0, 1, 2))).max() < 0.45
    with av.open("in.mp4") as one, av.open("out.mp4") as other:
        planes = [next(container.decode(video=0)).reformat(format="yuv444p").to_ndarray() for container in (one, other)]
    assert np.abs(planes[0].astype(float) - planes[1]).mean() < 1


@pytest.mark.parametrize("color_range", [0, 1, 2])
@pytest.mark.parametrize("stored", ["yuv444p", "yuv444p10le"])
def test_numbers_stay_where_nothing_is_changed(stored, color_range, weights):
    """Ten bits of the full range, as some cameras write them, among them."""
    make("in.mkv", 1, pixel_format=stored, codec="ffv1", color_range=color_range, colorspace=1)
    clip = Clip(Path("in.mkv"), 10**6)
    assert clip.look.coding[:2] == (1, color_range)
    got = Encoder(clip, container_of(Path("out.mkv")), 16)._stored(next(clip.frames()))
    with av.open("in.mkv") as container:
        given = next(container.decode(video=0))
    assert got.format.name == stored and int(got.color_range) == color_range
    kind = np.uint8 if stored == "yuv444p" else np.uint16
    for one, other in zip(given.planes, got.planes, strict=True):
        before, after = (np.frombuffer(bytes(plane), kind).reshape(SIZE[0], -1)[:, : SIZE[1]] for plane in (one, other))
        assert np.array_equal(before, after)


def test_numbers_below_black_and_above_white_stay(weights):
    """Camcorders record highlights above the white of the limited range."""
    luma = np.tile(np.linspace(1, 254, SIZE[1]), (SIZE[0], 1)).astype(np.uint8)
    planes = np.stack([luma, np.full(SIZE, 190, np.uint8), np.full(SIZE, 90, np.uint8)])
    with av.open("in.mkv", "w") as output:
        stream = output.add_stream("ffv1", rate=30)
        stream.width, stream.height, stream.pix_fmt = SIZE[1], SIZE[0], "yuv444p"
        stream.codec_context.color_range = 1
        output.mux(stream.encode(av.VideoFrame.from_ndarray(planes, format="yuv444p")))
        output.mux(stream.encode(None))
    restore_clip(vheatir.Restorer("denoise", weights, strength=0), Path("in.mkv"), Path("out.mkv"), FileOptions(crf=0))
    with av.open("out.mkv") as container:
        got = next(container.decode(video=0)).to_ndarray()
    assert np.abs(got.astype(int) - planes).max() <= 1


@pytest.mark.parametrize("stored, written", [("gray", "yuv420p"), ("bgr0", "yuv444p"), ("gbrp10le", "yuv444p10le")])
def test_gray_and_rgb_are_written_as_luma_and_differences(stored, written, weights):
    make("in.mkv", 2, pixel_format=stored, codec="ffv1")
    restore_clip(vheatir.Restorer("denoise", weights, strength=0), Path("in.mkv"), Path("out.mkv"), FileOptions(crf=2))
    _, given, _, _ = read("in.mkv")
    _, got, facts, _ = read("out.mkv")
    assert facts["format"] == written and facts["tags"][::3] == (1, 1)
    assert np.abs(got.astype(float) - given).mean() < 1.5
    assert np.abs((got.astype(float) - given).mean((0, 1, 2))).max() < 0.6


@pytest.mark.parametrize("stored", ["gray", "bgr0", "gray10le", "gray16le", "gbrp10le", "gbrap16le"])
def test_frames_of_gray_and_rgb_are_read_as_they_are(stored, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make("in.mkv", 2, pixel_format=stored, codec="ffv1")
    got = next(Clip(Path("in.mkv"), 10**6).frames()).pixels
    with av.open("in.mkv") as container:
        frame = next(container.decode(video=0))
    kind = np.uint8 if frame.format.components[0].bits == 8 else np.uint16
    white = 2 ** frame.format.components[0].bits - 1
    planes = [np.frombuffer(bytes(plane), kind).reshape(SIZE[0], -1) for plane in frame.planes]
    if stored == "bgr0":
        want = planes[0].reshape(SIZE[0], -1, 4)[:, : SIZE[1], 2::-1]
    else:
        order = (2, 0, 1) if len(planes) > 1 else (0, 0, 0)
        want = np.stack([planes[place][:, : SIZE[1]] for place in order], -1)
    np.testing.assert_allclose(got, want / white, atol=1e-4)


@pytest.mark.parametrize("stored", ["yuv420p", "yuv422p", "yuv444p10le", "yuv420p10le"])
def test_sampling_and_bits_are_kept(stored, restorer):
    make("in.mkv", 2, pixel_format=stored)
    restore_clip(restorer, Path("in.mkv"), Path("out.mkv"), FileOptions())
    assert read("out.mkv")[2]["format"] == stored
