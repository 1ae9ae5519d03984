"""Memory grows with the tile, not with the image; where it runs out, smaller tiles do the work."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from vheatir.errors import UserError
from vheatir.image_io import open_image
from vheatir.restore import tile_memory, tiling
from vheatir.restore.one_file import FileOptions, restore_file
from vheatir.restore.restorer import Restorer

ROOT = Path(__file__).resolve().parents[3]
LIGHT = {"dim": 80, "depths": [6, 6], "downscale": 2}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny):
    return tiny.write_weights(tmp_path_factory.mktemp("weights") / "tiny.safetensors")


@pytest.mark.parametrize("free", [None, 64 << 30, 1 << 30, 128 << 20, 16 << 20, 0])
@pytest.mark.parametrize("size", [(1, 1), (481, 321), (512, 512), (1, 10000), (3000, 4000)], ids=str)
def test_tiles_fit_the_free_memory(size, free):
    tile = tile_memory.tile_for(LIGHT, *size, free)
    usual = tiling.default_tile(*size)
    if free is None or free >= 64 << 30:
        assert tile == usual
        return
    pixels = (tile or max(size)) ** 2 if tile else size[0] * size[1]
    assert (
        tile == tile_memory.SMALLEST_TILE
        or pixels * tile_memory.bytes_per_pixel(LIGHT) <= 0.5 * free
        or tile == usual == 0
    )
    assert tile <= tiling.DEFAULT_TILE


def test_bytes_for_a_pixel_are_those_that_were_measured():
    """In float32; with fewer, tiles would be chosen that do not fit."""
    unet = {"encoder": [1], "dim": 32, "in_chans": 3}
    clip = {**unet, "frames": 5, "mix_dim": 16}
    found = [tile_memory.bytes_per_pixel(config) for config in (LIGHT, unet, clip)]
    assert found == [4 * 80 / 4 * (12 + 36), 4 * 32 * 14, 4 * (32 * 14 + 5 * (3 * 8 + 16 * 4))]


def test_this_machine_tells_how_much_memory_is_free():
    free = tile_memory.free_memory(torch.device("cpu"))
    if not Path("/proc/meminfo").exists():
        assert free is None
    else:
        assert 1 << 20 < free < 1 << 50
    assert tile_memory.free_memory(torch.device("meta")) is None


@pytest.mark.skipif(not Path("/proc/self/cgroup").exists(), reason="control groups of Linux")
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("own", ["/", "/job_7", "/job_7/step_0/task_0"])
def test_cached_files_of_a_container_count_as_free(own, version, tmp_path, monkeypatch):
    """The limit is that of the process's own group, or of one above it, as batch systems set it."""
    folder = tmp_path / "memory" if version == 1 else tmp_path
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if version == 1 else ("memory.max", "memory.current")
    folder = folder / own[1:].partition("/")[0]
    folder.mkdir(exist_ok=True, parents=True)
    for name, value in zip(names, (400 << 20, 390 << 20), strict=True):
        (folder / name).write_text(f"{value}\n")
    before = "total_" if version == 1 else ""
    figures = {f"{before}inactive_file": 200 << 20, f"{before}active_file": 100 << 20, "anon": 90 << 20}
    (folder / "memory.stat").write_text("".join(f"{name} {value}\n" for name, value in figures.items()))
    lines = f"4:memory:{own}\n" if version == 1 else f"0::{own}\n"
    read = Path.read_text
    group = Path("/proc/self/cgroup")
    monkeypatch.setattr(
        Path, "read_text", lambda path, *how, **too: lines if path == group else read(path, *how, **too)
    )
    monkeypatch.setattr(tile_memory, "_GROUPS", str(tmp_path))
    assert tile_memory.free_memory(torch.device("cpu")) == 310 << 20
    (folder / "memory.stat").unlink()
    assert tile_memory.free_memory(torch.device("cpu")) == 10 << 20


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
            True,
        ),
        (RuntimeError("shapes do not match"), False),
        (ValueError("out of memory"), False),
    ],
    ids=str,
)
def test_what_running_out_of_memory_looks_like(error, expected):
    assert tile_memory.is_out_of_memory(error) is expected


class Limited(torch.nn.Module):
    """A network that runs out of memory above a number of pixels."""

    def __init__(self, network, most):
        super().__init__()
        self.network, self.most, self.config, self.seen = network, most, network.config, []

    def forward(self, x):
        self.seen.append(max(x.shape[-2:]))
        if x.shape[-1] * x.shape[-2] > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        return self.network(x)


@pytest.mark.parametrize("tile", [None, 0, 96])
def test_out_of_memory_is_answered_by_smaller_tiles_for_good(trained, tile):
    restorer = Restorer("denoise", weights=trained, device="cpu", tile=tile)
    image = np.random.default_rng(0).uniform(0.3, 0.7, (150, 170, 3)).astype(np.float32)
    whole = restorer.restore(image)
    restorer.network = Limited(restorer.network, 64 * 64)
    result = restorer.restore(image)
    failures = sum(side > 64 for side in restorer.network.seen)
    assert 1 <= failures <= 3, "the size that suffices is remembered"
    assert np.abs(result - whole).mean() < 0.02, "another tiling of the same image"
    restorer.network.seen.clear()
    restorer.restore(image)
    assert max(restorer.network.seen) <= 64


@pytest.mark.parametrize("overlap", [None, 30])
def test_little_memory_makes_small_tiles_whose_overlap_fits(trained, overlap, monkeypatch):
    image = np.random.default_rng(0).uniform(0.3, 0.7, (70, 90, 3)).astype(np.float32)
    whole = Restorer("denoise", weights=trained, device="cpu", tile=0).restore(image)
    monkeypatch.setattr(tile_memory, "free_memory", lambda device: 0)
    tiled = Restorer("denoise", weights=trained, device="cpu", overlap=overlap).restore(image)
    assert 0 < np.abs(tiled - whole).mean() < 0.02


def test_too_little_memory_for_any_tile_is_said(trained):
    restorer = Restorer("denoise", weights=trained, device="cpu")
    restorer.network = Limited(restorer.network, 0)
    with pytest.raises(UserError, match="not enough memory on cpu, even for tiles of 32"):
        restorer.restore(np.zeros((90, 90, 3), np.float32))


@pytest.mark.parametrize("suffix", [".tif", ".png"])
@pytest.mark.parametrize(("shape", "depth"), [((200, 150, 3), 8), ((150, 200), 16), ((1, 700, 3), 16)], ids=str)
def test_by_rows_gives_the_same_file_as_in_memory(trained, tiny, tmp_path, shape, depth, suffix):
    source = tiny.image(tmp_path / f"in{suffix}", shape, depth)
    restorer = Restorer("denoise", weights=trained, device="cpu", tile=64, overlap=24)
    for name, limit in (("rows", 0), ("whole", 10**9)):
        outcome = restore_file(restorer, source, tmp_path / f"{name}{suffix}", FileOptions(by_rows=limit))
        assert outcome.status == "done" and "noise level" in outcome.level
    first, second = (open_image(tmp_path / f"{name}{suffix}").rows(0, shape[0]) for name in ("rows", "whole"))
    np.testing.assert_array_equal(first, second)
    image = open_image(source)
    pixels = image.floats(0, shape[0])[0].squeeze() if len(shape) == 2 else image.floats(0, shape[0])[0]
    in_memory = restorer.restore(pixels.reshape(shape)).reshape(first.shape)
    assert np.abs(first / np.float32(2**depth - 1) - in_memory).max() <= 0.51 / (2**depth - 1)


SLOPE = """
import json, re, sys
from pathlib import Path
import numpy as np, tifffile
from vheatir.restore.one_file import FileOptions, restore_file
from vheatir.restore.restorer import Restorer

def resident(field):
    return int(re.search(field + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

restorer = Restorer("denoise", weights=sys.argv[1], device="cpu", tile=64, overlap=8)
peaks = []
for height in (4000, 1000, 4000):  # the first fills what the allocator keeps
    strip = np.random.default_rng(0).integers(0, 65536, (20, 400, 3), dtype=np.uint16).tobytes()
    tifffile.imwrite("in.tif", (strip for _ in range(height // 20)), shape=(height, 400, 3), dtype=np.uint16,
                     photometric="rgb", rowsperstrip=20)
    Path("/proc/self/clear_refs").write_text("5")
    restore_file(restorer, Path("in.tif"), Path("out.tif"), FileOptions(by_rows=0))
    peaks.append((height * 400, resident("VmHWM")))
print(json.dumps(peaks))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is measured through Linux's /proc")
def test_memory_does_not_grow_with_the_image(trained, tmp_path):
    """1.2 million further pixels, 6 bytes each in the file and 24 as floats in and out, may cost at most 3 each."""
    code = [sys.executable, "-c", SLOPE, str(trained)]
    done = subprocess.run(code, cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (_, _), (small, small_peak), (large, large_peak) = json.loads(done.stdout)
    assert (large_peak - small_peak) / (large - small) < 3


def environment():
    import os

    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


LIMIT = """
import re, resource, sys
from pathlib import Path
import numpy as np, torch
from vheatir.restore.restorer import Restorer

torch.set_num_threads(1)
restorer = Restorer("denoise", weights=sys.argv[1], device="cpu", tile=512, overlap=32)
restorer.restore(np.full((64, 64, 3), 0.5, np.float32))
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 200 * 2**20,) * 2)
result = restorer.restore(np.full((512, 512, 3), 0.5, np.float32))
print(result.shape, restorer._largest)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="address space is measured through Linux's /proc")
def test_a_real_limit_on_memory_is_lived_with(tiny, tmp_path):
    wide = tiny.write_weights(tmp_path / "wide.safetensors", dim=32, downscale=1)
    code = [sys.executable, "-c", LIMIT, str(wide)]
    done = subprocess.run(code, env=environment() | {"MALLOC_ARENA_MAX": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("(512, 512, 3)") and int(done.stdout.split()[-1]) <= 256
