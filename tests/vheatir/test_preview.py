"""`vheatir preview`: sheet, table and JSON of samples and of real pairs; what it refuses."""

import json

import cv2
import numpy as np
import pytest

pytest.importorskip("basicsr", reason="training needs BasicSR")
import vheatir.preview
from vheatir.cli import main
from vheatir.errors import UserError


@pytest.fixture
def pairs(tmp_path):
    """Two pairs of 40x48 whose noise has a standard deviation of 5."""
    folder, rng = tmp_path / "pairs", np.random.default_rng(0)
    folder.mkdir()
    for name in ("one", "two"):
        clean = cv2.GaussianBlur(rng.integers(60, 200, (40, 48, 3), dtype=np.uint8), (0, 0), 3)
        noisy = np.rint(clean + rng.normal(0, 5, clean.shape)).astype(np.uint8)
        cv2.imwrite(str(folder / f"{name}_mean.png"), clean)
        cv2.imwrite(str(folder / f"{name}_real.png"), noisy)
    return folder


def preview(recipe, out, *more):
    return main(["preview", "-opt", str(recipe), "-o", str(out), *map(str, more)])


def test_sheet_table_and_figures_beside_real_pairs(recipe, pairs, tmp_path, capsys):
    out, figures = tmp_path / "new" / "sheet.png", tmp_path / "figures.json"
    count = ["--count", 3, "--measure", 6, "--pairs", pairs, "--json", figures]
    assert preview(recipe, out, "--set", "datasets.train.sigma=5", *count) == 0
    image = cv2.imread(str(out))
    panel = 192  # of 16 pixels, twelve times
    assert image.shape == (2 * (panel + 44), 3 * (3 * (panel + 8) + 8), 3)
    text = capsys.readouterr().out
    assert "luma_1" in text and f"5 shown: {out}" in text
    written = json.loads(figures.read_text())
    assert written["metadata"]["pairs"] == {"samples": 6, str(pairs): 2}
    for found in written["results"].values():
        assert found["std"][1] == pytest.approx(5, rel=0.15) and abs(found["luma_1"][1]) < 0.2


def test_pairs_in_a_folder_called_samples_do_not_take_the_place_of_those(recipe, pairs, tmp_path, monkeypatch):
    pairs.rename(tmp_path / "samples")
    monkeypatch.chdir(tmp_path)
    few = ["--count", 1, "--measure", 3, "--pairs", "samples", "--json", "figures.json"]
    assert preview(recipe, tmp_path / "sheet.png", *few) == 0
    written = json.loads((tmp_path / "figures.json").read_text())
    assert written["metadata"]["pairs"] == {"samples": 3, "./samples": 2}
    assert list(written["results"]) == ["samples", "./samples"]


def test_panels_are_input_target_and_stretched_difference(recipe, tmp_path):
    out = tmp_path / "sheet.png"
    assert preview(recipe, out, "--set", "datasets.train.sigma=0", "--count", 1, "--measure", 1) == 0
    noisy, clean, difference = (cv2.imread(str(out))[8:200, 8 + 200 * k : 200 + 200 * k] for k in range(3))
    np.testing.assert_array_equal(noisy, clean)
    assert (difference == 128).all() and len(np.unique(noisy)) > 20
    assert all((noisy[::12, ::12] == noisy[shift::12, shift::12]).all() for shift in (5, 11))


def test_samples_need_no_section_of_a_training(small_photos, tmp_path):
    data = f"{{type: GaussianNoiseDataset, dataroot_gt: '{small_photos / 'train'}', sigma: 5, gt_size: 16}}"
    recipe = tmp_path / "data.yml"
    recipe.write_text(
        f"name: data\nmodel_type: VHeatIRModel\ndatasets: {{train: {data}}}\nnetwork_g: {{type: VHeatUNet}}\n"
    )
    assert preview(recipe, tmp_path / "sheet.png", "--count", 1, "--measure", 1) == 0


def test_what_it_refuses(recipe, pairs, tmp_path, capsys, monkeypatch):
    def refused(*more, out="sheet.png"):
        assert preview(recipe, tmp_path / out, *more) == 2
        return capsys.readouterr().err

    assert "ends in .png" in refused(out="sheet.jpg")
    assert "at least 1" in refused("--count", 0)
    with monkeypatch.context() as patch:  # refused before hundreds of samples are made
        patch.setattr(vheatir.preview, "samples", None)
        assert "no such folder" in refused("--pairs", tmp_path / "none")
    (tmp_path / "empty").mkdir()
    assert "NAME_real" in refused("--pairs", tmp_path / "empty")
    (pairs / "one_mean.png").rename(pairs / "three_mean.png")
    assert "one, three" in refused("--pairs", pairs)
    (pairs / "three_mean.png").rename(pairs / "one_mean.png")
    cv2.imwrite(str(pairs / "two_mean.png"), np.zeros((20, 20, 3), np.uint8))
    assert "two: _real is (40, 48), _mean (20, 20)" in refused("--pairs", pairs)
    for end in ("real", "mean"):
        cv2.imwrite(str(pairs / f"two_{end}.png"), np.zeros((4, 20, 3), np.uint8))
    assert "two is (4, 20), expected more than 4 pixels" in refused("--pairs", pairs)
    assert not (tmp_path / "sheet.png").exists()


def test_of_large_pairs_only_what_is_shown_is_held(pairs):
    first, _ = vheatir.preview.real_pairs(pairs, 16)
    assert first.noisy.shape == first.clean.shape == (16, 16, 3) and first.noisy.base is None
    whole = cv2.cvtColor(cv2.imread(str(pairs / "one_real.png")), cv2.COLOR_BGR2RGB)
    np.testing.assert_array_equal(first.noisy, whole[12:28, 16:32])
    assert first.measured == next(vheatir.preview.real_pairs(pairs, 99)).measured


def test_pairs_that_cannot_be_read_or_told_apart_are_named(pairs):
    noisy = next(pairs.glob("*_real.png"))
    twin = noisy.with_suffix(".jpg")
    twin.write_bytes(noisy.read_bytes())
    with pytest.raises(UserError, match="differ only in suffix"):
        list(vheatir.preview.real_pairs(pairs, 16))
    twin.unlink()
    noisy.unlink()
    noisy.symlink_to("nowhere")
    with pytest.raises(UserError, match=f"{noisy.name}: cannot be read"):
        list(vheatir.preview.real_pairs(pairs, 16))
