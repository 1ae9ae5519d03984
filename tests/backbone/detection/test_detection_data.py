"""Objects are read as they are written down, views keep boxes and masks together, bad data are named."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("pycocotools", reason="detection needs the extra `detection`")

from tests.backbone import dense_data
from vheatir.backbone.dense.image_files import report_problems
from vheatir.backbone.detection.annotations import read_annotations, read_coco, read_voc
from vheatir.backbone.detection.dataset import DetectionImages, training_views
from vheatir.backbone.detection.recipe import DetectionAugment, DetectionData
from vheatir.backbone.detection.records import decode
from vheatir.backbone.detection.task import Detection
from vheatir.backbone.errors import DataError
from vheatir.backbone.training.processes import Processes


@pytest.fixture
def coco(tmp_path):
    return dense_data.make_coco(tmp_path / "coco")


def changed(root, change) -> list[str]:
    """Problems of the training split after a change of its tables, as text."""
    table = json.loads((root / "train.json").read_text())
    change(table)
    (root / "train.json").write_text(json.dumps(table))
    return [str(one) for one in read_coco(root / "train.json", root / "train", True).problems]


def test_coco_objects_have_labels_from_one_on(coco):
    annotations = read_coco(coco / "train.json", coco / "train", True)
    assert annotations.classes == ("red", "blue") and not annotations.problems
    record = annotations.records[0]
    pixels = np.array(Image.open(record.file))
    for instance in record.instances:
        mask = decode(instance.segmentation, record.width, record.height).astype(bool)
        x0, y0, x1, y1 = map(int, instance.box)
        assert mask[y0:y1, x0:x1].all() and mask.sum() == instance.area
        assert np.abs(pixels[mask].mean(0) - dense_data.COLORS[instance.label - 1]).max() < 6


def test_chosen_classes_are_numbered_in_their_order_and_others_left_out(coco):
    annotations = read_coco(coco / "train.json", coco / "train", True, ("blue",))
    whole = read_coco(coco / "train.json", coco / "train", True)
    blue = [instance.box for record in whole.records for instance in record.instances if instance.label == 2]
    assert [instance.box for record in annotations.records for instance in record.instances] == blue
    with pytest.raises(ValueError, match="no category 'green'; categories there: red, blue"):
        read_coco(coco / "train.json", coco / "train", True, ("green",))


def test_voc_counts_pixels_from_one(tmp_path):
    root = dense_data.make_voc(tmp_path / "voc")
    annotations = read_voc(root, "train", ("red", "blue"))
    pixels = np.array(Image.open(annotations.records[0].file)).astype(int)
    for instance in annotations.records[0].instances:
        x0, y0, x1, y1 = map(int, instance.box)
        assert np.abs(pixels[y0:y1, x0:x1].mean((0, 1)) - dense_data.COLORS[instance.label - 1]).max() < 12
        assert instance.area == (x1 - x0) * (y1 - y0)


@pytest.mark.parametrize(
    "change, found",
    [
        (
            lambda t: t["annotations"][0].update(bbox=[60, 10, 30, 20]),
            r"1\.png: a box outside its image \(annotation 1",
        ),
        (lambda t: t["annotations"][0].update(bbox=[5, 5, 0, 9]), r"1\.png: a box without area \(annotation 1"),
        (lambda t: t["annotations"][0].pop("bbox"), r"1\.png: an empty annotation \(annotation 1 has no box"),
        (lambda t: t["annotations"][0].update(segmentation=[]), r"1\.png: an empty segmentation"),
        (lambda t: t["annotations"][0].update(segmentation=[[1, 2, 3, 4]]), r"1\.png: a polygon of fewer than three"),
        (
            lambda t: t["annotations"][0].update(category_id=5),
            r"1\.png: an unknown category \(annotation 1, category 5",
        ),
        (lambda t: t["annotations"][0].update(image_id=99), r"train\.json: an annotation of an image that is not"),
        (lambda t: t["images"][0].update(file_name="no.png"), r"no\.png: the file is missing"),
        (lambda t: t["images"][0].update(width=71), r"1\.png: another size than its annotation states"),
        (lambda t: t["images"].append(t["images"][0]), r"1\.png: an image id that is taken"),
        (
            lambda t: t["images"].append({**t["images"][0], "id": 99}),
            r"1\.png: an image that is listed twice \(train\.json: id 99 too\)",
        ),
    ],
)
def test_bad_coco_is_named_by_file_and_rule(coco, change, found):
    problems = changed(coco, change)
    assert len(problems) == 1
    with pytest.raises(DataError, match=found):
        raise DataError(problems[0])


def test_a_box_may_exceed_its_image_by_rounding(coco):
    assert not changed(coco, lambda table: table["annotations"][0].update(bbox=[-0.6, 5, 20, 20]))
    annotations = read_coco(coco / "train.json", coco / "train", False)
    assert annotations.records[0].instances[0].box == (0.0, 5.0, 19.4, 25.0)


@pytest.mark.parametrize("box", [[dense_data.WIDTH, 5, 1, 20], [-1, 5, 1, 20], [5, dense_data.HEIGHT, 20, 0.5]])
def test_a_box_beside_its_image_is_named(coco, box):
    """No detection could match what is left of it, an empty box."""
    (problem,) = changed(coco, lambda table: table["annotations"][0].update(bbox=box))
    assert "1.png: a box outside its image" in problem


@pytest.mark.parametrize("masks, area", [(True, 50), (False, 200)])
def test_an_area_that_is_not_stated_is_that_of_the_mask(coco, masks, area):
    """It decides whether an object counts as small, medium or large."""
    triangle = [[5, 5, 25, 5, 5, 10]]
    new = {"bbox": [5, 5, 20, 10], "segmentation": triangle}
    assert not changed(coco, lambda t: (t["annotations"][0].update(new), t["annotations"][0].pop("area")))
    found = read_coco(coco / "train.json", coco / "train", masks).records[0].instances[0].area
    assert found == pytest.approx(area, abs=12 if masks else 0)


def test_bad_voc_is_named_by_file_and_rule(tmp_path):
    root = dense_data.make_voc(tmp_path / "voc")
    annotations = root / "Annotations"
    (annotations / "p0.xml").write_text("")
    text = (annotations / "p1.xml").read_text()
    (annotations / "p1.xml").write_text(text[: text.index("<object>")] + "</annotation>")
    text = (annotations / "p2.xml").read_text()
    (annotations / "p2.xml").write_text(text.replace("<ymax>", "<ymax>9"))
    (annotations / "p3.xml").unlink()
    annotations = read_voc(root, "train", ("red", "blue"))
    rules = {str(one).split("/")[-1].split(" (")[0] for one in annotations.problems}
    assert rules == {
        "p0.xml: not XML",
        "p1.xml: an empty annotation",
        "p2.xml: a box outside its image",
        "p3.xml: the file is missing",
    }
    with pytest.raises(DataError, match=r"the data break \d rules:\n  .*p0\.xml: not XML"):
        report_problems(annotations.problems, "refuse")
    report_problems(annotations.problems, "skip")


def test_names_that_a_list_of_voc_repeats_are_told(tmp_path):
    root = dense_data.make_voc(tmp_path / "voc")
    names = root / "ImageSets" / "Main" / "train.txt"
    names.write_text(names.read_text() + "p1.png\n")
    found = read_voc(root, "train")
    assert [record.file.name for record in found.records] == ["p0.png", "p1.png", "p2.png", "p3.png"]
    assert [(Path(one.file).name, one.rule) for one in found.problems] == [("p1.png", "an image that is listed twice")]


def test_what_is_missing_as_a_whole_is_named(coco, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data\.root .*nowhere: no such folder"):
        read_annotations(DetectionData(str(tmp_path / "nowhere")), True, True)
    with pytest.raises(FileNotFoundError, match=r"no\.json: no such file; expected annotations in COCO's format"):
        read_annotations(DetectionData(str(coco), train="no.json"), True, True)
    (coco / "train.json").write_text("{")
    with pytest.raises(ValueError, match=r"train\.json: not JSON"):
        read_coco(coco / "train.json", coco / "train", True)
    with pytest.raises(FileNotFoundError, match=r"test\.txt: no such list .*lists there: train"):
        read_voc(dense_data.make_voc(tmp_path / "voc"), "test")


@pytest.mark.parametrize("crop", [False, True])
def test_boxes_and_masks_stay_together_through_views(coco, crop):
    annotations = read_coco(coco / "train.json", coco / "train", True)
    samples = DetectionImages(
        annotations.for_training(), True, training_views(DetectionAugment((96, 112), 200, crop, 0.5))
    )
    sizes = set()
    for seed in range(6):
        image, target = samples[seed % len(samples), seed]
        assert image.dtype == torch.float32 and image.min() >= 0 and image.max() <= 1
        sizes.add(tuple(image.shape[1:]))
        assert min(image.shape[1:]) in (95, 96, 111, 112) or max(image.shape[1:]) == 200
        assert len(target["boxes"]) == len(target["labels"]) == len(target["masks"])
        for box, label, mask in zip(target["boxes"], target["labels"], target["masks"], strict=True):
            rows, columns = mask.nonzero(as_tuple=True)
            around = torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            assert (box - around).abs().max() <= 2.5
            color = 255 * image[:, mask.bool()].mean(1)
            assert (color - torch.tensor(dense_data.COLORS[label - 1])).abs().max() < 30
    assert len(sizes) > 1


def test_crowds_beside_objects_are_not_trained_on(coco):
    record = read_coco(coco / "train.json", coco / "train", True).records[0]
    record.instances[0] = replace(record.instances[0], crowd=True)
    _, target = DetectionImages([record], True, lambda image, target: (image, target))[0, 0]
    assert target["labels"].tolist() == [record.instances[1].label]
    assert len(target["boxes"]) == len(target["masks"]) == 1


def test_views_are_a_function_of_the_seed(coco):
    annotations = read_coco(coco / "train.json", coco / "train", True)
    samples = DetectionImages(annotations.records, True, training_views(DetectionAugment((96, 112), 200, True)))
    (image, target), (again, same), (other, _) = samples[0, 5], samples[0, 5], samples[0, 8]
    assert torch.equal(image, again) and torch.equal(target["boxes"], same["boxes"])
    assert image.shape != other.shape or not torch.equal(image, other)


def test_images_without_objects_or_with_crowds_alone_are_no_training(coco):
    def change(table):
        table["annotations"] = [one for one in table["annotations"] if one["image_id"] != 10]
        for one in table["annotations"]:
            one["iscrowd"] = int(one["image_id"] == 20)

    assert not changed(coco, change)
    annotations = read_coco(coco / "train.json", coco / "train", True)
    assert [record.number for record in annotations.for_training()] == [30, 40, 50, 60]
    assert len(annotations.records) == 6


@pytest.mark.parametrize("crowds, said", [(True, "no objects but crowds and difficult ones"), (False, "no objects;")])
def test_an_evaluation_set_of_which_nothing_counts_is_refused(coco, crowds, said):
    annotations = read_coco(coco / "val.json", coco / "val", True)
    for record in annotations.records:
        record.instances = [replace(one, crowd=True) for one in record.instances] if crowds else []
    with pytest.raises(ValueError, match=f"the evaluation set has {said}"):
        Detection(annotations, True, 0, Processes(), torch.device("cpu"))


def test_a_damaged_image_is_named(coco):
    annotations = read_coco(coco / "train.json", coco / "train", True)
    file = annotations.records[0].file
    file.write_bytes(file.read_bytes()[:200])
    found = DetectionImages.collate([DetectionImages(annotations.records, True)[index] for index in (1, 0)])
    assert isinstance(found, DataError) and "1.png: cannot be read as an image" in str(found)
