"""What goes wrong in the world: odd images, hostile files, disks and folders that refuse. Never a traceback."""

import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image as Pillow

from vheatir.cli import main as vheatir_main
from vheatir.errors import UserError
from vheatir.image_io import Image, open_image, read_image, write_image

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny):
    return tiny.write_weights(tmp_path_factory.mktemp("weights") / "tiny.safetensors")


@pytest.fixture
def command(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fixed = ["--task", "denoise", "--weights", str(trained), "--device", "cpu"]
    return lambda *arguments: vheatir_main(["restore", *map(str, arguments), *fixed])


@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg", ".webp", ".bmp"])
@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 10000, 3), (10000, 1), (2, 3), (1, 7, 3)], ids=str)
def test_images_of_any_shape(command, tiny, shape, suffix):
    tiny.image(f"in{suffix}", shape)
    assert command(f"in{suffix}", "-o", "out") == 0
    assert read_image(f"out/in{suffix}").pixels.shape[:2] == shape[:2]


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, pixels, *extra):
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = [chunk(b"IHDR", header), *extra, chunk(b"IDAT", pixels), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def saved(kind, size=(16, 16)):
    import io

    file = io.BytesIO()
    Pillow.new("RGB", size).save(file, kind)
    return bytearray(file.getvalue())


def jpeg_claiming(width, height):
    data = saved("JPEG")
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def tiff_claiming(width, height):
    import io

    file = io.BytesIO()
    tifffile.imwrite(file, np.zeros((16, 16), np.uint16), metadata=None)
    data = bytearray(file.getvalue())
    for tag, value in ((256, width), (257, height)):
        at = data.index(struct.pack("<H", tag))
        data[at + 2 : at + 12] = struct.pack("<HII", 4, 1, value)
    return bytes(data)


HUGE = {
    "header.png": lambda: png(2**31 - 1, 2**31 - 1, zlib.compress(b"\0")),
    "wide.png": lambda: png(2**31 - 1, 1, zlib.compress(b"\0")),
    "header.jpg": lambda: jpeg_claiming(65500, 65500),
    "header.tif": lambda: tiff_claiming(10**6, 10**6),
    "rows.tif": lambda: tiff_claiming(16, 10**7),
    "header.bmp": lambda: bytes(saved("BMP")[:18] + struct.pack("<ii", 2**31 - 1, 2**31 - 1) + saved("BMP")[26:]),
    "pixels.png": lambda: png(1, 1, zlib.compress(bytes(50_000_000), 9)),
    "text.png": lambda: png(
        1, 1, zlib.compress(b"\0\0"), chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(80_000_000), 1))
    ),
    "profile.png": lambda: png(
        1, 1, zlib.compress(b"\0\0"), chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(80_000_000), 1))
    ),
    "size.png": lambda: png(9, 9, b"")[:33] + struct.pack(">I4s", 2**32 - 1, b"IDAT"),
}


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is measured through Linux's /proc")
@pytest.mark.parametrize("name", HUGE)
def test_huge_claims_and_bombs_cost_little_memory(tmp_path, name):
    (tmp_path / name).write_bytes(HUGE[name]())
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    try:
        image = read_image(tmp_path / name)
    except UserError as error:
        assert name in str(error)
    else:
        assert image.pixels.shape[:2] == (1, 1), "a bomb beside one harmless pixel"
    assert resident("VmHWM") - before < 100 << 20


def resident(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
@pytest.mark.parametrize("by_rows", [False, True])
def test_pixels_that_are_no_numbers_name_the_file_and_leave_no_output(command, capfd, monkeypatch, value, by_rows):
    from vheatir.restore import one_file as restore_file

    monkeypatch.setattr(restore_file.FileOptions, "by_rows", 0 if by_rows else 10**9)
    pixels = np.full((90, 30, 3), 0.5, np.float32)
    pixels[80, 3, 1] = value
    write_image("in.tif", Image(pixels, bit_depth=32))
    assert command("in.tif", "-o", "out", "--tile", "32") == 1
    said = capfd.readouterr().err
    assert "in.tif" in said and ("NaN or infinite" in said or "another" in said or "divide by" in said)
    assert "Traceback" not in said and list(Path("out").iterdir()) == []


DROPPED = """
import ctypes, os, resource, sys
from vheatir.cli import main

header, nothing = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
assert ctypes.CDLL(None, use_errno=True).capset(header, nothing) == 0  # even root is bound by permissions now
fixed = ["--task", "denoise", "--weights", sys.argv[1], "--device", "cpu"]
if os.access("locked", os.W_OK):
    sys.exit(77)
for case, arguments in {
    "output": ["in.png", "-o", "locked"],
    "deeper": ["in.png", "-o", "locked/new"],
    "manifest": ["in.png", "-o", "out1", "--manifest", "locked/list.jsonl"],
    "file": ["secret.png", "in.png", "-o", "out2"],
    "folder": ["tree", "-o", "out3"],
}.items():
    print(case, main(["restore", *arguments, *fixed]), flush=True)
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
print("limit", main(["restore", "large.png", "in.png", "-o", "out4", *fixed]), flush=True)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="drops capabilities by Linux's capset")
def test_folders_and_files_that_refuse(trained, tiny, tmp_path):
    tiny.image(tmp_path / "in.png")
    tiny.image(tmp_path / "large.png", (200, 200, 3))
    tiny.image(tmp_path / "secret.png").chmod(0)
    tiny.image(tmp_path / "tree" / "closed" / "a.png")
    (tmp_path / "tree" / "closed").chmod(0)
    (tmp_path / "locked").mkdir()
    (tmp_path / "locked").chmod(0o555)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    code = [sys.executable, "-c", DROPPED.replace("main([", "run(["), str(trained)]
    code[2] = code[2].replace(
        "from vheatir.cli import main",
        "from vheatir.cli import main, run as call\n\n\ndef run(a):\n    return call(main, a)\n",
    )
    try:
        done = subprocess.run(code, cwd=tmp_path, env=environment, capture_output=True, text=True)
    finally:
        (tmp_path / "tree" / "closed").chmod(0o755)
    if done.returncode == 77:
        pytest.skip("permissions do not bind here, whatever capabilities are dropped")
    assert done.returncode == 0, done.stderr
    statuses = dict(line.split() for line in done.stdout.splitlines())
    assert statuses == {"output": "1", "deeper": "2", "manifest": "2", "file": "1", "folder": "2", "limit": "1"}
    for said in ("locked/in.png", "locked/new", "locked/list.jsonl", "secret.png", "tree/closed", "out4/large.png"):
        assert said in done.stderr
    assert "Traceback" not in done.stderr and "ermission denied" in done.stderr
    assert tiny.below(tmp_path / "out2") == ["in.png"]
    assert tiny.below(tmp_path / "out4") == ["in.png"], "the file that fits is done, of the other nothing is left"


@pytest.mark.skipif(
    not sys.platform.startswith("linux") or os.geteuid() != 0, reason="only root may mount a small disk"
)
def test_a_full_disk_is_said_and_nothing_half_written_stays(command, tiny, capfd):
    tiny.image("in/large.png", (200, 200, 3))
    tiny.image("in/small.png")
    Path("out").mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", "out"], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("no file systems can be mounted here")
    try:
        assert command("in", "-o", "out", "--workers", "1") == 1
        assert tiny.below("out") == ["small.png"]
        said = capfd.readouterr().err
        assert "large.png" in said and "No space left" in said and "Traceback" not in said
    finally:
        subprocess.run(["umount", "out"], check=True)


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.mark.parametrize("name", ["evil.pth", "evil.pt", "evil.safetensors", "evil.bin"])
def test_weights_from_strangers_run_no_code(tiny, tmp_path, monkeypatch, capfd, name):
    monkeypatch.chdir(tmp_path)
    tiny.image("in.png")
    torch.save({"params": Evil(str(tmp_path / "ran"))}, name)
    assert vheatir_main(["restore", "in.png", "-o", "out", "--task", "denoise", "--weights", name]) == 2
    assert not (tmp_path / "ran").exists() and name in capfd.readouterr().err


def test_a_closed_pipe_or_a_vanished_input_is_no_traceback(command, tiny, capfd, monkeypatch):
    """A file deleted between planning and reading."""
    tiny.image("in/a.png")
    tiny.image("in/b.png")
    from vheatir.restore import workers

    restore_file = workers.restore_file

    def after_deleting(restorer, source, *rest):
        Path("in/a.png").unlink(missing_ok=True)
        return restore_file(restorer, source, *rest)

    monkeypatch.setattr(workers, "restore_file", after_deleting)
    assert command("in", "-o", "out", "--workers", "1") == 1
    said = capfd.readouterr().err
    assert "a.png" in said and "No such file" in said and "Traceback" not in said
    assert tiny.below("out") == ["b.png"]


def test_damaged_rows_of_a_large_tiff_leave_no_output(command, capfd, monkeypatch):
    from vheatir.restore import one_file as restore_file

    monkeypatch.setattr(restore_file.FileOptions, "by_rows", 0)
    rng = np.random.default_rng(0)
    array = rng.integers(0, 65536, (200, 100, 3), dtype=np.uint16)
    tifffile.imwrite("in.tif", array, photometric="rgb", compression="zlib", rowsperstrip=20)
    stored = open_image("in.tif", by_rows=0)
    assert stored.rows(150, 200).shape == (50, 100, 3)
    stored.close()
    data = bytearray(Path("in.tif").read_bytes())
    data[-9000:-8000] = bytes(1000)
    Path("in.tif").write_bytes(data)
    assert command("in.tif", "-o", "out", "--tile", "32") == 1
    said = capfd.readouterr().err
    assert "in.tif" in said and "damaged" in said and "Traceback" not in said
    assert list(Path("out").iterdir()) == []


@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg", ".webp", ".bmp"])
def test_a_full_disk_leaves_no_half_file(tmp_path, suffix):
    pytest.importorskip("resource", reason="limits of file sizes are those of POSIX")
    code = f"""
import resource, sys
import numpy as np
from vheatir.errors import UserError
from vheatir.image_io import Image, write_image
image = Image(np.random.default_rng(0).uniform(size=(128, 128, 3)).astype(np.float32))
resource.setrlimit(resource.RLIMIT_FSIZE, ({4 << 10}, resource.RLIM_INFINITY))
try:
    write_image({str(tmp_path / f"a{suffix}")!r}, image)
except UserError as error:
    sys.exit(str(error))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "cannot be written" in done.stderr, done.stderr
    assert list(tmp_path.iterdir()) == []
