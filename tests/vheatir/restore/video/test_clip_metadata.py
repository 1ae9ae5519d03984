"""What a clip says of itself, and notes on what of that its result does not."""

import struct
from pathlib import Path

import pytest

from tests.vheatir.restore.video.clips import make, read
from vheatir.restore.one_file import FileOptions
from vheatir.restore.video.one_clip import restore_clip

av = pytest.importorskip("av", reason="clips need PyAV: pip install 'vheatir[video]'")

PHONE = {
    "com.apple.quicktime.make": "Apple",
    "com.apple.quicktime.location.ISO6709": "+48.1-011.5/",
    "com.apple.quicktime.creationdate": "2024-01-01T10:00:00+0100",
}
_VIEWS = bytes.fromhex("ffcc8263f8554a938814587a02521fdd")  # Spherical Video V1 of Google
_VIEWS += b"".join(
    f"<GSpherical:{name}>{value}</GSpherical:{name}>".encode()
    for name, value in {
        "Spherical": "true",
        "Stitched": "true",
        "StitchingSoftware": "x",
        "ProjectionType": "equirectangular",
    }.items()
)


def said(path):
    with av.open(str(path)) as container:
        return dict(container.metadata)


@pytest.mark.parametrize("suffix", [".mov", ".mp4", ".mkv"])
def test_camera_place_and_date_of_a_phone_are_kept(restorer, suffix):
    make("in.mov", 2, dress=lambda output: output.metadata.update(PHONE), flags="use_metadata_tags")
    assert said("in.mov").items() >= PHONE.items()
    outcome = restore_clip(restorer, Path("in.mov"), Path(f"out{suffix}"), FileOptions())
    found = {key.lower(): value for key, value in said(f"out{suffix}").items()}
    assert found.items() >= {key.lower(): value for key, value in PHONE.items()}.items()
    assert outcome.notes == [] and len(read(f"out{suffix}")[0]) == 2


def test_metadata_that_a_container_cannot_hold_are_named(restorer):
    make("in.mkv", 2, dress=lambda output: output.metadata.update(title="mine", TAPE="7", SCENE="a"))
    outcome = restore_clip(restorer, Path("in.mkv"), Path("out.mp4"), FileOptions())
    assert outcome.notes == ["metadata that the file cannot hold: SCENE, TAPE; left out"]
    assert said("out.mp4")["title"] == "mine"
    outcome = restore_clip(restorer, Path("in.mkv"), Path("out.mkv"), FileOptions())
    assert outcome.notes == [] and said("out.mkv")["TAPE"] == "7"


def test_a_clip_of_all_directions_is_named_as_one(restorer):
    make("in.mp4", 2)
    data = Path("in.mp4").read_bytes()  # frames first, so that nothing behind them is found by its position
    track = data.index(b"trak") - 4
    (size,) = struct.unpack_from(">I", data, track)
    box = struct.pack(">I4s", len(_VIEWS) + 8, b"uuid") + _VIEWS
    larger = bytearray(data[: track + size] + box + data[track + size :])
    for at in (data.index(b"moov") - 4, track):
        larger[at : at + 4] = struct.pack(">I", struct.unpack_from(">I", data, at)[0] + len(box))
    Path("all.mp4").write_bytes(larger)
    assert restore_clip(restorer, Path("in.mp4"), Path("a.mp4"), FileOptions()).notes == []
    (note,) = restore_clip(restorer, Path("all.mp4"), Path("b.mp4"), FileOptions()).notes
    assert "360 degree" in note and "flat" in note


def test_the_transparency_of_vp9_is_named_as_lost(restorer):
    make("in.webm", 2, codec="libvpx-vp9", pixel_format="yuva420p")
    outcome = restore_clip(restorer, Path("in.webm"), Path("out.webm"), FileOptions())
    assert outcome.notes == ["transparency is not kept"] and len(read("out.webm")[0]) == 2
    make("in.webm", 2, codec="libvpx-vp9", pixel_format="yuv420p")
    assert restore_clip(restorer, Path("in.webm"), Path("out.webm"), FileOptions()).notes == []
