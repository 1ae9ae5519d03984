"""Data sets of timm's readers: those that give images in a row resume like the others, what is missing is named."""

import importlib.util
import tarfile
from pathlib import Path

import pytest
import torch

pytest.importorskip("timm", reason="training backbones needs the extra `backbone`")

from torchvision.transforms.functional import to_tensor

from tests.backbone.classification import small
from tests.backbone.classification.test_classify import assert_same_run
from tests.backbone.stops import interrupted_before
from vheatir.backbone.classification import streams
from vheatir.backbone.classification.dataset import Samples
from vheatir.backbone.classification.readers import make_reader
from vheatir.backbone.classification.recipe import ClassificationData
from vheatir.backbone.classification.streams import Stream, StreamedTraining
from vheatir.backbone.errors import DataError
from vheatir.backbone.training.batches import EpochPlan, checked, train_loader, val_loader
from vheatir.errors import UserError
from vheatir.pretrain import main

SHARDS = 4


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    """48 training and 6 evaluation images as WebDataset: train-<n>.tar, val-0.tar, each image beside its class."""
    pytest.importorskip("webdataset", reason="streamed data sets need the extra `readers`")
    root = small.make_images(tmp_path_factory.mktemp("shards"), train=16, val=2)
    for split, count in (("train", SHARDS), ("val", 1)):
        paths = sorted((root / split).rglob("*.png"))
        for shard in range(count):
            with tarfile.open(root / f"{split}-{shard}.tar", "w") as archive:
                for number, path in enumerate(paths[shard::count]):
                    archive.add(path, f"{number:03d}.png")
                    label = path.with_suffix(".cls")
                    label.write_text(str(sorted(small.COLORS).index(path.parent.name)))
                    archive.add(label, f"{number:03d}.cls")
    return root


TRAIN, VAL = f"train-{{0..{SHARDS - 1}}}.tar|48", "val-0.tar|6"


def recipe_of(folder: Path, root: Path, **data) -> str:
    streamed = {"reader": "wds/x", "train": TRAIN, "val": VAL, **data}
    return str(small.make_recipe(folder, root, data=streamed))


def seen(loader) -> list[bytes]:
    """Every image, to be told apart by its bytes."""
    return [image.numpy().tobytes() for images, _ in checked(loader) for image in images]


def stream(root: Path, split: str) -> Stream:
    return Stream(ClassificationData(str(root), "wds/x"), split, to_tensor, 3)


@pytest.mark.parametrize("world", [1, 2])
def test_evaluation_sees_each_image_once(shards, world):
    found = [seen(val_loader(stream(shards, VAL), 4, rank, world, 0, False)) for rank in range(world)]
    folder = seen(
        val_loader(Samples(make_reader(ClassificationData(str(shards)), "val"), to_tensor, 3), 4, 0, 1, 0, False)
    )
    assert sorted(found[0] + found[-1] * (world - 1)) == sorted(folder) and len(set(folder)) == 6


def test_an_epoch_shows_each_image_once_in_an_order_of_its_own(shards):
    plan = EpochPlan(48, 4, accumulate=2)
    first, second = (seen(train_loader(stream(shards, TRAIN), plan, e * 6, e * 6 + 6, 0, False)) for e in (0, 1))
    assert len(set(first)) == 48 and sorted(first) == sorted(second) and first != second
    other = seen(train_loader(stream(shards, TRAIN), EpochPlan(48, 4, accumulate=2, seed=1), 0, 6, 0, False))
    assert other != first


@pytest.mark.parametrize("workers", [0, 3])
def test_a_later_start_gives_the_same_batches(shards, workers):
    plan = EpochPlan(48, 4)
    whole = seen(train_loader(stream(shards, TRAIN), plan, 0, 20, workers, False))
    assert seen(train_loader(stream(shards, TRAIN), plan, 14, 20, workers, False)) == whole[14 * 4 :]


@pytest.mark.parametrize("rank", [0, 1])
def test_shares_of_shards_are_those_of_the_plan(rank, monkeypatch):
    """Loader processes that are not forked, as by default from Python 3.14 on, know nothing of torch.distributed."""

    class Reader(list):
        num_samples = 8
        dist_rank = 0
        dist_num_replicas = 1

    reader = Reader([("image", 0)])
    monkeypatch.setattr(streams, "open_timm_reader", lambda *args, **how: reader)
    plan = EpochPlan(8, 2, rank=rank, world=2)
    found = StreamedTraining(Stream(ClassificationData("", "wds/x"), "train", to_tensor, 3), plan, 0, 1)
    assert next(found._epoch(0)) == ("image", 0)
    assert (reader.dist_rank, reader.dist_num_replicas) == (rank, 2)


def test_a_run_on_a_stream_learns_and_goes_on_as_if_it_had_not_stopped(shards, tmp_path):
    assert main(["-opt", recipe_of(tmp_path / "a", shards)]) == 0
    with interrupted_before(9):
        main(["-opt", recipe_of(tmp_path / "b", shards)])
    assert main(["-opt", recipe_of(tmp_path / "b", shards), "--resume"]) == 0
    assert_same_run(tmp_path / "b" / "runs" / "small", tmp_path / "a" / "runs" / "small")


def test_too_many_loaders_for_the_shards_are_named(shards):
    loader = train_loader(stream(shards, VAL), EpochPlan(6, 2), 0, 3, 2, False)
    with pytest.raises(DataError, match=r"fewer shards than processes x data\.workers"):
        seen(loader)


def test_torchvisions_data_sets_are_read(tmp_path):
    root = small.make_images(tmp_path, train=2, val=1)
    folder = Samples(make_reader(ClassificationData(str(root)), "train"), to_tensor, 3)
    other = Samples(make_reader(ClassificationData(str(root), "torch/image_folder"), "train"), to_tensor, 3)
    assert len(other) == len(folder) == 6
    assert all(torch.equal(a[0], b[0]) and a[1] == b[1] for a, b in zip(folder, other, strict=True))


@pytest.mark.parametrize(
    "data, message",
    [
        ({"reader": "wds/x", "val": "val-0.tar"}, r"nothing states how many images it holds"),
        ({"reader": "wds/x", "val": "test"}, r"split test, root .*: split test not found"),
        ({"reader": "disk/x"}, r"timm knows the prefixes wds, hfds, hfids, tfds, torch"),
        ({"reader": "torch/unheard"}, r"Unknown torchvision dataset unheard"),
        ({"reader": "torch/cifar10"}, r"torch/cifar10, split .*not found"),
    ],
)
def test_what_is_wrong_is_named(shards, tmp_path, data, message):
    with pytest.raises(UserError, match=message):
        main(["-opt", recipe_of(tmp_path, shards, **{"train": "train-0.tar|12", "val": "val-0.tar|6", **data})])


def test_streams_refuse_what_needs_access_to_any_image(shards, tmp_path):
    recipe = recipe_of(tmp_path, shards)
    with pytest.raises(UserError, match=r"augment\.repeats 2: data\.reader wds/x gives each image once"):
        main(["-opt", recipe, "--set", "augment.repeats=2"])
    (tmp_path / "map.txt").write_text("red 0\n")
    with pytest.raises(UserError, match=r"val\.subset .* needs data\.reader folder, not wds/x"):
        main(["-opt", recipe, "--set", f"val.subset={tmp_path}/map.txt"])


@pytest.mark.parametrize(
    "reader, message",
    [
        ("wds/x", r"needs webdataset; run: pip install 'vheatir\[readers\]'"),
        ("hfds/x", r"needs datasets; run: pip install 'vheatir\[readers\]'"),
        ("tfds/x", r"needs tensorflow_datasets; run: pip install tensorflow tensorflow-datasets"),
    ],
)
def test_a_missing_library_is_named(reader, message, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    gone = ("webdataset", "datasets", "tensorflow_datasets")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in gone else find(name))
    root = small.make_images(tmp_path / "set", train=1, val=1)
    with pytest.raises(UserError, match=message):
        main(["-opt", str(small.make_recipe(tmp_path, root, data={"reader": reader}))])
