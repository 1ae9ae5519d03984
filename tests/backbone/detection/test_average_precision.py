"""Average precision: perfect detections have 100, and known flaws what they cost."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("pycocotools", reason="detection needs the extra `detection`")

from tests.backbone import dense_data
from vheatir.backbone.detection.annotations import read_coco
from vheatir.backbone.detection.average_precision import as_results, average_precision
from vheatir.backbone.detection.records import Annotations, Instance, Record, decode


@pytest.fixture(scope="module")
def annotations(tmp_path_factory):
    root = dense_data.make_coco(tmp_path_factory.mktemp("coco"))
    return read_coco(root / "train.json", root / "train", True)


def perfect(record, shift: float = 0.0) -> dict[str, torch.Tensor]:
    """What a faultless detector gives, its boxes moved to the right by a share of their width."""
    boxes = torch.tensor([instance.box for instance in record.instances])
    boxes[:, 0::2] += shift * (boxes[:, 2:3] - boxes[:, 0:1])
    masks = [
        torch.from_numpy(decode(instance.segmentation, record.width, record.height)) for instance in record.instances
    ]
    return {
        "boxes": boxes,
        "labels": torch.tensor([instance.label for instance in record.instances]),
        "scores": torch.full((len(boxes),), 0.9),
        "masks": torch.stack(masks)[:, None].float(),
    }


def score(annotations, detect) -> dict[str, float]:
    results = [entry for record in annotations.records for entry in as_results(detect(record), record.number)]
    return average_precision(annotations.as_coco(), results, True)


def test_perfect_detections_have_100(annotations):
    scores = score(annotations, perfect)
    for kind in ("box", "mask"):
        assert [scores[f"{kind}_{name}"] for name in ("ap", "ap50", "ap75", "ar100")] == [100.0] * 4


def test_shifted_boxes_lose_what_their_overlap_costs(annotations):
    """A shift of a seventh of the width leaves an overlap of 0.75: right for six of the ten thresholds."""
    scores = score(annotations, lambda record: perfect(record, 1 / 7.1))
    assert scores["box_ap"] == pytest.approx(60) and scores["box_ap50"] == 100 and scores["mask_ap"] == 100


def test_wrong_classes_and_missing_objects_count(annotations):
    def confused(record):
        return {**perfect(record), "labels": 3 - perfect(record)["labels"]}

    def lazy(record):
        return {key: value[:1] for key, value in perfect(record).items()}

    assert score(annotations, confused)["box_ap"] < 10
    assert 20 < score(annotations, lazy)["box_ap"] < 80


def test_nothing_found_has_zero(annotations):
    assert average_precision(annotations.as_coco(), [], True)["mask_ap"] == 0.0
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0), "scores": torch.zeros(0)}
    assert as_results(nothing, 1) == []


def test_a_result_has_corner_and_sides_and_the_mask_where_it_is_likelier_than_not():
    masks = torch.tensor([[0.0, 0.4, 0.6], [0.5, 0.51, 1.0]])[None, None]
    output = {"boxes": torch.tensor([[1.0, 0.5, 3, 2]]), "labels": torch.tensor([4]), "scores": torch.tensor([0.25])}
    (result,) = as_results({**output, "masks": masks}, 7)
    assert decode(result.pop("segmentation"), 3, 2).tolist() == [[0, 0, 1], [0, 1, 1]]
    assert result == {"image_id": 7, "category_id": 4, "bbox": [1, 0.5, 2, 1.5], "score": 0.25}


def test_sizes_that_do_not_occur_have_no_figure(annotations):
    scores = score(annotations, perfect)
    assert {"box_ap_small", "mask_ap_small"} < set(scores)
    assert "box_ap_large" not in scores, "none has 96x96 pixels"


def test_detections_inside_a_difficult_object_are_not_excused():
    """As VOC has it: what overlaps the object by half is ignored, what merely lies inside it is wrong."""
    boxes = [(0.0, 0.0, 100.0, 100.0), (10.0, 10.0, 30.0, 30.0)]
    hard, plain = (Instance(box, 1, number == 0, 400.0, difficult=number == 0) for number, box in enumerate(boxes))
    wrong = {"image_id": 1, "category_id": 1, "bbox": [60.0, 60.0, 20.0, 20.0], "score": 0.9}
    same = {**wrong, "bbox": [0.0, 0.0, 90.0, 100.0]}
    right = {**wrong, "bbox": [10.0, 10.0, 20.0, 20.0], "score": 0.8}

    def scored(first: Instance, *results: dict) -> float:
        truth = Annotations([Record(Path("a.png"), 1, 100, 100, [first, plain])], ("a",)).as_coco()
        return average_precision(truth, list(results), False)["box_ap50"]

    assert scored(hard, same, same, right) == pytest.approx(100)
    assert scored(hard, wrong, right) == pytest.approx(50)
    assert scored(replace(hard, difficult=False), wrong, right) == pytest.approx(100)


def test_crowds_are_neither_asked_for_nor_wrong(annotations):
    table = annotations.as_coco()
    table["annotations"][0]["iscrowd"] = 1
    results = [entry for record in annotations.records for entry in as_results(perfect(record), record.number)]
    assert average_precision(table, results, False)["box_ap"] == 100
    assert average_precision(table, results[1:], False)["box_ap"] == 100
