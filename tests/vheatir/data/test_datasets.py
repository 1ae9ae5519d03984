"""Samples are a pure function of (seed, number); crops and pairs are as stated; wrong options name themselves."""

import itertools
from collections import Counter
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from vheatir.data.datasets import PairedDataset, augment
from vheatir.data.sampling import IterationSampler
from vheatir.data.sources import ImageSource
from vheatir.errors import UserError
from vheatir.prepare.patches import make_lmdb

KINDS = ("noise", "jpeg")


def assert_same(left, right, note=""):
    assert left.keys() == right.keys()
    for key, value in left.items():
        same = torch.equal(value, right[key]) if torch.is_tensor(value) else value == right[key]
        assert same, f"{note} {key} differs"


@pytest.mark.parametrize("kind", KINDS)
def test_sample_depends_on_seed_and_number_only(kind, photo_folder, build):
    root = photo_folder()
    forward, backward = build(kind, root), build(kind, root)
    first = {n: forward[n] for n in range(30)}
    np.random.seed(7)  # noqa: NPY002 (whatever the global states are)
    torch.manual_seed(7)
    for n in reversed(range(30)):
        assert_same(first[n], backward[n], f"sample {n}")
    other = build(kind, root, seed=1)
    assert sum(torch.equal(first[n]["lq"], other[n]["lq"]) for n in range(30) if first[n]["lq_path"]) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_no_two_epochs_repeat_a_sample(kind, photo_folder, build):
    dataset = build(kind, photo_folder())
    drawn = {dataset[n]["lq"].numpy().tobytes() for n in range(5 * len(dataset))}
    assert len(drawn) == 5 * len(dataset)


@pytest.mark.parametrize(
    ("kind", "workers", "method", "storage"),
    [*itertools.product(KINDS, (1, 2), ["fork"], ["folder", "lmdb"]), ("noise", 2, "spawn", "lmdb")],
)
def test_workers_and_storage_do_not_change_the_batches(kind, workers, method, storage, photo_folder, tmp_path, build):
    root = photo_folder()
    dataset = build(kind, root)
    want = list(DataLoader(dataset, batch_sampler=IterationSampler(4, 6)))
    if storage == "lmdb":
        make_lmdb(root, tmp_path / "packed.lmdb")
        dataset = build(kind, tmp_path / "packed.lmdb", io_backend={"type": "lmdb"})
        dataset.check()  # opens the LMDB before the workers start
    sampler = IterationSampler(4, 6)
    got = list(DataLoader(dataset, batch_sampler=sampler, num_workers=workers, multiprocessing_context=method))
    for left, right in zip(want, got, strict=True):
        for key in ("lq", "gt", "level"):
            assert torch.equal(left[key], right[key]), key


@pytest.mark.parametrize("kind", KINDS)
def test_resumed_loader_continues_bit_for_bit(kind, photo_folder, build):
    root = photo_folder()
    whole = list(DataLoader(build(kind, root), batch_sampler=IterationSampler(4, 8)))
    resumed = DataLoader(build(kind, root), batch_sampler=IterationSampler(4, 8, start_iteration=3), num_workers=2)
    for left, right in zip(whole[3:], resumed, strict=True):
        assert_same(left, right)


def test_two_ranks_together_see_what_one_process_sees(photo_folder, build):
    dataset = build("noise", photo_folder())
    whole = DataLoader(dataset, batch_sampler=IterationSampler(4, 3))
    ranks = [DataLoader(dataset, batch_sampler=IterationSampler(4, 3, rank=rank, world_size=2)) for rank in (0, 1)]
    for batch, *parts in zip(whole, *ranks, strict=True):
        assert torch.equal(batch["lq"], torch.cat([part["lq"] for part in parts]))


def test_each_epoch_visits_every_image_once_in_its_own_order(photo_folder, build):
    dataset = build("noise", photo_folder())
    orders = [tuple(dataset[n]["gt_path"] for n in range(9 * epoch, 9 * epoch + 9)) for epoch in range(4)]
    assert all(len(set(order)) == 9 for order in orders)
    assert len(set(orders)) == 4


@pytest.mark.parametrize("cache", ["none", "memory"])
def test_cache_does_not_change_samples_and_samples_do_not_change_the_cache(cache, photo_folder, build):
    root = photo_folder()
    dataset, plain = build("jpeg", root, cache=cache), build("jpeg", root)
    dataset.check()
    for n in (0, 5, 0, 12):
        assert_same(dataset[n], plain[n])


def test_augment_makes_the_eight_symmetries():
    image = np.arange(12).reshape(3, 4)
    results = {augment(image, mode).tobytes() + bytes(augment(image, mode).shape) for mode in range(8)}
    assert len(results) == 8
    turns = [np.rot90(side, k) for side in (image, image[:, ::-1]) for k in range(4)]
    for mode in range(8):
        assert any(augment(image, mode).shape == t.shape and (augment(image, mode) == t).all() for t in turns)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 8),
        ({"augment": True}, 8),
        ({"augment": False}, 1),
        ({"use_hflip": True, "use_rot": True}, 8),
        ({"use_hflip": True, "use_rot": False}, 2),
        ({"use_hflip": False, "use_rot": True}, 4),
        ({"use_hflip": False, "use_rot": False}, 1),
    ],
    ids=str,
)
def test_augmentations_that_occur(options, expected, tmp_path, build):
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), image[..., ::-1])
    dataset = build("noise", tmp_path, gray_probability=0, **options)
    seen = Counter((dataset[n]["gt"] * 255).round().byte().numpy().tobytes() for n in range(40 * expected))
    possible = {np.ascontiguousarray(augment(image, mode).transpose(2, 0, 1)).tobytes() for mode in range(8)}
    assert set(seen) <= possible and len(seen) == expected
    assert min(seen.values()) > 15, "each about equally often"


def test_crops_reach_every_corner(tmp_path, build):
    rows, columns = np.mgrid[:36, :37]
    cv2.imwrite(str(tmp_path / "a.png"), np.dstack([rows * 0, columns, rows]).astype(np.uint8))  # R = y, G = x
    dataset = build("noise", tmp_path, augment=False, sigma=0, gray_probability=0)
    corners = {tuple(int(v) for v in (dataset[n]["gt"][:2, 0, 0] * 255).round()) for n in range(400)}
    assert corners == set(itertools.product(range(5), range(6)))
    assert torch.equal(dataset[0]["lq"], dataset[0]["gt"]), "sigma 0 changes nothing"


@pytest.mark.parametrize(("kind", "needed"), [("noise", 70), ("jpeg", 70 + 32)])
def test_images_too_small_are_listed_before_training_and_named_in_it(kind, needed, photo_folder, build):
    root = photo_folder(size=69)
    dataset = build(kind, root, gt_size=70)
    with pytest.raises(UserError, match="9 of 9") as caught:
        dataset.check()
    assert f"at least {needed}" in str(caught.value)
    with pytest.raises(UserError, match=r"photo\d"):
        dataset[0]


def test_check_wants_color_unless_gray_is_asked_for(photo_folder, build):
    root = photo_folder()
    cv2.imwrite(str(root / "plane.png"), np.zeros((80, 80), np.uint8))
    build("noise", root).check()
    build("noise", root, in_chans=1).check()
    with pytest.raises(UserError, match=r"plane\.png: is gray"):
        build("noise", root, gray_probability=0).check()


@pytest.mark.parametrize("workers", [0, 1])
def test_broken_file_names_itself_through_the_loader(workers, photo_folder, build):
    root = photo_folder()
    dataset = build("noise", root)
    (root / "photo2.png").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"photo2\.png"):
        list(DataLoader(dataset, batch_sampler=IterationSampler(9, 1), num_workers=workers))


# pairs


@pytest.fixture
def pairs(photo_folder, tmp_path):
    """Clean images and the same, darkened by 10 levels, as PNG."""
    gt, lq = photo_folder("gt"), tmp_path / "lq"
    source = ImageSource(gt)
    for stem, key in source.by_stem().items():
        (lq / stem).parent.mkdir(parents=True, exist_ok=True)
        dark = np.clip(source.read(key).astype(int) - 10, 0, 255).astype(np.uint8)
        cv2.imwrite(str(lq / f"{stem}.png"), dark[..., ::-1])

    def make(**options):
        return PairedDataset({"phase": "train", "gt_size": 32, "dataroot_gt": gt, "dataroot_lq": lq, **options})

    return SimpleNamespace(gt=gt, lq=lq, build=make)


@pytest.mark.parametrize("phase", ["train", "val"])
def test_pairs_stay_together_under_crops_and_symmetries(pairs, phase):
    dataset = pairs.build(phase=phase)
    for n in range(27 if phase == "train" else 9):
        sample = dataset[n]
        assert torch.allclose(sample["lq"], (sample["gt"] - 10 / 255).clamp(min=0), atol=1e-6)
        stems = [sample[name].rsplit("photo", 1)[1].split(".")[0] for name in ("lq_path", "gt_path")]
        assert stems[0] == stems[1]


def test_pairs_from_lmdbs_equal_pairs_from_folders(pairs, tmp_path):
    packed = {side: tmp_path / f"{side}.lmdb" for side in ("gt", "lq")}
    for side, path in packed.items():
        make_lmdb(getattr(pairs, side), path)
    folder = pairs.build()
    lmdb = pairs.build(dataroot_gt=packed["gt"], dataroot_lq=packed["lq"], io_backend={"type": "lmdb"})
    for n in range(20):
        for name in ("lq", "gt"):
            assert torch.equal(folder[n][name], lmdb[n][name])


def test_one_folder_for_both_sides_is_refused(pairs, tmp_path):
    (tmp_path / "link").symlink_to(pairs.gt, target_is_directory=True)
    for place in (pairs.gt, tmp_path / "link"):
        with pytest.raises(UserError, match=r"dataroot_lq: .* is dataroot_gt too"):
            pairs.build(dataroot_lq=place)
    (tmp_path / "list.txt").write_text("photo0.jpg (80,80,3)\n")
    (pairs.gt / "photo0_dark.png").write_bytes((pairs.lq / "photo0.png").read_bytes())
    both = pairs.build(dataroot_lq=pairs.gt, filename_tmpl="{}_dark", meta_info_file=tmp_path / "list.txt")
    assert len(both) == 1 and both[0]["lq_path"].endswith("photo0_dark.png")


def test_images_without_partner_are_listed(pairs):
    (pairs.lq / "photo0.png").unlink()
    (pairs.gt / "below" / "photo1.png").unlink()
    with pytest.raises(UserError, match=r"2 images have no partner.*below/photo1, photo0"):
        pairs.build()


def test_pairs_of_different_size_are_listed(pairs):
    cv2.imwrite(str(pairs.lq / "photo0.png"), np.zeros((50, 60, 3), np.uint8))
    dataset = pairs.build()
    with pytest.raises(UserError, match=r"(?s)1 of 9.*photo0\.png: size \(50, 60\)"):
        dataset.check()


@pytest.mark.parametrize("in_chans", [1, 3])
def test_a_gray_file_beside_a_color_image_is_listed(in_chans, pairs):
    """The network would be trained to guess colors; where only gray is trained, nothing is wrong."""
    for name in ("photo0", "photo2"):
        path = pairs.lq / f"{name}.png"
        cv2.imwrite(str(path), cv2.imread(str(path), cv2.IMREAD_GRAYSCALE))
    gray = cv2.imread(str(pairs.gt / "photo2.png"), cv2.IMREAD_GRAYSCALE)
    cv2.imwrite(str(pairs.gt / "photo2.png"), np.repeat(gray[..., None], 3, 2))  # gray in three equal channels
    dataset = pairs.build(in_chans=in_chans)
    if in_chans == 1:
        dataset.check()
        return
    with pytest.raises(UserError, match=r"(?s)1 of 9.*photo0\.png: is gray, but .*photo0\.jpg is in color"):
        dataset.check()


# a degradation of one's own


@pytest.mark.parametrize(
    ("degrade", "message"),
    [
        (lambda image: (image * 255).astype(np.uint8), "gave uint8 values, expected floats"),
        (lambda image: image * 255, r"expected \[0, 1\]; divide by"),
        (lambda image: np.log(image - 2), "gave NaN or infinity"),
        (lambda image: image[:4], r"gave \(4, 32, 3\)"),
        (lambda image: None, "gave NoneType"),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value")
def test_an_own_degradation_on_another_scale_is_refused(degrade, message, photo_folder):
    from vheatir.data.custom import DegradationDataset

    class Own(DegradationDataset):
        def degrade(self, image, rng):
            return degrade(image)

    with pytest.raises(UserError, match=f"Own.degrade {message}" if message.startswith("gave") else message):
        Own({"phase": "train", "gt_size": 32, "dataroot_gt": photo_folder("gt")})[0]


# options


@pytest.mark.parametrize(
    ("kind", "options", "key"),
    [
        ("noise", {"sigma": "25"}, "sigma"),
        ("noise", {"sigma": None}, "sigma"),
        ("noise", {"sigma": []}, "sigma"),
        ("noise", {"sigma": True}, "sigma"),
        ("noise", {"sigma": -1}, "sigma"),
        ("noise", {"sigma": {"min": 50, "max": 15}}, "sigma"),
        ("noise", {"sigma": {"low": 0, "high": 55}}, "sigma"),
        ("noise", {"sigma": {"min": 0, "max": 55, "log": True}}, "sigma: a range with log: true starts above 0"),
        ("noise", {"sigma": {"min": 5, "max": 55, "log": 1}}, "sigma: log: expected true or false, got 1"),
        ("noise", {"sigma": {"min": 5, "log": True}}, "sigma: a range is written"),
        ("noise", {"sigma": [15, 25], "phase": "val"}, "sigma"),
        ("noise", {"sigma": {"min": 0, "max": 5}, "phase": "test_1"}, "sigma"),
        ("noise", {"gt_size": None}, "gt_size"),
        ("noise", {"gt_size": 0}, "gt_size"),
        ("noise", {"gt_size": 32.0}, "gt_size"),
        ("noise", {"in_chans": 2}, "in_chans"),
        ("noise", {"in_chans": 4}, "in_chans"),
        ("noise", {"seed": -1}, "seed"),
        ("noise", {"gray_probability": 1.5}, "gray_probability"),
        ("noise", {"cache": "disk"}, "cache"),
        ("noise", {"io_backend": {"type": "petrel"}}, "io_backend"),
        ("noise", {"augment": "none"}, "augment: expected true or false, got 'none'"),
        ("noise", {"use_hflip": "no way"}, "use_hflip: expected true or false"),
        ("noise", {"use_rot": [True]}, "use_rot: expected true or false"),
        ("noise", {"level_map": "off"}, "level_map: expected true or false"),
        ("jpeg", {"subsampling": [["4:2:0"]]}, "subsampling: expected a list of"),
        ("noise", {"io_backend": "lmdb"}, "io_backend: expected {type: disk} or {type: lmdb}, got 'lmdb'"),
        ("noise", {"io_backend": {"typ": "lmdb"}}, "io_backend: expected {type: disk}"),
        ("noise", {"dataroot_gt": None}, "dataroot_gt"),
        ("jpeg", {"quality": 0}, "quality"),
        ("jpeg", {"quality": 101}, "quality"),
        ("jpeg", {"quality": 10.5}, "quality"),
        ("jpeg", {"double_probability": "often"}, "double_probability"),
        ("jpeg", {"double_quality": [0]}, "double_quality"),
        ("jpeg", {"subsampling": ["4:1:1"]}, "subsampling"),
        ("jpeg", {"subsampling": "4:4:4"}, "subsampling"),
        ("jpeg", {"subsampling": ["4:4:4"], "on_device": ["augment", "jpeg_approximate"]}, "subsampling"),
    ],
    ids=str,
)
def test_wrong_option_names_its_key(kind, options, key, photo_folder, build):
    with pytest.raises(UserError, match=key):
        build(kind, **{"root": photo_folder(), **options})


@pytest.mark.parametrize("kind", KINDS)
def test_every_option_in_use_is_listed_for_the_option_check(kind, photo_folder, build):
    options = type(build(kind, photo_folder())).OPTIONS
    assert {"dataroot_gt", "gt_size", "augment", "seed", "cache", "in_chans", "io_backend", "level_map"} <= options
    assert ("sigma" if kind == "noise" else "quality") in options


def test_training_numbers_have_no_end_and_test_numbers_do(photo_folder, build):
    root = photo_folder()
    assert build("noise", root)[10**12]["lq"].shape == (3, 32, 32)
    with pytest.raises(IndexError):
        build("noise", root)[-1]
    validation = build("noise", root, phase="val", sigma=25)
    assert len(list(validation)) == len(validation) == 9
