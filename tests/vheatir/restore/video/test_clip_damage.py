"""Stopped runs that go on, full disks, and clips that are damaged or none."""

import os
import re
from pathlib import Path

import fsspec
import numpy as np
import pytest

import vheatir
from tests.vheatir.restore.video.clips import hidden, make, read
from vheatir.errors import UserError
from vheatir.restore.locations import fetched, location
from vheatir.restore.one_file import FileOptions
from vheatir.restore.video import one_clip
from vheatir.restore.video.one_clip import restore_clip
from vheatir.restore.video.reading import Clip
from vheatir.restore.video.segments import Segments
from vheatir.restore.workers import Stopped

av = pytest.importorskip("av", reason="clips need PyAV: pip install 'vheatir[video]'")


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


def test_a_clip_behind_a_url_is_gone_on_with_too(weights, restorer, monkeypatch):
    """Each run fetches it anew, into another file of another date."""
    monkeypatch.setattr(one_clip, "FRAMES", 2)
    make("in.mp4", 6)
    fsspec.filesystem("memory").put_file("in.mp4", "/clips/in.mp4")

    def stop(share):
        if share > 0.5:
            raise Stopped

    with pytest.raises(Stopped), fetched(location("memory://clips/in.mp4")) as local:
        restore_clip(restorer, local, Path("out.mp4"), FileOptions(), stop)
    (done,) = vheatir.restore("memory://clips/in.mp4", "out.mp4", task="denoise", weights=weights)
    assert done.outcome.notes == ["went on after 2 frames of an earlier run"] and hidden() == []
    make("other.mp4", 5)

    with pytest.raises(Stopped):
        restore_clip(restorer, Path("in.mp4"), Path("b.mp4"), FileOptions(), stop)
    os.utime("other.mp4", ns=(os.stat("in.mp4").st_mtime_ns,) * 2)
    assert restore_clip(restorer, Path("other.mp4"), Path("b.mp4"), FileOptions()).notes == []


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


def test_a_recording_that_begins_amid_a_group_of_frames_is_not_said_to_end_early(restorer):
    whole = make("whole.ts", 40, size=(96, 128), gop_size=20)
    assert restore_clip(restorer, whole, Path("all.mkv"), FileOptions()).notes == []
    data = whole.read_bytes()
    assert len(data) > 10 * 188
    Path("in.ts").write_bytes(data[len(data) // 5 // 188 * 188 :])
    (note,) = restore_clip(restorer, Path("in.ts"), Path("out.mkv"), FileOptions()).notes
    assert re.fullmatch(r"its first 0\.\d s hold no frame that can be decoded, as where .*", note)
    assert len(read("out.mkv")[0]) == 20


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
