"""Clips through `vheatir.restore`: times, sound, colors and shape kept, memory bounded, gone on with after a stop."""

import os
import re
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

import vheatir
from vheatir.errors import UserError
from vheatir.restore.jobs import plan_jobs
from vheatir.restore.one_file import FileOptions
from vheatir.restore.video import one_clip
from vheatir.restore.video.encoding import Encoder, check_sound
from vheatir.restore.video.formats import RESTORED, container_of, written_name
from vheatir.restore.video.one_clip import restore_clip, windows
from vheatir.restore.video.reading import Clip
from vheatir.restore.video.segments import Segments
from vheatir.restore.workers import Stopped

av = pytest.importorskip("av", reason="clips need PyAV: pip install 'vheatir[video]'")

SIZE = (32, 48)
TICKS = Fraction(1, 600)
RATES = {"pcm_bluray": 48000}  # that are taken


def picture(number, size=SIZE):
    """Bands of color that move by a pixel a frame, uint8."""
    height, width = size
    x = np.arange(width) + number
    rows = np.linspace(60, 200, height)[:, None]
    bands = np.stack([np.where(x // 12 % 2, 200, 60)] * height)
    return np.stack([bands, np.broadcast_to(rows, size), np.full(size, 90 + 3 * number)], -1).astype(np.uint8)


def make(path, count=10, size=SIZE, times=None, sound=False, pixel_format="yuv444p", codec="libx264", **tags):
    """A small clip with so many tracks of sound.

    `tags` are set on the encoder, `display` on the stream; `container` has the options of the container, `flags` is one
    of them; `tone` is the codec of the sound; `dress` is called with the container; `last` is how long the last frame
    is shown.
    """
    display, tone_codec = tags.pop("display", None), tags.pop("tone", "aac")
    dress = tags.pop("dress", None)
    last = tags.pop("last", None)
    container = tags.pop("container", {}) | ({"movflags": tags.pop("flags")} if "flags" in tags else {})
    times = [20 * number for number in range(count)] if times is None else times
    with av.open(str(path), "w", options=container) as output:
        stream = output.add_stream(codec, rate=30, options={"crf": "4"} if codec == "libx264" else {})
        stream.width, stream.height, stream.pix_fmt = size[1], size[0], pixel_format
        stream.codec_context.time_base = TICKS
        for name, value in tags.items():
            setattr(stream.codec_context, name, value)
        if display is not None:
            stream.set_display_rotation(display)
        tones = [output.add_stream(tone_codec, rate=RATES.get(tone_codec, 8000)) for _ in range(sound)]
        if dress is not None:
            dress(output)
        for number, time in enumerate(times):
            rgb = av.VideoFrame.from_ndarray(picture(number, size), format="rgb24")
            rgb.colorspace = tags.get("colorspace", 2)
            frame = rgb.reformat(format=pixel_format, src_color_range=2, dst_color_range=tags.get("color_range"))
            frame.pts, frame.time_base = time, TICKS
            output.mux(stream.encode(frame))
        packets = stream.encode(None)
        if last is not None:
            packets[-1].duration = round(last * TICKS / packets[-1].time_base)
        output.mux(packets)
        for tone in tones:
            wave = np.sin(np.arange(2048) / 5)[None]
            if tone_codec == "flac" or tone_codec.startswith("pcm"):
                samples = av.AudioFrame.from_ndarray((wave * 9999).astype(np.int16), "s16", "mono")
                samples.pts = 0
            else:
                samples = av.AudioFrame.from_ndarray(wave.astype(np.float32), "fltp", "mono")
            samples.rate = RATES.get(tone_codec, 8000)
            output.mux(tone.encode(samples))
            output.mux(tone.encode(None))
    return Path(path)


def read(path):
    """Times in seconds, frames in RGB, the video stream's facts, and the bytes of all audio packets."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
        first = frames[0]
        facts = {
            "rate": stream.average_rate,
            "aspect": stream.sample_aspect_ratio,
            "rotation": first.rotation,
            "format": first.format.name,
            "tags": tuple(map(int, (first.color_range, first.color_primaries, first.color_trc, first.colorspace))),
        }
    with av.open(str(path)) as container:
        sound = [bytes(one) for one in container.demux(audio=0) if one.size] if container.streams.audio else []
    pixels = np.stack([frame.to_ndarray(format="rgb24") for frame in frames])
    return [frame.pts * frame.time_base for frame in frames], pixels, facts, sound


@pytest.fixture
def weights(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tiny.write_weights(tmp_path / "w.safetensors")


@pytest.fixture
def restorer(weights):
    return vheatir.Restorer("denoise", weights)


def hidden():
    return sorted(path.name for path in Path().iterdir() if path.name.startswith(".vheatir-"))


def test_frames_are_what_the_network_makes_of_them(weights, restorer):
    make("in.mp4", 3)
    (done,) = vheatir.restore("in.mp4", "out.mkv", task="denoise", weights=weights, crf=1)
    assert done.outcome.status == "done" and "estimated in the first frame" in done.outcome.level
    _, given, _, _ = read("in.mp4")
    _, got, _, _ = read("out.mkv")
    want = np.stack([restorer.restore(frame.astype(np.float32) / 255) for frame in given]) * 255
    assert got.shape == given.shape and np.abs(got - want).mean() < 1.5 < np.abs(given - want).mean()
    assert hidden() == []


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_uneven_times_sound_and_shape_are_kept(suffix, restorer):
    times = [0, 20, 40, 90, 100, 101, 160, 240]
    facts = {"color_range": 1, "color_primaries": 9, "color_trc": 16, "colorspace": 9}
    make("in.mp4", times=times, sound=True, sample_aspect_ratio=Fraction(4, 3), display=90, **facts)
    outcome = restore_clip(restorer, Path("in.mp4"), Path(f"out{suffix}"), FileOptions())
    assert outcome.notes == []
    given, got = read("in.mp4"), read(f"out{suffix}")
    resolution = Fraction(1, 1000) if suffix == ".mkv" else 0
    assert all(abs(one - other) <= resolution for one, other in zip(given[0], got[0], strict=True))
    assert [float(time) for time in given[0]] == [time / 600 for time in times]
    assert got[3] == given[3] != []
    assert got[2]["tags"] == given[2]["tags"] == (1, 9, 16, 9)
    assert got[2]["aspect"] == Fraction(4, 3)
    assert got[2]["rotation"] == given[2]["rotation"] != 0


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


def test_pixels_that_are_not_square_stay_so_or_are_refused(restorer):
    make("in.mp4", 2, sample_aspect_ratio=Fraction(16, 15))
    with pytest.raises(UserError, match=r"out\.webm: its pixels, 16:15 wide, would be square.*write a \.mkv file"):
        restore_clip(restorer, Path("in.mp4"), Path("out.webm"), FileOptions())
    assert hidden() == [] and not Path("out.webm").exists()
    for wide, notes in ((Fraction(1), []), (Fraction(1280, 1281), ["its pixels, 1280:1281 wide, become square"])):
        make("in.mp4", 2, sample_aspect_ratio=wide)  # the second as of 854 columns for 16:9 at 480 rows
        outcome = restore_clip(restorer, Path("in.mp4"), Path("out.webm"), FileOptions())
        assert outcome.notes == notes and read("out.webm")[2]["aspect"] in (None, 1)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("count", [1, 3, 25])
def test_the_last_frame_is_shown_as_long_as_it_was(count, suffix, restorer):
    """As in recordings of a screen, where nothing moves at the end; 25 frames take two segments."""
    make(f"in{suffix}", count, last=1200, max_b_frames=0)
    outcome = restore_clip(restorer, Path(f"in{suffix}"), Path(f"out{suffix}"), FileOptions())
    assert outcome.notes == []
    lengths = []
    for name in ("in", "out"):
        with av.open(f"{name}{suffix}") as container:
            lengths.append(container.duration / av.time_base)
    assert lengths[0] == pytest.approx((count - 1) / 30 + 2, abs=2e-3)
    assert lengths[1] == pytest.approx(lengths[0], abs=2e-3)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_sound_in_a_codec_that_is_not_known_is_left_out(suffix, restorer):
    """As spatial sound, which the newest phones record beside the usual one."""
    data = make("in.mp4", 2, sound=2).read_bytes()
    head, _, tail = data.rpartition(b"mp4a")
    Path("in.mp4").write_bytes(head + b"apac" + tail.replace(b"esds", b"dapa"))
    outcome = restore_clip(restorer, Path("in.mp4"), Path(f"out{suffix}"), FileOptions())
    assert outcome.notes == ["1 stream of sound in a codec that is not known left out"]
    assert read(f"out{suffix}")[3] == read("in.mp4")[3] != []
    with av.open(f"out{suffix}") as container:
        assert [stream.type for stream in container.streams] == ["video", "audio"]


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


def test_a_stopped_run_is_gone_on_with(restorer, monkeypatch):
    monkeypatch.setattr(one_clip, "FRAMES", 4)
    make("in.mp4", 11)
    restore_clip(restorer, Path("in.mp4"), Path("whole.mp4"), FileOptions())
    shares = []

    def stop(share):
        shares.append(share)
        if len(shares) > 6:
            raise Stopped

    with pytest.raises(Stopped):
        restore_clip(restorer, Path("in.mp4"), Path("out.mp4"), FileOptions(), stop)
    assert not Path("out.mp4").exists() and len(hidden()) == 1
    shares.clear()
    outcome = restore_clip(restorer, Path("in.mp4"), Path("out.mp4"), FileOptions(), shares.append)
    assert outcome.notes == ["went on after 4 frames of an earlier run"] and len(shares) == 7
    assert shares == sorted(shares) and shares[-1] == 1
    whole, resumed = read("whole.mp4"), read("out.mp4")
    assert whole[0] == resumed[0] and np.array_equal(whole[1], resumed[1]) and hidden() == []


def test_the_folder_of_segments_is_emptied_under_its_lock(weights, monkeypatch):
    locked = []

    def check(path):
        with pytest.raises(UserError, match="in use by"):
            Segments(Path("out.mp4"), {})
        locked.append(path.name)

    remove = os.unlink
    segments = Segments(Path("out.mp4"), {})
    segments.unfinished().write_bytes(b"frames")
    segments.finish(0)
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", lambda path, **how: (check(Path(path)), remove(path, **how)))
        segments.release(remove=True)
    assert sorted(locked) == ["000000.nut", "lock", "state.json"] and hidden() == []


def test_a_clip_is_free_again_after_a_full_disk(restorer, monkeypatch):
    def full(path):
        raise OSError(28, "No space left on device")

    make("in.mp4", 2)
    with monkeypatch.context() as patch:
        patch.setattr("vheatir.restore.video.segments.atomic_open", full)
        with pytest.raises(UserError, match="cannot be written: No space left") as kept:  # and what it refers to
            restore_clip(restorer, Path("in.mp4"), Path("out.mp4"), FileOptions())
    assert restore_clip(restorer, Path("in.mp4"), Path("out.mp4"), FileOptions()).status == "done"
    assert kept is not None


def test_other_settings_start_anew(restorer, weights, monkeypatch):
    monkeypatch.setattr(one_clip, "FRAMES", 2)
    make("in.mp4", 5)

    def stop(share):
        if share > 0.7:
            raise Stopped

    with pytest.raises(Stopped):
        restore_clip(restorer, Path("in.mp4"), Path("out.mp4"), FileOptions(), stop)
    half = vheatir.Restorer("denoise", weights, strength=0.5)
    assert restore_clip(half, Path("in.mp4"), Path("out.mp4"), FileOptions()).notes == []
    restore_clip(half, Path("in.mp4"), Path("fresh.mp4"), FileOptions())
    assert np.array_equal(read("out.mp4")[1], read("fresh.mp4")[1])


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


def test_files_that_are_no_clips_are_named(weights, restorer):
    Path("text.mp4").write_text("no clip")
    whole = make("whole.mp4", 30).read_bytes()
    Path("cut.mp4").write_bytes(whole[: len(whole) // 2])
    for name in ("text.mp4", "cut.mp4"):
        with pytest.raises(UserError, match=f"{name}: is no clip that can be read"):
            vheatir.restore(name, "out.mp4", task="denoise", weights=weights)
    with av.open("sound.mp4", "w") as output:
        tone = output.add_stream("aac", rate=8000)
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        samples.rate = 8000
        output.mux(tone.encode(samples))
        output.mux(tone.encode(None))
    with pytest.raises(UserError, match=r"sound\.mp4: holds no video stream"):
        restore_clip(restorer, Path("sound.mp4"), Path("out.mp4"), FileOptions())
    with pytest.raises(UserError, match=r"more than the limit of 0\.001 megapixels"):
        restore_clip(restorer, Path("whole.mp4"), Path("out.mp4"), FileOptions(max_pixels=1000))
    assert not Path("out.mp4").exists() and hidden() == []


def test_a_damaged_middle_ends_with_an_error_or_all_frames(restorer):
    data = bytearray(make("in.mkv", 40).read_bytes())
    data[len(data) // 3 : len(data) // 2] = bytes(len(data) // 2 - len(data) // 3)
    Path("bad.mkv").write_bytes(data)
    try:
        restore_clip(restorer, Path("bad.mkv"), Path("out.mkv"), FileOptions())
    except UserError as error:
        assert "bad.mkv" in str(error) and not Path("out.mkv").exists()
    else:
        assert 0 < len(read("out.mkv")[0]) <= 40


def test_the_log_of_pyav_is_off_since_it_can_block_the_end_of_decoding(weights):
    make("in.mp4", 4)
    av.logging.set_level(av.logging.DEBUG)  # as torchvision up to 0.24 does for errors
    try:
        with av.logging.Capture(local=False) as messages:
            av.open("in.mp4").close()
            before = len(messages)
            assert sum(1 for _ in Clip(Path("in.mp4"), 10**6).frames()) == 4
        assert len(messages) == before > 0
    finally:
        av.logging.set_level(None)


@pytest.mark.parametrize("name", ["in.mp4", "in.mkv", "in.mov"])
def test_a_clip_that_breaks_off_is_restored_with_a_note(name, restorer):
    flags = {} if name == "in.mkv" else {"flags": "faststart"}
    whole = make("whole" + name[2:], 40, **flags)
    outcome = restore_clip(restorer, whole, Path("all" + name[2:]), FileOptions())
    assert outcome.notes == []
    data = whole.read_bytes()
    Path(name).write_bytes(data[: len(data) // 2])
    outcome = restore_clip(restorer, Path(name), Path("out" + name[2:]), FileOptions())
    assert re.search(r"frames end after \d\.\d of \d\.\d s", " ".join(outcome.notes))
    assert 0 < len(read("out" + name[2:])[0]) < 40


@pytest.mark.parametrize("count", [1, 6, 7, 8, 31])
def test_no_frame_of_the_last_segment_is_lost(count, restorer):
    restore_clip(restorer, make("in.mp4", count), Path("out.mp4"), FileOptions())  # FFmpeg states no dts of 7 frames
    assert len(read("out.mp4")[0]) == count


@pytest.mark.parametrize("kept", [1, 6, 0.5])
def test_a_clip_that_breaks_off_within_a_frame_is_restored_up_to_it(kept, restorer):
    whole = make("whole.mp4", 12, flags="faststart")
    with av.open(str(whole)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    cut = max(packets, key=lambda packet: packet.pos)  # the last one in the file
    size = kept if kept >= 1 else int(kept * cut.size)  # bytes of it: not even its length, a header, a half
    Path("in.mp4").write_bytes(whole.read_bytes()[: cut.pos + size])
    outcome = restore_clip(restorer, Path("in.mp4"), Path("out.mp4"), FileOptions())
    assert len(read("out.mp4")[0]) in (11, 12)  # the decoder may conceal half a frame
    assert outcome.notes


def test_damage_amid_a_clip_is_refused(restorer):
    whole = make("whole.mp4", 12, flags="faststart")
    with av.open(str(whole)) as container:
        packets = sorted((packet for packet in container.demux(video=0) if packet.size), key=lambda packet: packet.pos)
    data = bytearray(whole.read_bytes())
    amid = packets[5]
    data[amid.pos : amid.pos + amid.size] = b"\xff" * amid.size
    Path("in.mp4").write_bytes(data)
    with pytest.raises(UserError, match=r"frame \d+ cannot be decoded"):
        restore_clip(restorer, Path("in.mp4"), Path("out.mp4"), FileOptions())


def described(path):
    """Kind, language, title and purpose of each stream of sound or images, and the chapters, of a clip."""
    with av.open(str(path)) as container:
        streams = [one for one in container.streams if one.type != "data"]
        tags = [(one.type, one.metadata.get("language"), one.metadata.get("title")) for one in streams]
        titles = [one["metadata"]["title"] for one in container.chapters()]
        return tags, [one.disposition for one in streams], titles


@pytest.mark.parametrize("name", ["out.mkv", "out.mp4"])
def test_languages_titles_purposes_and_chapters_are_kept(name, restorer):
    chapter = {"id": 1, "start": 0, "end": 60, "time_base": Fraction(1, 1000), "metadata": {"title": "first"}}

    def dress(clip):
        names = [("jpn", "left eye"), ("eng", "film"), ("deu", "comments")]
        for stream, (language, title) in zip(clip.streams, names, strict=True):
            stream.metadata.update(language=language, title=title)
        clip.streams[2].disposition = av.stream.Disposition.default | av.stream.Disposition.forced
        clip.set_chapters([chapter])

    make("in.mkv", 3, sound=2, dress=dress)
    outcome = restore_clip(restorer, Path("in.mkv"), Path(name), FileOptions())
    assert outcome.notes == []
    tags, purposes, chapters = described("in.mkv")
    assert tags == [("video", "jpn", "left eye"), ("audio", "eng", "film"), ("audio", "deu", "comments")]
    assert chapters == ["first"]
    if name == "out.mkv":
        assert described(name) == (tags, purposes, chapters)
        return
    with av.open(name) as container:  # which calls the title by another name, and marks one stream of each kind
        found = [(one.metadata["language"], one.metadata["name"]) for one in container.streams.audio]
        assert found == [("eng", "film"), ("deu", "comments")]
        assert container.streams.audio[1].disposition == purposes[2]
    assert described(name)[2] == chapters
    outcome = restore_clip(restorer, Path(name), Path("again.mkv"), FileOptions())
    assert outcome.notes == [] and described("again.mkv")[::2] == (tags, chapters)


@pytest.mark.parametrize("name", ["in.mkv", "in.mp4"])
def test_a_clip_that_begins_late_is_whole(name, restorer):
    make(name, times=[3000 + 20 * number for number in range(5)])
    outcome = restore_clip(restorer, Path(name), Path("out.mkv"), FileOptions())
    assert outcome.notes == []
    assert read("out.mkv")[0][0] == 5


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_times_before_zero_are_moved_with_the_sound(suffix, restorer):
    """As FFmpeg gives them where the clock of a broadcast runs over; 30 frames take two segments."""
    times = [20 * number - 100 for number in range(30)]
    make("in.ts", times=times, sound=True, container={"avoid_negative_ts": "disabled"})
    outcome = restore_clip(restorer, Path("in.ts"), Path(f"out{suffix}"), FileOptions())
    assert outcome.notes == []
    begins = []
    for name in ("in.ts", f"out{suffix}"):
        with av.open(name) as container:
            first = {kind: next(container.demux(**{kind: 0})) for kind in ("video", "audio")}
            begins.append({kind: float(packet.pts * packet.time_base) for kind, packet in first.items()})
    assert begins[0]["video"] < 0
    got = read(f"out{suffix}")
    assert np.allclose(np.diff([float(time) for time in got[0]]), 1 / 30, atol=1.1e-3) and len(got[0]) == 30
    late = [begin["audio"] - begin["video"] for begin in begins]
    assert late[1] == pytest.approx(late[0], abs=2e-3)


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_times_that_begin_anew_go_on(suffix, restorer):
    one = make("one.ts", 14, sound=True).read_bytes()
    Path("in.ts").write_bytes(3 * one)
    outcome = restore_clip(restorer, Path("in.ts"), Path(f"out{suffix}"), FileOptions())
    assert outcome.notes == ["its times begin anew in 2 places and were made to go on"]
    times, _, _, sound = read(f"out{suffix}")
    steps = np.diff([float(time) for time in times])
    assert len(times) == 42 and np.abs(steps - 1 / 30).max() < 1.1e-3
    with av.open(f"out{suffix}") as container:
        heard = [float(packet.dts * packet.time_base) for packet in container.demux(audio=0) if packet.dts is not None]
    with av.open("one.ts") as container:
        first = [float(packet.dts * packet.time_base) for packet in container.demux(audio=0) if packet.dts is not None]
    assert len(sound) == len(heard) == 3 * len(first) and (np.diff(heard) > 0).all()
    # The last sound of each part comes as long after its frames as in the part itself.
    ends = [heard[(part + 1) * len(first) - 1] - float(times[14 * part]) for part in range(3)]
    assert np.ptp(ends) < 5e-3


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


@pytest.mark.parametrize(
    ("tone", "suffix", "advice"),
    [
        ("amrnb", ".mkv", r"write a \.mov file"),  # of phones, in 3GP
        ("pcm_mulaw", ".mp4", r"write a \.mov file"),  # of compact cameras, in AVI
        ("pcm_bluray", ".mkv", r"convert its sound first, to FLAC in a \.mkv file"),  # of camcorders, in MTS
        ("aac", ".webm", r"write a \.mkv file"),
    ],
)
def test_sound_that_a_container_cannot_hold_is_sent_to_one_that_can(tone, suffix, advice, weights):
    name = {"amrnb": "in.3gp", "pcm_mulaw": "in.avi", "pcm_bluray": "in.m2ts", "aac": "in.mp4"}[tone]
    if tone == "amrnb":  # of which there is no encoder
        data = make("in.mp4", 2, sound=1).read_bytes()
        Path(name).write_bytes(data.replace(b"mp4a", b"samr").replace(b"esds", b"damr"))
    else:
        make(name, 2, sound=1, tone=tone, codec="mpeg4" if name == "in.avi" else "libx264", pixel_format="yuv420p")
    clip, target = Clip(Path(name), 10**6), Path(f"out{suffix}")
    with pytest.raises(UserError, match=rf"out\{suffix}: cannot hold sound in {tone}; {advice}"):
        check_sound(clip, container_of(target), target)
    if "mov" in advice:
        assert check_sound(clip, container_of(Path("out.mov")), Path("out.mov")) == []


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
