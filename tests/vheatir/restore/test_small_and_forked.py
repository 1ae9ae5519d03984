"""Images of a few pixels, and a Restorer in a forked process."""

import copy
import multiprocessing
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from vheatir import Restorer
from vheatir.archs.base import middle_planes
from vheatir.archs.networks import NETWORKS
from vheatir.backbone.layers.freezing import kept_info
from vheatir.image_io import read_image
from vheatir.restore.defaults import TASKS
from vheatir.restore.pixels import mirrored, with_margin

ROOT = str(Path(__file__).resolve().parents[3])
ODD = Path(__file__).parents[2] / "data" / "odd" / "restore"
SHAPES = [(1, 1), (2, 2), (3, 7), (64, 1), (7, 40)]
COLORS = [(0.9, 0.1, 0.1), (0.05, 0.8, 0.1), (1, 1, 1)]


@pytest.fixture(scope="module", params=TASKS)
def shipped(request):
    return Restorer(request.param, device="cpu")


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_flat_colors_stay(shipped, shape):
    for color in COLORS:
        flat = np.broadcast_to(np.float32(color), (*shape, 3)).copy()
        assert np.abs(shipped.restore(flat) - flat).max() * 255 < 0.1
    for value in (0.0, 0.5):
        flat = np.full(shape, value, np.float32)
        assert np.abs(shipped.restore(flat) - flat).max() * 255 < 0.1


@pytest.mark.parametrize("shape", [(1, 1), (2, 3)], ids=str)
def test_flat_colors_stay_by_every_symmetry_tile_and_alpha(shape):
    restorer = Restorer("denoise", device="cpu", ensemble=True, tile=32, strength=0.5)
    flat = np.broadcast_to(np.float32(COLORS[0]), (*shape, 3)).copy()
    assert np.abs(restorer.restore(flat, alpha=np.ones(shape, np.float32)) - flat).max() * 255 < 0.1


@pytest.mark.parametrize("shape", [(4, 100), (7, 7)], ids=str)
def test_noise_of_tiny_images_becomes_less_and_colors_stay(shipped, shape):
    rng = np.random.default_rng(0)
    clean = np.broadcast_to(np.float32((0.7, 0.3, 0.2)), (*shape, 3))
    noisy = (clean + rng.normal(0, 15 / 255, clean.shape)).astype(np.float32)
    restored = shipped.restore(noisy)
    assert np.abs(restored.mean((0, 1)) - noisy.mean((0, 1))).max() * 255 < 3
    if shipped.task == "denoise":
        assert ((restored - clean) ** 2).mean() < 0.6 * ((noisy - clean) ** 2).mean()


def test_the_strip_keeps_its_colors(shipped):
    strip = read_image(ODD / "strip_1x600.png").pixels
    assert np.abs(shipped.restore(strip).mean((0, 1)) - strip.mean((0, 1))).max() * 255 < 2


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("channels", [1, 3])
def test_any_networks_answer_to_flat_colors_is_taken_out(name, channels):
    torch.manual_seed(0)
    small = {"VHeatIR": {"dim": 8, "depths": [1], "downscale": 2}, "VHeatUNet": {"dim": 8}}
    small["VHeatVideoNet"] = {"dim": 8, "mix_dim": 8}
    network = NETWORKS[name](in_chans=channels, **small[name]).eval()
    for parameter in network.parameters():  # the untrained ones return their input
        torch.nn.init.normal_(parameter, std=0.05)
    with torch.inference_mode():
        for height, width in ((1, 1), (3, 30)):
            flat = torch.rand(1, channels, 1, 1).expand(1, channels, height, width)
            assert with_margin(network, flat).sub(flat).abs().max() < 1e-4


def test_of_a_clip_of_tiny_frames_the_middle_one_is_restored():
    clip = torch.rand(1, 5 * 3, 4, 6)
    torch.testing.assert_close(with_margin(lambda planes: middle_planes(planes, 3), clip), clip[:, 6:9])


def test_padding_mirrors_the_image_as_often_as_needed():
    for side in (1, 2, 3, 7):
        expected = np.pad(np.arange(side), 16, mode="symmetric")
        np.testing.assert_array_equal(mirrored(side), expected)


FORK = """
import multiprocessing, pickle, sys
import numpy as np, torch
from vheatir import Restorer

restorer = Restorer("denoise", device="cpu")
image = np.full((40, 50, 3), 0.5, np.float32)
if "used" in sys.argv:
    restorer.restore(image)
packed = pickle.dumps(restorer)

def work(queue):
    if "one" in sys.argv:
        torch.set_num_threads(1)
    try:
        own = Restorer("denoise", device="cpu") if "own" in sys.argv and "one" in sys.argv else restorer
        own = pickle.loads(packed) if "pickled" in sys.argv else own
        queue.put(str(own.restore(image).shape))
    except Exception as error:
        queue.put(f"{type(error).__name__}: {error}")

context = multiprocessing.get_context("fork")
queue = context.Queue()
process = context.Process(target=work, args=(queue,))
process.start()
print(queue.get(timeout=280))
process.join(10)
"""


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no forks there")
@pytest.mark.parametrize("used", ["used", "unused"])
@pytest.mark.parametrize("child", ["as it is", "one"])
def test_a_restorer_in_a_fork_says_so_or_works(used, child):
    _check_fork(used, child)


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no forks there")
def test_a_restorer_that_is_sent_to_a_fork_says_so_too():
    """As `multiprocessing.Pool` sends it: the work would never end."""
    _check_fork("used", "as it is", "pickled")


def _check_fork(used, child, *how):
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    arguments = [sys.executable, "-c", FORK, used, child, *how]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=300, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    if child == "one":
        assert done.stdout.strip() == "(40, 50, 3)"
    else:
        assert "is used in a fork of it" in done.stdout and "spawn" in done.stdout


PICKLED = """
import pickle, sys
import numpy as np, torch

torch.set_num_threads(2)
with open("restorer", "rb") as file:
    np.save("result", pickle.load(file).restore(np.load("image.npy")))
"""


def test_a_restorer_can_be_copied_and_sent_to_another_process(tmp_path):
    restorer = Restorer("denoise", device="cpu", strength=0.5)
    images = [np.random.default_rng(0).random(shape, dtype=np.float32) for shape in ((12, 14, 3), (9, 10))]
    wanted = [restorer.restore(image) for image in images]
    for made in (copy.deepcopy(restorer), copy.copy(restorer), pickle.loads(pickle.dumps(restorer))):
        for image, want in zip(images, wanted):
            np.testing.assert_allclose(made.restore(image), want, atol=1e-6)
        assert kept_info(made.network).frozen == kept_info(made.network).layers
        assert made.several_at_once(2) is not None and made.for_clips().task == "denoise"
    assert copy.deepcopy(restorer).network is not restorer.network
    np.save(tmp_path / "image.npy", images[0])
    (tmp_path / "restorer").write_bytes(pickle.dumps(restorer))
    subprocess.run([sys.executable, "-c", PICKLED], cwd=tmp_path, env=os.environ | {"PYTHONPATH": ROOT}, check=True)
    np.testing.assert_allclose(np.load(tmp_path / "result.npy"), wanted[0], atol=1e-5)


OTHER_CONTAINER = """
import os, pickle, sys

number = os.getpid
os.getpid = lambda: int(sys.argv[1])  # of the first process of a container, as of the one in which it was made
import torch, vheatir.restore.restorer

os.getpid = number
torch.set_num_threads(2)
with open("restorer", "rb") as file:
    pickle.load(file)._check_process()
"""


def test_a_restorer_may_come_from_another_container_whose_processes_have_the_same_numbers(tmp_path):
    (tmp_path / "restorer").write_bytes(pickle.dumps(Restorer("denoise", device="cpu")))
    arguments = [sys.executable, "-c", OTHER_CONTAINER, str(os.getpid())]
    subprocess.run(arguments, cwd=tmp_path, env=os.environ | {"PYTHONPATH": ROOT}, check=True)


FORK_OF_FORK = """
import os, pickle
import torch
from vheatir import Restorer
from vheatir.errors import UserError

if os.fork():
    raise SystemExit(os.waitstatus_to_exitcode(os.wait()[1]))
torch.set_num_threads(2)
packed = pickle.dumps(Restorer("denoise", device="cpu"))
pickle.loads(packed)._check_process()
if os.fork():
    os._exit(os.waitstatus_to_exitcode(os.wait()[1]))
torch.set_num_threads(2)
try:
    pickle.loads(packed)._check_process()
except UserError:
    os._exit(0)
os._exit(3)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks there")
def test_a_restorer_that_is_sent_to_a_fork_of_a_fork_says_so_too():
    subprocess.run([sys.executable, "-c", FORK_OF_FORK], env=os.environ | {"PYTHONPATH": ROOT}, timeout=300, check=True)
