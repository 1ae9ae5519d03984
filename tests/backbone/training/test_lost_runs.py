"""Nothing is lost to a broken image or a failing evaluation."""

import json
from pathlib import Path

import pytest

pytest.importorskip("timm", reason="training backbones needs the extra `backbone`")
pytest.importorskip("pycocotools", reason="detection needs the extra `detection`")

from tests.backbone import dense_data
from tests.backbone.classification import small
from vheatir.errors import UserError


def case(command: str, folder: Path):
    """main, recipe and an image of the evaluation set of a command."""
    import vheatir.detect
    import vheatir.pretrain
    import vheatir.segment

    if command == "pretrain":
        root = small.make_images(folder / "set", train=8, val=2)
        recipe = small.make_recipe(folder, root, train={"epochs": 2, "accumulate": 1})
        return vheatir.pretrain.main, recipe, root / "val" / "red" / "01.png"
    if command == "detect":
        root = dense_data.make_coco(folder / "set")
        recipe = dense_data.detection_recipe(folder, root, val={"every": 1})
        return vheatir.detect.main, recipe, root / "val" / "3.png"
    root = dense_data.make_label_maps(folder / "set")
    return vheatir.segment.main, dense_data.segmentation_recipe(folder, root), root / "images" / "val" / "p2.jpg"


@pytest.mark.parametrize("command", ["pretrain", "detect", "segment"])
@pytest.mark.parametrize("how", ["cut", "garbled"])
def test_a_broken_image_of_val_shows_before_the_run(tmp_path, command, how):
    main, recipe, image = case(command, tmp_path)
    content = image.read_bytes()
    middle = len(content) // 2
    image.write_bytes(content[:middle] if how == "cut" else content[:middle] + b"\0" * 40)
    with pytest.raises(UserError, match=rf"{image.name}: cannot be read as an image"):
        main(["-opt", str(recipe)])
    assert not (tmp_path / "runs").exists()
    if command != "pretrain":
        assert main(["-opt", str(recipe), "--set", "data.invalid=skip"]) == 0


@pytest.mark.parametrize("command", ["pretrain", "detect", "segment"])
def test_a_failing_evaluation_loses_nothing_and_is_made_up_for(tmp_path, monkeypatch, command):
    main, recipe, _ = case(command, tmp_path)
    from vheatir.backbone.classification.task import Classification
    from vheatir.backbone.detection.task import Detection
    from vheatir.backbone.segmentation.task import Segmentation

    kind = {"pretrain": Classification, "detect": Detection, "segment": Segmentation}[command]
    with monkeypatch.context() as patch:
        patch.setattr(kind, "evaluate", lambda self, model: (_ for _ in ()).throw(RuntimeError("the disk went away")))
        with pytest.raises(RuntimeError, match="the disk went away"):
            main(["-opt", str(recipe)])
    run = tmp_path / "runs" / "small"
    newest = max((run / "checkpoints").glob("iter_*.pt"))
    assert int(newest.stem.split("_")[1]) == (6 if command == "pretrain" else 3)
    assert main(["-opt", str(recipe), "--resume"]) == 0
    lines = [json.loads(line) for line in (run / "curves.jsonl").read_text().splitlines()]
    evaluated = [line["iteration"] for line in lines if any(key.startswith("val/") for key in line)]
    assert evaluated == ([6, 12] if command == "pretrain" else [3, 6])
    assert (run / "models" / "best.safetensors").is_file()


def test_want_of_memory_ends_with_advice_that_helps(tmp_path, monkeypatch):
    """More of train.accumulate alone would take more images for a step, and as much memory."""
    from vheatir.backbone.classification.task import Classification

    def fail(self, model, batch):
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")

    main, recipe, _ = case("pretrain", tmp_path)
    monkeypatch.setattr(Classification, "loss", fail)
    advice = "smaller data.batch_size; a step stays the same where train.accumulate grows as much; --resume goes on"
    with pytest.raises(UserError, match=f"memory ran out after step 0 .*{advice}") as caught:
        main(["-opt", str(recipe)])
    assert "val.tile" not in str(caught.value)
