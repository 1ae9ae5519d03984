"""`vheatir test`: scores and images of trained weights, from a YAML file."""

import json

import cv2
import pytest
import torch

from vheatir.cli import main
from vheatir.errors import UserError

pytest.importorskip("basicsr", reason="training needs BasicSR")


@pytest.fixture
def evaluate(recipe, tmp_path, monkeypatch):
    """`vheatir test` on the recipe with `a.b=c` overrides; returns the content of results.json."""
    monkeypatch.chdir(tmp_path)

    def run(*overrides, status=0):
        argv = [
            "test",
            "-opt",
            str(recipe),
            "--out",
            "scores",
            *(part for text in overrides for part in ("--set", text)),
        ]
        assert main(argv) == status
        return json.loads((tmp_path / "scores" / "tiny" / "results.json").read_text()) if status == 0 else None

    return run


@pytest.fixture
def trained(train):
    return train()


def test_scores_and_images_are_written(evaluate, trained, train, small_photos, tmp_path, capsys):
    best = trained / "models" / "best.safetensors"
    again = (
        f"datasets.test_50={{type: GaussianNoiseDataset, dataroot_gt: {small_photos / 'val'}, sigma: 50, name: loud}}"
    )
    content = evaluate(f"path.pretrain_network_g={best}", "network_g={type: VHeatIR}", again, "val.save_img=true")
    first, second = content["results"]
    assert (first["data"], first["level"], second["data"], second["level"]) == ("val", 25, "loud", 50)
    assert len(first["per_image"]) == first["images"] == 2
    points = [point for point in train.curves(trained) if "val/psnr" in point]
    assert first["restored"]["psnr"] == pytest.approx(max(point["val/psnr"] for point in points), abs=0.02)
    assert first["input"]["psnr"] == pytest.approx(points[0]["val/input_psnr"], abs=1e-9)
    assert content["metadata"]["weights"] == str(best) and "command" in content["metadata"]
    for name in ("val/val0.png", "val/val1.png", "loud/val0.png"):
        assert cv2.imread(str(tmp_path / "scores" / "tiny" / name)).shape == (32, 32, 3)
    shown = capsys.readouterr()
    assert f"weights: {best}\n" in shown.out and "restored" in shown.out and "note:" not in shown.err


def test_a_recipe_of_a_training_says_that_its_weights_are_those_before(recipe, trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    before = trained / "models" / "latest.safetensors"
    text = recipe.read_text()
    assert "path: {" in text
    recipe.write_text(text.replace("path: {", f"path: {{pretrain_network_g: '{before}', "))
    assert main(["test", "-opt", str(recipe), "--out", "scores"]) == 0
    shown = capsys.readouterr()
    assert f"weights: {before}\n" in shown.out
    assert f"is of a training, which begins from the weights {before}; for those that it left add --set" in shown.err


def test_a_checkpoint_of_basicsr_is_scored(evaluate, trained, tmp_path, train):
    torch.save({"params": train.state(trained)["network_ema"]}, tmp_path / "net.pth")
    (a,) = evaluate(f"path.pretrain_network_g={tmp_path / 'net.pth'}")["results"]
    (b,) = evaluate(f"path.pretrain_network_g={trained / 'models' / 'latest.safetensors'}")["results"]
    assert a["restored"]["psnr"] == pytest.approx(b["restored"]["psnr"], abs=0.02)


def test_several_tiles_score_like_the_whole(evaluate, trained):
    weights = f"path.pretrain_network_g={trained / 'models' / 'latest.safetensors'}"
    whole, tiled = (evaluate(weights, f"val.tile={tile}")["results"][0]["restored"]["psnr"] for tile in (0, 16))
    assert whole != tiled and whole == pytest.approx(tiled, abs=0.3)


def test_images_of_two_sets_of_one_name_do_not_replace_each_other(evaluate, trained, small_photos, tmp_path, capsys):
    table = f"{{type: GaussianNoiseDataset, dataroot_gt: {small_photos / 'val'}, sigma: 50, name: val}}"
    given = (f"path.pretrain_network_g={trained / 'models' / 'latest.safetensors'}", f"datasets.test_50={table}")
    evaluate(*given, "val.save_img=true", status=2)
    assert "two data sets are called val" in capsys.readouterr().err
    assert not (tmp_path / "scores" / "tiny" / "val").exists()
    assert [result["data"] for result in evaluate(*given)["results"]] == ["val", "val"]


@pytest.mark.parametrize(
    "overrides, message",
    [
        ((), "path.pretrain_network_g is missing"),
        (("path.pretrain_network_g=nowhere",), "neither a file nor a shipped name"),
        (
            ("path.pretrain_network_g=x.pth", "datasets.val.dataroot_gt=nowhere"),
            "datasets.val: nowhere: no such folder",
        ),
    ],
)
def test_what_is_missing_is_named(evaluate, capsys, overrides, message):
    evaluate(*overrides, status=2)
    err = capsys.readouterr().err
    assert message in err and "Traceback" not in err


def test_the_weights_beside_the_options_of_a_run_are_named(recipe, tmp_path, capsys):
    run = tmp_path / "experiments" / "tiny"
    (run / "models").mkdir(parents=True)
    (run / "resolved.yml").write_text(recipe.read_text())
    for name in ("latest", "best"):
        (run / "models" / f"{name}.safetensors").write_bytes(b"")
    assert main(["test", "-opt", str(run / "resolved.yml"), "--out", str(tmp_path / "scores")]) == 2
    expected = f"this run add --set path.pretrain_network_g={run / 'models' / 'best.safetensors'}\n"
    assert capsys.readouterr().err.endswith(expected)


def test_a_file_without_test_sets_is_refused(recipe, tmp_path):
    from vheatir.test import evaluate_options
    from vheatir.train.build import complete_options
    from vheatir.train.options import read_options

    options = complete_options(recipe, read_options(recipe), is_train=False)
    del options["datasets"]["val"]
    with pytest.raises(UserError, match="no test or val section"):
        evaluate_options(recipe, options, tmp_path)
