"""Validation during training: tiles, self-ensemble, one table of figures, and images that it could not score."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from vheatir.archs.vheatir_arch import VHeatIR
from vheatir.data.datasets import GaussianNoiseDataset
from vheatir.errors import UserError
from vheatir.image_io import to_uint8
from vheatir.metrics.fidelity import scores_of_degraded
from vheatir.restore.self_ensemble import self_ensemble
from vheatir.train.validation import restore_planes, validation_table

pytest.importorskip("basicsr", reason="training needs BasicSR")


@pytest.fixture(scope="module")
def network() -> VHeatIR:
    torch.manual_seed(0)
    network = VHeatIR(dim=8, depths=[1], embed_size=8).eval()
    torch.nn.init.normal_(network.conv_last.weight, std=0.1)
    return network


def test_self_ensemble_is_the_mean_over_eight_symmetries(network):
    image = torch.rand(1, 3, 21, 34)
    with torch.no_grad():
        restored = []
        for mirrored in (image, image.flip(3)):
            for turns in range(4):
                result = torch.rot90(network(torch.rot90(mirrored, turns, (2, 3))), -turns, (2, 3))
                restored.append(result if mirrored is image else result.flip(3))
        want = torch.stack(restored).mean(0)
        torch.testing.assert_close(restore_planes(network, image, None, 0, ensemble=True), want)
        assert not torch.allclose(want, network(image), atol=1e-4)
    moved = self_ensemble(lambda turned: turned + 1, image)  # each symmetry comes back to its place
    torch.testing.assert_close(moved, image + 1)


def test_tiles_are_small_and_each_of_them_is_averaged(network):
    sizes = []
    network.register_forward_pre_hook(lambda _, inputs: sizes.append(tuple(inputs[0].shape[2:])))
    tiled = restore_planes(network, torch.rand(1, 3, 40, 48), None, 16, ensemble=True)
    assert tiled.shape == (1, 3, 40, 48)
    assert set(sizes) == {(16, 16)} and len(sizes) % 8 == 0 and len(sizes) > 48


def test_options_reach_validation(train):
    scores = []
    for name, options in (("plain", ()), ("tiled", ("val.tile=16",)), ("ensemble", ("val.self_ensemble=true",))):
        folder = train("train.total_iter=4", *options, name=name)
        scores.append([point["val/psnr"] for point in train.curves(folder) if "val/psnr" in point])
    assert len({tuple(score) for score in scores}) == 3


def test_without_metrics_all_three_are_scored_and_stand_in_one_table(train, small_photos):
    second = f"datasets.val_50={{type: GaussianNoiseDataset, dataroot_gt: {small_photos / 'val'}, sigma: 50}}"
    folder = train("val.metrics=~", second)
    (point,) = [point for point in train.curves(folder) if point["iteration"] == 12 and "val/psnr" in point]
    figures = {f"{place}/{side}{name}" for place in ("val", "val_50") for side in ("", "input_") for name in NAMES}
    assert figures <= point.keys()
    table = (folder / "train.log").read_text().split("iteration 12, restored (input):\n")[1].splitlines()[:4]
    assert table[0].split() == list(NAMES)
    for row, place in zip(table[1:3], ("val", "val_50")):
        cells = [f"{point[f'{place}/{name}']:.4f} ({point[f'{place}/input_{name}']:.4f})" for name in NAMES]
        assert row.split() == f"{place} (2) {' '.join(cells)}".split()
    mean = np.mean([point["val/psnrb"], point["val_50/psnrb"]])
    assert table[3].startswith("mean") and f"{mean:.4f}" in table[3]


NAMES = ("psnr", "ssim", "psnrb")


def test_the_input_is_measured_as_the_restored_image_is(train, small_photos):
    cut = "{psnr: {type: vheatir_psnr, border: 3, luma: true}, ssim: {type: calculate_ssim, crop_border: 5}"
    folder = train(f"val.metrics={cut}, psnrb: {{type: vheatir_ssim}}}}", "train.total_iter=1")
    (point,) = [point for point in train.curves(folder) if "val/psnr" in point]
    dataset = GaussianNoiseDataset({"phase": "val", "dataroot_gt": str(small_photos / "val"), "sigma": 25})
    pairs = [[sample[name].numpy().transpose(1, 2, 0) for name in ("lq", "gt")] for sample in dataset]
    inputs = [(lq, to_uint8(gt)) for lq, gt in pairs]
    for name, wanted, how in (
        ("psnr", "psnr", {"border": 3, "luma": True}),
        ("ssim", "ssim", {"border": 5}),
        ("psnrb", "ssim", {}),  # whatever it is called
    ):
        mean = np.mean([scores_of_degraded(*one, **how)[wanted] for one in inputs])
        assert point[f"val/input_{name}"] == pytest.approx(mean), name


def test_a_metric_of_another_name_has_no_input_to_compare_with():
    table = validation_table({"val": {"images": 3, "restored": {"psnr_y": 30.0}, "input": {"psnr": 20.0}}})
    assert table.splitlines()[1].split() == ["val", "(3)", "30.0000"]


def bad_folder(root: Path, packed: bool) -> Path:
    """good, gray, small (10x60) and cut, and one that only training finds too small; as a folder or an LMDB."""
    root.mkdir()
    photo = np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    for name, image in (("good", photo), ("gray", photo[:, :, 0]), ("small", photo[:10]), ("little", photo[:14, :14])):
        assert cv2.imwrite(str(root / f"{name}.png"), image)
    (root / "cut.png").write_bytes((root / "good.png").read_bytes()[:300])
    if not packed:
        return root
    import lmdb

    target = root.with_suffix(".lmdb")
    with lmdb.open(str(target), map_size=2**24) as environment, environment.begin(write=True) as transaction:
        for path in sorted(root.iterdir()):
            transaction.put(path.stem.encode(), path.read_bytes())
    lines = [f"{path.name} (60,60,3) 1\n" for path in sorted(root.iterdir())]
    (target / "meta_info.txt").write_text("".join([*lines, "lost.png (60,60,3) 1\n"]))
    return target


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "lmdb"])
def test_the_check_lists_what_is_wrong_in_all_sets_at_once_before_anything_is_written(train, tmp_path, packed):
    root = bad_folder(tmp_path / "bad", packed)
    with pytest.raises(UserError) as caught:
        train(f"datasets.train.dataroot_gt={root}", f"datasets.val.dataroot_gt={root}")
    training, validation = str(caught.value).split("datasets.val: ")
    assert "datasets.train: " in training
    for text in (training, validation):
        assert "cut.png: the PNG file ends too early (truncated)" in text and "small.png: 10x60 pixels" in text
        assert "good.png" not in text and ("lost.png: is in meta_info.txt but not in data.mdb" in text) == packed
    assert "little.png: 14x14 pixels, expected at least 16" in training and "little" not in validation
    assert "gray.png: is gray, expected color" in training and "gray" not in validation
    assert "expected at least 11 on each side" in validation
    assert not train.root.exists()


def test_a_border_that_the_metrics_cut_off_needs_larger_images(train, small_photos):
    with pytest.raises(UserError, match=r"val0\.png: 32x32 pixels, expected at least 33"):
        train("val.metrics={psnr: {type: vheatir_psnr, border: 11}}")


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            ["network_g.level_map=true", "datasets.train.level_map=true"],
            "does not fit datasets.val, whose images have 3 channels, without a level",
        ),
        (["datasets.val.in_chans=1"], "does not fit datasets.val, whose images have 1 channels"),
    ],
)
def test_a_validation_set_that_does_not_fit_the_network_shows_before_training(train, changes, message):
    with pytest.raises(UserError, match=message):
        train(*changes)
    assert not train.root.exists()


@pytest.mark.parametrize(
    "change, message",
    [
        ("val.tile=8", r"val\.tile: tile must be 0 \(whole image\) or at least 16 pixels, got 8"),
        ("val.self_ensemble=8", r"val\.self_ensemble must be true or false, got 8"),
    ],
)
def test_wrong_values_name_their_key_and_leave_no_run(train, change, message):
    with pytest.raises(UserError, match=message):
        train(change)
    assert not train.root.exists()
