"""Clips through `vheatir.restore`: what the network makes of them, shapes, windows, and what is refused."""

import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

import vheatir
from tests.vheatir.restore.video.clips import hidden, make, read
from vheatir.errors import UserError
from vheatir.restore.jobs import plan_jobs
from vheatir.restore.one_file import FileOptions
from vheatir.restore.video import one_clip
from vheatir.restore.video.formats import RESTORED, written_name
from vheatir.restore.video.one_clip import restore_clip, windows
from vheatir.restore.video.reading import Clip

av = pytest.importorskip("av", reason="clips need PyAV: pip install 'vheatir[video]'")


def test_frames_are_what_the_network_makes_of_them(weights, restorer):
    make("in.mp4", 3)
    (done,) = vheatir.restore("in.mp4", "out.mkv", task="denoise", weights=weights, crf=1)
    assert done.outcome.status == "done" and "estimated in the first frame" in done.outcome.level
    _, given, _, _ = read("in.mp4")
    _, got, _, _ = read("out.mkv")
    want = np.stack([restorer.restore(frame.astype(np.float32) / 255) for frame in given]) * 255
    assert got.shape == given.shape and np.abs(got - want).mean() < 1.5 < np.abs(given - want).mean()
    assert hidden() == []


def test_pixels_that_are_not_square_stay_so_or_are_refused(restorer):
    make("in.mp4", 2, sample_aspect_ratio=Fraction(16, 15))
    with pytest.raises(UserError, match=r"out\.webm: its pixels, 16:15 wide, would be square.*write a \.mkv file"):
        restore_clip(restorer, Path("in.mp4"), Path("out.webm"), FileOptions())
    assert hidden() == [] and not Path("out.webm").exists()
    for wide, notes in ((Fraction(1), []), (Fraction(1280, 1281), ["its pixels, 1280:1281 wide, become square"])):
        make("in.mp4", 2, sample_aspect_ratio=wide)  # the second as of 854 columns for 16:9 at 480 rows
        outcome = restore_clip(restorer, Path("in.mp4"), Path("out.webm"), FileOptions())
        assert outcome.notes == notes and read("out.webm")[2]["aspect"] in (None, 1)


def test_other_kinds_are_read_and_webm_is_written(restorer):
    make("in.avi", 3, pixel_format="yuv420p", codec="mpeg4")
    assert written_name(Path("in.avi")) == Path("in.mkv")
    restore_clip(restorer, Path("in.avi"), Path("out.webm"), FileOptions())
    assert len(read("out.webm")[0]) == 3
    with av.open("out.webm") as container:
        assert container.streams.video[0].codec_context.name.startswith(("vp9", "libvpx"))


def test_odd_sizes_are_kept(restorer):
    make("in.mkv", 2, size=(31, 45))
    restore_clip(restorer, Path("in.mkv"), Path("out.mp4"), FileOptions())
    assert read("out.mp4")[1].shape == (2, 31, 45, 3)


def test_a_network_of_several_frames_sees_those_around_each(tiny, tmp_path, monkeypatch):
    import json

    import torch

    from vheatir import weights as store
    from vheatir.archs.vheatvideo_arch import VHeatVideoNet

    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    small = {"dim": 4, "encoder": [1], "middle": 1, "decoder": [1], "attention": ["heat", "heat"], "mix_dim": 4}
    network = VHeatVideoNet(**small)
    for layer in (network.mixer.head, network.image.conv_last):
        torch.nn.init.normal_(layer.weight, std=0.1)
    about = {"task": "denoise", "color": "color", "levels": "none", "license": "none", "arch": "VHeatVideoNet"}
    store.save("v.safetensors", network.state_dict(), {**about, "config": json.dumps(network.config)})
    restorer = vheatir.Restorer("denoise", "v.safetensors")
    assert restorer.frames == 5
    make("in.mp4", 6)
    clip = Clip(Path("in.mp4"), 10**6)
    frames = [frame.pixels for frame in clip.frames()]
    got = [frame.pixels for frame in one_clip.restored_frames(restorer, clip, None, 0, lambda done: None)]
    order = [[2, 1, 0, 1, 2], [1, 0, 1, 2, 3], *([n - 2, n - 1, n, n + 1, n + 2] for n in (2, 3)), [2, 3, 4, 5, 4]]
    for number, places in enumerate(order):
        planes = torch.from_numpy(np.concatenate([frames[place] for place in places], 2)).permute(2, 0, 1)[None]
        with torch.no_grad():
            want = restorer.network(planes)[0].permute(1, 2, 0).numpy()
        np.testing.assert_allclose(got[number], want, atol=1e-4)
    later = [frame.pixels for frame in one_clip.restored_frames(restorer, clip, None, 3, lambda done: None)]
    for one, other in zip(later, got[3:], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    ensemble = vheatir.Restorer("denoise", "v.safetensors", ensemble=True, tile=16, overlap=4)
    assert ensemble.restore_clip(frames[:5]).shape == frames[0].shape
    with pytest.raises(ValueError, match="expected 5 frames, got 1"):
        restorer.restore_clip(frames[:1])
    alone = restorer.restore(frames[0])
    with torch.no_grad():
        want = restorer.network.image(torch.from_numpy(frames[0]).permute(2, 0, 1)[None])[0].permute(1, 2, 0)
    np.testing.assert_allclose(alone, want.clamp(0, 1).numpy(), atol=1e-4)


def test_by_default_clips_go_through_the_weights_for_them(tiny, tmp_path, monkeypatch):
    from vheatir import weights as store

    monkeypatch.chdir(tmp_path)
    image, clip = (
        tiny.write_weights(tmp_path / f"{name}.safetensors", dim=size) for name, size in (("i", 8), ("c", 4))
    )
    names = {"color": str(image), "gray": str(image)}
    make("in.mp4", 2)
    monkeypatch.setitem(store.DEFAULTS, "denoise", names)
    restorer = vheatir.Restorer("denoise")
    assert restorer.for_clips() is restorer
    monkeypatch.setitem(store.DEFAULTS, "denoise", {**names, "video": str(clip)})
    restorer = vheatir.Restorer("denoise", strength=0.5)
    assert restorer.for_clips().network.config["dim"] == 4 and restorer.for_clips().strength == 0.5
    assert restorer.for_clips() is restorer.for_clips()
    vheatir.restore("in.mp4", "out.mkv", task="denoise", crf=1, strength=0.5)
    restore_clip(vheatir.Restorer("denoise", clip, strength=0.5), Path("in.mp4"), Path("want.mkv"), FileOptions(crf=1))
    assert np.array_equal(read("out.mkv")[1], read("want.mkv")[1])
    assert vheatir.Restorer("denoise", image).for_clips().network.config["dim"] == 8


def test_frames_are_held_only_as_long_as_a_window_needs_them():
    read_so_far = 0

    def numbers():
        nonlocal read_so_far
        for read_so_far in range(1, 101):
            yield read_so_far - 1

    for middle, window in enumerate(windows(numbers(), 5)):
        assert read_so_far <= middle + 3 and window[2] == middle
    assert middle == 99 and window == [97, 98, 99, 98, 97]
    assert list(windows(iter([7]), 5)) == [[7] * 5] and list(windows(iter([]), 5)) == []
    assert list(windows(iter("ab"), 5)) == [list("ababa"), list("babab")]
    assert [window[1] for window in windows(iter("abcd"), 3, skipped=1)] == ["b", "c", "d"]


def test_what_does_not_go_together_is_refused_before_anything_is_done(weights, restorer, tiny):
    make("in.mp4", 2, sound=True)
    tiny.image("in.png", (12, 12, 3))
    with pytest.raises(UserError, match=r"in\.mp4 is a clip, out\.png has the name of an image"):
        vheatir.restore("in.mp4", "out.png", task="denoise", weights=weights)
    with pytest.raises(UserError, match=r"in\.png is an image, out\.mp4 has the name of a clip"):
        vheatir.restore("in.png", "out.mp4", task="denoise", weights=weights)
    with pytest.raises(UserError, match=r"in\.mp4 is an input and would be overwritten"):
        vheatir.restore("in.mp4", "in.mp4", task="denoise", weights=weights)
    with pytest.raises(UserError, match=r"out\.webm: cannot hold sound in aac; write a \.mkv file"):
        restore_clip(restorer, Path("in.mp4"), Path("out.webm"), FileOptions())
    make("flac.mkv", 2, sound=True, tone="flac")
    with pytest.raises(UserError, match=r"out\.mov: cannot hold sound in flac"):  # which shows in the header only
        restore_clip(restorer, Path("flac.mkv"), Path("out.mov"), FileOptions())
    with pytest.raises(UserError, match=r"clips are written as \.mp4"):
        restore_clip(restorer, Path("in.mp4"), Path("out.avi"), FileOptions())
    with pytest.raises(UserError, match="the task jpeg is for JPEG images"):
        vheatir.restore("in.mp4", "out.mp4", task="jpeg")
    with pytest.raises(UserError, match="--crf must lie between 0 and 51"):
        vheatir.restore("in.mp4", "out.mp4", crf=60)
    assert hidden() == []


def test_clips_are_taken_by_name_not_out_of_folders(weights, tiny):
    Path("in").mkdir()
    make("in/a.mp4", 2)
    tiny.image("in/b.png", (12, 12, 3))
    assert [job.source.name for job in plan_jobs(["in"], "out")] == ["b.png"]
    assert [job.source.name for job in plan_jobs(["in/*"], "out")] == ["a.mp4", "b.png"]
    assert {".png", ".mp4"} <= set(RESTORED)
    results = vheatir.restore(["in/a.mp4", "in/b.png"], "out", task="denoise", weights=weights)
    assert [result.outcome.status for result in results] == ["done", "done"]
    assert len(read("out/a.mp4")[0]) == 2


def test_without_pyav_it_says_what_to_install(weights, monkeypatch):
    make("in.mp4", 2)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UserError, match=r"in\.mp4: this kind of file needs av.*vheatir\[video\]"):
        vheatir.restore("in.mp4", "out.mp4", task="denoise", weights=weights)
