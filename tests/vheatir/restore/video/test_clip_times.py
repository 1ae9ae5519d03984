"""Times, sound, languages and chapters of clips through `vheatir.restore`."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from tests.vheatir.restore.video.clips import make, read
from vheatir.errors import UserError
from vheatir.restore.one_file import FileOptions
from vheatir.restore.video.encoding import check_sound
from vheatir.restore.video.formats import container_of
from vheatir.restore.video.one_clip import restore_clip
from vheatir.restore.video.reading import Clip

av = pytest.importorskip("av", reason="clips need PyAV: pip install 'vheatir[video]'")


def described(path):
    """Kind, language, title and purpose of each stream of sound or images, and the chapters, of a clip."""
    with av.open(str(path)) as container:
        streams = [one for one in container.streams if one.type != "data"]
        tags = [(one.type, one.metadata.get("language"), one.metadata.get("title")) for one in streams]
        titles = [one["metadata"]["title"] for one in container.chapters()]
        return tags, [one.disposition for one in streams], titles


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
