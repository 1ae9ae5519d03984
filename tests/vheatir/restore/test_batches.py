"""Small images of many threads: batches on several lanes give what each image alone gives, errors stay apart."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from vheatir.restore.batches import BATCH_PIXELS, Batches
from vheatir.restore.jobs import Job
from vheatir.restore.one_file import FileOptions
from vheatir.restore.restorer import Restorer
from vheatir.restore.workers import outcomes, usual_workers

SIDE = 64
MOST = BATCH_PIXELS // SIDE**2


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


class Work:
    """Adds the level; notes batches and how many run at once. Images that begin with NaN raise."""

    def __init__(self, seconds=0.02):
        self.sizes, self.threads, self.at_once, self.most, self.seconds = [], set(), 0, 0, seconds
        self.lock = threading.Lock()

    def __call__(self, images, levels):
        with self.lock:
            self.at_once += 1
            self.most = max(self.most, self.at_once)
            self.sizes.append(len(images))
            self.threads.add(torch.get_num_threads())
        time.sleep(self.seconds)
        with self.lock:
            self.at_once -= 1
        if torch.isnan(images[:, 0, 0, 0]).any():
            raise ValueError("an image that cannot be done")
        return images + torch.tensor(levels)[:, None, None, None]


def call_all(batches, images, threads, whole=True):
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(lambda pair: batches.call(pair[1], float(pair[0]), whole=whole), enumerate(images)))


def images_of(count, side=SIDE):
    return list(torch.rand(count, 3, side, side).split(1))


def test_waiting_images_go_together_and_each_gets_its_own_result(two_threads):
    work, images = Work(), images_of(24)
    batches = Batches(work)
    with batches.lanes(2):
        results = call_all(batches, images, 12)
    for number, (image, result) in enumerate(zip(images, results, strict=True)):
        assert torch.equal(result, image + number)
    assert sum(work.sizes) == 24 and 1 < max(work.sizes) <= MOST
    assert work.most == 2 and work.threads == {1}
    assert torch.get_num_threads() == 2


def test_an_image_that_fails_in_a_batch_fails_alone(two_threads):
    images = images_of(12)
    images[5][0, 0, 0, 0] = torch.nan
    batches, failed = Batches(Work()), []

    def call(number):
        try:
            return batches.call(images[number], 1.0, whole=True)
        except ValueError as error:
            failed.append((number, str(error)))

    with batches.lanes(2), ThreadPoolExecutor(12) as pool:
        results = list(pool.map(call, range(12)))
    assert failed == [(5, "an image that cannot be done")]
    assert all(torch.equal(results[number], images[number] + 1) for number in range(12) if number != 5)


@pytest.mark.parametrize("side, whole", [(SIDE, False), (264, True)])
def test_tiles_and_large_images_run_alone_on_all_threads(side, whole, two_threads):
    work = Work()
    batches = Batches(work)
    with batches.lanes(2):
        call_all(batches, images_of(6, side), 4, whole)
    assert work.sizes == [1] * 6 and work.most == 1 and work.threads == {2}


def test_large_and_small_images_never_run_at_the_same_time(two_threads):
    running, bad = set(), []

    def run(images, levels):
        large = images.shape[-1] > SIDE
        running.add((large, number := threading.get_ident()))
        time.sleep(0.005)
        if any(one != large for one, _ in running) or (large and len(running) > 1):
            bad.append(set(running))
        running.discard((large, number))
        return images

    batches = Batches(run)
    images = [image for pair in zip(images_of(10), images_of(10, 264), strict=True) for image in pair]
    with batches.lanes(2):
        results = call_all(batches, images, 8)
    assert len(results) == 20 and bad == []


def test_without_lanes_one_at_a_time():
    work = Work(0.002)
    call_all(Batches(work), images_of(8), 4)
    assert work.sizes == [1] * 8 and work.most == 1


@pytest.mark.parametrize("task, shape", [("denoise", (40, 56, 3)), ("denoise", (40, 56)), ("photo", (5, 6, 3))])
def test_several_at_once_restore_as_one_alone(task, shape, two_threads):
    restorer = Restorer(task)
    images = [np.random.default_rng(seed).uniform(size=shape).astype(np.float32) for seed in range(8)]
    expected = [restorer.restore(image) for image in images]
    with restorer.several_at_once(2), ThreadPoolExecutor(8) as pool:
        found = list(pool.map(restorer.restore, images))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-6)


def test_small_files_get_more_workers_and_a_broken_one_fails_alone(tmp_path, tiny, two_threads):
    sources = [tiny.image(tmp_path / f"{number}.png", (40, 40, 3)) for number in range(6)]
    sources[2].write_bytes(b"no image")
    jobs = [Job(source, tmp_path / "out" / source.name) for source in sources]
    assert usual_workers(jobs) >= usual_workers([Job(tmp_path / "0.png", tmp_path)])
    with open(tmp_path / "large.png", "wb") as file:
        file.truncate(1 << 20)
    assert usual_workers([*jobs, Job(tmp_path / "large.png", tmp_path)]) <= 4
    found = dict(outcomes(Restorer(), jobs, FileOptions(), 6, lambda number, share: None))
    assert [found[number].status for number in range(6)] == ["done"] * 2 + ["failed"] + ["done"] * 3
    assert len(list((tmp_path / "out").iterdir())) == 5
