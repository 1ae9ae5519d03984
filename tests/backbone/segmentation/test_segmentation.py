"""Windows, scores and heads of segmentation against what they are defined as; label maps and bad data."""

import colorsys
import errno
import os
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.testing import assert_close

pytest.importorskip("timm", reason="the backbones need the extra `backbone`")

from torchvision import tv_tensors

from tests.backbone import dense_data
from vheatir.backbone.dense.image_files import report_problems
from vheatir.backbone.errors import DataError
from vheatir.backbone.segmentation.dataset import LabelledImages, TrainingViews, scaled_size
from vheatir.backbone.segmentation.label_maps import class_table, find_pairs
from vheatir.backbone.segmentation.recipe import Head, SegmentationAugment, SegmentationData, SegmentationVal
from vheatir.backbone.segmentation.task import (
    Segmentation,
    class_ious,
    confusion,
    pixel_loss,
    predict,
    predicted_classes,
    segmentation_scores,
    window_scores,
)
from vheatir.backbone.segmentation.upernet import Segmenter, UPerHead


class Pointwise(nn.Module):
    """Scores that depend on each pixel alone, so that windows and mirroring change nothing."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        self.seen.append(tuple(x.shape[2:]))
        return torch.cat([x, x.square()], 1)


@pytest.mark.parametrize("size", [(70, 50), (64, 64), (20, 90), (97, 130)])
def test_windows_cover_every_pixel_and_average(size):
    model, image = Pointwise(), torch.rand(1, 3, *size, dtype=torch.float64)
    assert_close(window_scores(model, image, 64, 40), torch.cat([image, image.square()], 1))
    assert max(max(seen) for seen in model.seen) <= 64
    rows = 1 if size[0] <= 64 else 1 + -(-(size[0] - 64) // 40)
    columns = 1 if size[1] <= 64 else 1 + -(-(size[1] - 64) // 40)
    assert len(model.seen) == rows * columns


def test_overlapping_windows_count_equally():
    class Position(nn.Module):
        def forward(self, x):
            return torch.arange(x.shape[3]).expand(1, 1, *x.shape[2:]).double()

    scores = window_scores(Position(), torch.zeros(1, 3, 4, 6), 4, 2)[0, 0, 0]
    assert scores.tolist() == [0, 1, 1, 2, 2, 3]  # windows at 0 and 2: columns 2 and 3 are in both


def test_several_sizes_and_mirrored_views_are_averaged_as_probabilities():
    model, image = Pointwise(), torch.rand(3, 40, 60)
    val = SegmentationVal(scale=(60, 40), mode="whole", ratios=(0.5, 1.0, 1.5))
    averaged = predict(model, image, val, tta=True)
    assert sorted(set(model.seen)) == [(20, 30), (40, 60), (60, 90)] and len(model.seen) == 6
    assert averaged.shape == (6, 40, 60)
    assert_close(averaged.sum(0), torch.ones(40, 60))
    single = predict(model, image, val)
    assert_close(single, torch.cat([image, image.square()]).softmax(0))
    mirrored = SegmentationVal(scale=(60, 40), mode="whole", ratios=(1.0,))
    assert_close(predict(model, image, mirrored, tta=True), single)
    model.seen.clear()
    predict(model, image, replace(mirrored, flip=False), tta=True)
    assert len(model.seen) == 1


def test_scores_of_a_smaller_size_come_back_to_their_pixels():
    """A ramp stays one, but for the ends: its size changes around the middle of the image, not around a corner."""
    ramp = torch.linspace(0, 1, 60).expand(3, 40, 60)
    half = SegmentationVal(scale=(30, 20), mode="whole")
    found = predict(lambda x: torch.cat([x[:, :1], 0 * x[:, :1]], 1), ramp, half)
    assert_close(found[0, 8:-8, 8:-8], ramp[0, 8:-8, 8:-8].sigmoid(), atol=1e-3, rtol=0)


@pytest.mark.parametrize("tta", [False, True])
def test_few_classes_are_enlarged_at_once(tta, monkeypatch):
    """All of them at the size of a photograph would fill the memory."""
    model, image = Pointwise(), torch.rand(3, 80, 120, dtype=torch.float64)
    val = SegmentationVal(scale=(60, 40), mode="whole", ratios=(0.5, 1.0))
    whole = predict(model, image, val, tta)
    made = []
    enlarge = torch.nn.functional.interpolate

    def spy(*given, **how):
        made.append(enlarge(*given, **how))
        return made[-1]

    monkeypatch.setattr("vheatir.backbone.segmentation.task._MOST_AT_ONCE", 2 * 80 * 120)
    monkeypatch.setattr("vheatir.backbone.segmentation.task.F.interpolate", spy)
    assert_close(predict(model, image, val, tta), whole)
    assert (predicted_classes(model, image, val, tta) == whole.argmax(0)).all()
    assert max(one.shape[1] for one in made if one.shape[2:] == (80, 120)) == 2


@pytest.mark.parametrize(
    "given, scale, want", [((480, 640), (2048, 512), (512, 683)), ((300, 3000), (2048, 512), (205, 2048))]
)
def test_images_fit_into_the_scale(given, scale, want):
    assert scaled_size(*given, scale) == want


def test_scores_of_a_confusion_by_hand():
    labels = torch.tensor([[0, 0, 1, 1], [2, 2, 255, 0]])
    classes = torch.tensor([[0, 1, 1, 1], [2, 0, 0, 0]])
    counts = confusion(classes, labels, 4)
    assert counts.tolist() == [[2, 1, 0, 0], [0, 2, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]]
    assert class_ious(counts) == [50.0, pytest.approx(200 / 3), 50.0, None]
    scores = segmentation_scores(counts)
    assert scores["miou"] == pytest.approx(500 / 9) and scores["aacc"] == pytest.approx(500 / 7)
    assert scores["macc"] == pytest.approx(100 * (2 / 3 + 1 + 1 / 2) / 3)
    assert scores["majority_miou"] == pytest.approx(100 * 3 / 7 / 3)


def test_a_class_that_is_predicted_but_never_there_counts_as_missed():
    scores = segmentation_scores(torch.tensor([[1, 1], [0, 0]]))
    assert scores["miou"] == pytest.approx(25) and scores["macc"] == pytest.approx(50)


def test_the_loss_weighs_the_auxiliary_head_and_pixels_without_a_class_are_not_right():
    main, auxiliary = torch.randn(2, 1, 3, 2, 2)
    labels = torch.cat([main.argmax(1)[:, :1], torch.full((1, 1, 2), 255)], 1)
    task = SimpleNamespace(recipe=SimpleNamespace(head=SimpleNamespace(aux_weight=0.4)))
    total, noted = Segmentation.loss(task, lambda images: (main, auxiliary), (torch.zeros(1, 3, 2, 2), labels))
    assert_close(noted["main"], pixel_loss(main, labels))
    assert_close(noted["auxiliary"], 0.4 * pixel_loss(auxiliary, labels))
    assert_close(total, noted["main"] + noted["auxiliary"])
    assert noted["aacc"] == 100


def test_crops_avoid_too_much_of_one_class():
    """A fourth of the places has enough of both; of ten tries one is there nearly always."""
    views = TrainingViews(SegmentationAugment(scale=(200, 64), ratio=(1.0, 1.0), crop=64, cat_max=0.75, color=False))
    labels = tv_tensors.Mask((torch.arange(200) >= 160).to(torch.uint8).expand(1, 64, 200))
    image = tv_tensors.Image(torch.zeros(3, 64, 200, dtype=torch.uint8))
    shares = []
    for seed in range(40):
        torch.manual_seed(seed)
        shares.append(views(image, labels)[1].double().mean().item())
    assert sum(0.25 < share < 0.75 for share in shares) > 30


def test_the_loss_is_the_mean_over_labelled_pixels():
    scores, labels = torch.randn(2, 3, 4, 5, dtype=torch.float64), torch.randint(0, 3, (2, 4, 5))
    labels[0, 0] = 255
    known = labels != 255
    want = -scores.log_softmax(1).permute(0, 2, 3, 1)[known].gather(1, labels[known][:, None]).mean()
    assert_close(pixel_loss(scores, labels), want)
    assert pixel_loss(scores, torch.full_like(labels, 255)) == 0


def test_the_head_has_the_published_structure():
    """Parameters of UPerNet's head at 512 channels, counted by hand, on the maps of vHeat-T."""
    dims, channels, classes = (96, 192, 384, 768), 512, 150

    def block(inward, kernel):
        return inward * channels * kernel**2 + 2 * channels

    want = 4 * block(768, 1) + block(768 + 4 * channels, 3) + block(4 * channels, 3)
    want += sum(block(dim, 1) + block(channels, 3) for dim in dims[:3]) + channels * classes + classes
    with torch.device("meta"):
        head = UPerHead(dims, classes, Head())
    assert sum(parameter.numel() for parameter in head.parameters()) == want


def test_scores_come_at_the_size_of_the_image():
    from vheatir.backbone.models.feature_maps import build_features

    model = Segmenter(build_features(dense_data.SMALL), Head(channels=8, aux_channels=8), 5)
    x = torch.rand(2, 3, 45, 70)
    main, auxiliary = model(x)
    assert main.shape == auxiliary.shape == (2, 5, 45, 70)
    model.eval()
    assert model(x).shape == (2, 5, 45, 70)
    bare = Segmenter(build_features(dense_data.SMALL), Head(channels=8, aux_channels=0), 5)
    assert len(bare(x)) == 1


@pytest.mark.parametrize("layout, classes", [("folders", 3), ("ade20k", 3), ("cityscapes", 19)])
def test_layouts_are_read_as_they_number_classes(layout, classes, tmp_path):
    data = SegmentationData(str(dense_data.make_label_maps(tmp_path, layout)), layout, num_classes=classes)
    for training, count in ((True, 6), (False, 3)):
        pairs, problems = find_pairs(data, training)
        assert len(pairs) == count and not problems
    image, labels = LabelledImages(pairs, class_table(data))[0]
    assert set(labels.unique().tolist()) <= {0, 1, 2} and labels.dtype == torch.int64
    for number, color in enumerate(dense_data.COLORS, 1):
        if (labels == number).any():
            assert (255 * image[:, labels == number].mean(1) - torch.tensor(color)).abs().max() < 20


def test_numbers_of_ade20k_and_cityscapes():
    ade = class_table(SegmentationData("", "ade20k", num_classes=150))
    assert ade[0] == 255 and ade[1] == 0 and ade[150] == 149 and ade[151] == 254 and ade[255] == 255
    city = class_table(SegmentationData("", "cityscapes", num_classes=19))
    assert [int(city[number]) for number in (0, 7, 33, 29, 34, 255)] == [255, 0, 18, 255, 254, 255]
    camvid = class_table(SegmentationData("", num_classes=11, ignore=(11,)))
    assert [int(camvid[number]) for number in (0, 10, 11, 12)] == [0, 10, 255, 254]


def test_bad_label_maps_are_named_by_file_and_rule(tmp_path):
    root = dense_data.make_label_maps(tmp_path)

    def labels(number):
        return dense_data.label_paths(root, "folders", "train", f"p{number}")[1]

    size = (dense_data.HEIGHT, dense_data.WIDTH)
    Image.fromarray(np.full(size, 77, np.uint8)).save(labels(0))
    labels(1).unlink()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(labels(2))
    Image.fromarray(np.zeros((*size, 3), np.uint8)).save(labels(3))
    labels(4).write_bytes(b"")
    Image.fromarray(np.zeros(size, np.uint8)).save(labels(9))
    pairs, problems = find_pairs(SegmentationData(str(root), num_classes=3), True)
    rules = {problem.file.split("/")[-1]: problem.rule for problem in problems}
    assert rules == {
        "p0.png": "unknown ids",
        "p1.png": "the file is missing",
        "p2.png": "another size than its image",
        "p3.png": "no label map",
        "p4.png": "no label map",
        "p9.png": "a label map without an image",
    }
    assert [pair.labels.name for pair in pairs] == ["p5.png"]
    assert problems[0].detail.startswith("77;")
    with pytest.raises(DataError, match=r"the data break 6 rules:\n.*p0\.png: unknown ids"):
        report_problems(problems, "refuse")


def test_images_that_share_a_label_map_are_named(tmp_path):
    root = dense_data.make_label_maps(tmp_path)
    image = dense_data.label_paths(root, "folders", "train", "p0")[0]
    shutil.copy(image, image.with_suffix(".bmp"))
    pairs, problems = find_pairs(SegmentationData(str(root), num_classes=3), True)
    assert {problem.file for problem in problems} == {str(image), str(image.with_suffix(".bmp"))}
    assert all("that of another image" in problem.rule and "p0.bmp" in problem.detail for problem in problems)
    assert len(pairs) == 5 and all(pair.image.stem != "p0" for pair in pairs)


def test_what_is_missing_as_a_whole_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data\.layout ade20k needs images/training and annotations/training"):
        find_pairs(SegmentationData(str(tmp_path), "ade20k"), True)
    for folder in ("images/train", "labels/train"):
        (tmp_path / folder).mkdir(parents=True)
    with pytest.raises(ValueError, match="no images"):
        find_pairs(SegmentationData(str(tmp_path)), True)


def test_training_views_keep_labels_on_their_pixels(tmp_path):
    data = SegmentationData(str(dense_data.make_label_maps(tmp_path)), num_classes=3)
    pairs, _ = find_pairs(data, True)
    augment = SegmentationAugment(scale=(72, 56), ratio=(0.8, 2.0), crop=64, color=False)
    samples = LabelledImages(pairs, class_table(data), TrainingViews(augment))
    seen = set()
    for seed in range(12):
        image, labels = samples[seed % len(samples), seed]
        assert image.shape == (3, 64, 64) and labels.shape == (64, 64)
        for number, color in enumerate(dense_data.COLORS, 1):
            if (labels == number).sum() > 200:
                seen.add(number)
                assert (255 * image[:, labels == number].mean(1) - torch.tensor(color)).abs().max() < 25
    assert seen == {1, 2}
    again = samples[3, 7]
    assert all(torch.equal(a, b) for a, b in zip(samples[3, 7], again, strict=True))


def test_linked_folders_are_read_and_unreadable_ones_refused(tmp_path, monkeypatch):
    root = dense_data.make_label_maps(tmp_path / "set")
    more = dense_data.make_label_maps(tmp_path / "more")
    for kind in ("images", "labels"):
        (root / kind / "train" / "linked").symlink_to(more / kind / "train")
        (root / kind / "train" / "itself").symlink_to(root / kind / "train")
    (root / "images" / "train" / "lost+found").mkdir()  # where a disk is mounted
    data = SegmentationData(str(root), num_classes=3)
    pairs, problems = find_pairs(data, True)
    assert not problems
    assert sorted(pair.image.parent.name for pair in pairs) == ["linked"] * 6 + ["train"] * 6
    (root / "labels" / "train" / "linked").unlink()
    scandir = os.scandir

    def refused(path):
        if str(path).endswith(("linked", "lost+found")):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(ValueError, match=r"train/linked: the folder cannot be read: Permission denied"):
        find_pairs(data, True)


def test_hues_turn_by_up_to_a_tenth_of_the_circle_as_published():
    """By up to 18 of the 180 steps of 8-bit HSV images; red stays red where the three other changes are made."""
    views = TrainingViews(SegmentationAugment(scale=(8, 8), ratio=(1.0, 1.0), crop=8, hflip=0.0))
    image = tv_tensors.Image(torch.tensor([200, 40, 40], dtype=torch.uint8)[:, None, None].expand(3, 8, 8))
    labels = tv_tensors.Mask(torch.zeros(1, 8, 8, dtype=torch.uint8))
    turned = []
    for seed in range(200):
        torch.manual_seed(seed)
        red, green, blue = (views(image, labels)[0][:, 0, 0] / 255).tolist()
        turned.append((colorsys.rgb_to_hsv(red, green, blue)[0] + 0.5) % 1 - 0.5)
    assert min(turned) == pytest.approx(-0.1, abs=0.02) and max(turned) == pytest.approx(0.1, abs=0.02)
    assert 60 < sum(abs(one) > 0.005 for one in turned) < 120


def test_small_images_are_padded_without_labels(tmp_path):
    data = SegmentationData(str(dense_data.make_label_maps(tmp_path)), num_classes=3)
    pairs, _ = find_pairs(data, True)
    augment = SegmentationAugment(scale=(72, 56), ratio=(0.5, 0.5), crop=64, color=True)
    _, labels = LabelledImages(pairs, class_table(data), TrainingViews(augment))[0, 1]
    assert (labels[28:] == 255).all() and (labels[:, 36:] == 255).all() and (labels[:28, :36] != 255).all()
