"""Annotated images as people have them: read rightly, or refused by file and rule before a run begins."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("timm", reason="training backbones needs the extra `backbone`")
pytest.importorskip("pycocotools", reason="detection needs the extra `detection`")

from pycocotools import mask as rle

from tests.backbone import dense_data
from vheatir.backbone.dense.image_files import read_label_map
from vheatir.backbone.detection.annotations import read_coco, read_voc
from vheatir.backbone.detection.dataset import DetectionImages
from vheatir.backbone.segmentation.dataset import LabelledImages
from vheatir.backbone.segmentation.label_maps import class_table, find_pairs
from vheatir.backbone.segmentation.recipe import SegmentationData, read_recipe
from vheatir.detect import main as detect
from vheatir.errors import UserError
from vheatir.segment import main as segment

TURN_BACK = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}


@pytest.fixture
def coco(tmp_path) -> Path:
    return dense_data.make_coco(tmp_path / "coco")


def change(root: Path, how, split: str = "train") -> None:
    table = json.loads((root / f"{split}.json").read_text())
    how(table)
    (root / f"{split}.json").write_text(json.dumps(table))


def problems(root: Path, masks: bool = True) -> list[str]:
    return [str(one) for one in read_coco(root / "train.json", root / "train", masks).problems]


def stored_turned(file: Path, orientation: int) -> None:
    """Stores an image so that its orientation tag makes it look as it did."""
    exif = Image.Exif()
    exif[274] = orientation
    with Image.open(file) as image:
        stored = image.transpose(TURN_BACK[orientation])
    stored.save(file, exif=exif)


HEIGHT, WIDTH = dense_data.HEIGHT, dense_data.WIDTH
MASK = np.zeros((HEIGHT, WIDTH), np.uint8)
MASK[10:30, 5:40] = 1
RUNS = rle.encode(np.asfortranarray(MASK))["counts"].decode()


@pytest.mark.parametrize(
    "update, rule",
    [
        ({"segmentation": [["1", "2", "30", "2", "30", "20"]]}, "a polygon with coordinates that are no numbers"),
        ({"segmentation": [[1, 2, None, 2, 30, 20]]}, "a polygon with coordinates that are no numbers"),
        ({"segmentation": [[1, 2, float("nan"), 2, 30, 20]]}, "a polygon with coordinates that are no numbers"),
        ({"segmentation": [[1, 2, float("inf"), 2, 30, 20]]}, "a polygon with coordinates that are no numbers"),
        ({"segmentation": [1, 2, 30, 2, 30, 20]}, "a segmentation that is neither polygons nor run lengths"),
        ({"segmentation": "polygon"}, "a segmentation that is neither polygons nor run lengths"),
        ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": RUNS[:-3]}}, "run lengths that do not add up"),
        ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": RUNS + "~~"}}, "broken run lengths"),
        ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": "!?"}}, "broken run lengths"),
        ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": [1, 2]}}, "run lengths that do not add up"),
        ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": [-1, HEIGHT * WIDTH + 1]}}, "broken run lengths"),
        ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": ["a"]}}, "broken run lengths"),
        ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": None}}, "broken run lengths"),
        ({"segmentation": {"size": None, "counts": RUNS}}, "run lengths of another size"),
        ({"bbox": [1, None, 10, 10]}, "a box that is not four numbers"),
        ({"bbox": ["1", "2", "10", "10"]}, "a box that is not four numbers"),
        ({"bbox": [1, 2, float("nan"), 10]}, "a box that is not four numbers"),
        ({"bbox": {"x": 1}}, "a box that is not four numbers"),
        ({"bbox": None}, "an empty annotation"),
        ({"iscrowd": "yes"}, "an iscrowd that is neither 0 nor 1"),
        ({"iscrowd": 2}, "an iscrowd that is neither 0 nor 1"),
        ({"iscrowd": []}, "an iscrowd that is neither 0 nor 1"),
        ({"area": "large"}, "an area that is no number"),
        ({"area": float("nan")}, "an area that is no number"),
    ],
)
def test_a_broken_annotation_is_refused_before_training(coco, tmp_path, update, rule):
    change(coco, lambda table: table["annotations"][3].update(update))
    found = problems(coco)
    assert len(found) == 1 and rule in found[0] and "annotation 4" in found[0] and "2.png" in found[0]
    with pytest.raises(UserError, match=rf"2\.png: {rule}.*annotation 4"):
        detect(["-opt", str(dense_data.detection_recipe(tmp_path, coco))])
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "value, crowd", [("0", False), ("1", True), (0, False), (1, True), (True, True), (None, False)]
)
def test_iscrowd_is_what_it_says(coco, value, crowd):
    change(coco, lambda table: table["annotations"][0].update(iscrowd=value))
    assert not problems(coco)
    assert read_coco(coco / "train.json", coco / "train", True).records[0].instances[0].crowd is crowd


def test_whole_run_lengths_of_both_kinds_are_read(coco):
    flat = MASK.flatten(order="F")
    runs = np.diff(np.flatnonzero(np.diff(flat, prepend=1 - flat[0], append=1 - flat[-1]))).tolist()
    for counts in (RUNS, runs):
        whole = {"size": [HEIGHT, WIDTH], "counts": counts}
        change(coco, lambda table, whole=whole: table["annotations"][0].update(segmentation=whole))
        assert not problems(coco)
        annotations = read_coco(coco / "train.json", coco / "train", True)
        _, target = DetectionImages(annotations.records, True, lambda image, target: (image, target))[0]
        np.testing.assert_array_equal(target["masks"][0].numpy(), MASK)


@pytest.mark.parametrize(
    "how, message",
    [
        (lambda t: t["categories"].append({"id": 3, "name": "x"}), "category id 3 is taken twice, by 'red' and 'x'"),
        (lambda t: t["categories"].append({"id": 9, "name": "red"}), "two categories are named 'red'"),
        (lambda t: t["categories"].append({"name": "x"}), "categories: entry 3 lacks id"),
        (lambda t: t["images"][1].pop("width"), "images: entry 2 lacks width"),
        (lambda t: t["annotations"].append(None), "annotations: entry 13 lacks a table's form"),
        (lambda t: t["annotations"][2].pop("image_id"), "annotations: entry 3 lacks image_id"),
        (lambda t: t["images"][0].update(id=[1]), r"images: entry 1: id is \[1\], no number or text"),
    ],
)
def test_broken_tables_are_named_by_file_and_entry(coco, how, message):
    change(coco, how)
    with pytest.raises(ValueError, match=rf"train\.json: .*{message}|train\.json: {message}"):
        read_coco(coco / "train.json", coco / "train", True)


def test_sizes_that_are_no_numbers_and_lacking_annotation_ids(coco):
    change(coco, lambda table: table["images"][0].update(width=None))
    change(coco, lambda table: table["annotations"][3].pop("id"))
    change(coco, lambda table: table["annotations"][3].update(bbox=None))
    found = problems(coco)
    assert len(found) == 2 and "1.png: a size that is no numbers" in found[0]
    assert "2.png: an empty annotation (annotation number 4 of the list has no box" in found[1]


@pytest.mark.parametrize(
    "name_of", [lambda n: f"img-{n}", lambda n: 10**19 + n, lambda n: -(2**70) - n, lambda n: n / 4]
)
def test_image_ids_of_any_kind(coco, tmp_path, name_of):
    def rename(table):
        for one in table["images"]:
            one["id"] = name_of(one["id"])
        for one in table["annotations"]:
            one["image_id"] = name_of(one["image_id"])

    before = read_coco(coco / "val.json", coco / "val", True)
    for split in ("train", "val"):
        change(coco, rename, split)
    annotations = read_coco(coco / "val.json", coco / "val", True)
    assert [one.instances for one in annotations.records] == [one.instances for one in before.records]
    assert len({one.number for one in annotations.records}) == 3
    recipe = dense_data.detection_recipe(tmp_path, coco, train={"epochs": 1, "milestones": [1]}, val={"every": 1})
    assert detect(["-opt", str(recipe)]) == 0
    assert (tmp_path / "runs" / "small" / "models" / "best.safetensors").is_file()


def test_json_with_a_byte_order_mark(coco):
    file = coco / "train.json"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert not problems(coco)


@pytest.mark.parametrize("orientation", TURN_BACK)
@pytest.mark.parametrize("frame", ["shown", "stored"])
def test_boxes_are_in_the_frame_whose_size_is_stated(coco, orientation, frame):
    if frame == "stored" and orientation == 3:
        return  # the size does not tell: the image is turned as a viewer turns it
    file = coco / "train" / "1.png"
    with Image.open(file) as image:
        seen = np.asarray(image).copy()
    stored_turned(file, orientation)
    if frame == "stored":  # boxes now belong to another image: what lies in the file
        with Image.open(file) as image:
            seen = np.asarray(image).copy()
        size = {"width": seen.shape[1], "height": seen.shape[0]}
        change(coco, lambda table: table["images"][0].update(size))
        change(coco, lambda table: [one.update(bbox=[1, 2, 9, 9]) for one in table["annotations"]])
    annotations = read_coco(coco / "train.json", coco / "train", False)
    assert not annotations.problems
    record = annotations.records[0]
    image, _ = DetectionImages([record], False)[0]
    np.testing.assert_array_equal((255 * image).round().byte().permute(1, 2, 0).numpy(), seen)
    assert (record.width, record.height) == (seen.shape[1], seen.shape[0])
    assert record.turned is (frame == "shown")


@pytest.mark.parametrize("depth", ["png", "tif"])
def test_sixteen_bit_gray_images_keep_their_levels(coco, tmp_path, depth):
    values = (np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) * 16).astype(np.uint16)
    Image.fromarray(values).save(coco / "train" / f"deep.{depth}")
    change(coco, lambda table: table["images"][0].update(file_name=f"deep.{depth}"))
    image, _ = DetectionImages(read_coco(coco / "train.json", coco / "train", False).records, False)[0]
    np.testing.assert_array_equal((255 * image[1]).round().numpy(), np.round(values / 257))


# VOC


@pytest.fixture
def voc(tmp_path) -> Path:
    return dense_data.make_voc(tmp_path / "voc")


def rename(root: Path, old: str, new: str) -> None:
    text = (root / "Annotations" / f"{old}.xml").read_text().replace(f"{old}.png", f"{new}.png")
    (root / "Annotations" / f"{old}.xml").unlink()
    (root / "Annotations" / f"{new}.xml").write_text(text)
    (root / "JPEGImages" / f"{old}.png").rename(root / "JPEGImages" / f"{new}.png")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize(
    "line", ["my photo", "my photo.jpg", "my photo.PNG", "my photo.xml", "my photo  1", "my photo -1", " my photo\t"]
)
def test_lists_as_people_write_them(voc, encoding, line):
    rename(voc, "p0", "my photo")
    rename(voc, "p1", "a.b 2 1")  # a name that looks like a suffix, and one like the flag of a class
    lines = f"{line.strip(chr(9))}\r\np2.jpg\r\na.b 2 1\r\n"
    (voc / "ImageSets" / "Main" / "train.txt").write_bytes(lines.encode(encoding))
    annotations = read_voc(voc, "train")
    assert not annotations.problems and [one.file.stem for one in annotations.records] == ["my photo", "p2", "a.b 2 1"]
    assert annotations.classes == ("blue", "red")


def edit(voc: Path, how, name: str = "p0") -> None:
    file = voc / "Annotations" / f"{name}.xml"
    content = how(file.read_text())
    file.write_bytes(content if isinstance(content, bytes) else content.encode())


@pytest.mark.parametrize(
    "how",
    [
        lambda text: text.replace(f"<width>{WIDTH}", f"<width>{WIDTH}.0").replace(
            f"<height>{HEIGHT}", f"<height> {HEIGHT}.0 "
        ),
        lambda text: text.replace("<xmin>", "<xmin> ").replace("</ymax>", ".0\n</ymax>"),
        lambda text: text.replace("<name>red", "<name>\n red ").replace("<name>blue", "<name> blue"),
        lambda text: text.replace("p0.png", "C:\\images\\p0.png"),
        lambda text: text.replace("p0.png", "p0.jpg"),
        lambda text: text.replace("<filename>p0.png</filename>", ""),
        lambda text: ('<?xml version="1.0" encoding="gb2312"?>\n' + text).encode("gb2312"),
        lambda text: ('<?xml version="1.0" encoding="Shift_JIS"?><!-- 写真 -->' + text).encode("shift_jis"),
        lambda text: ('<?xml version="1.0" encoding="windows-1251"?><!-- фото -->' + text).encode("cp1251"),
        lambda text: ('<?xml version="1.0" encoding="utf-8"?>' + text).encode("utf-8-sig"),
        lambda text: ('<?xml version="1.0" encoding="utf-16"?>' + text).encode("utf-16"),
    ],
)
def test_xml_as_people_have_it(voc, how):
    before = read_voc(voc, "train").records[0]
    edit(voc, how)
    annotations = read_voc(voc, "train")
    assert not annotations.problems and annotations.records[0] == before and annotations.classes == ("blue", "red")


@pytest.mark.parametrize(
    "how, rule",
    [
        (
            lambda text: '<?xml version="1.0" encoding="klingon"?>' + text,
            r"p0\.xml: not XML \(unknown encoding: klingon",
        ),
        (lambda text: b'<?xml version="1.0" encoding="gb2312"?>\xff\xff' + text.encode(), r"p0\.xml: not XML"),
        (lambda text: text.replace(f"<width>{WIDTH}", "<width>wide"), r"p0\.xml: a size that is no numbers \(.*wide"),
        (lambda text: text.replace("<xmin>", "<xmin>a", 1), r"p0\.xml: an empty annotation \(.*bndbox lacks a number"),
    ],
)
def test_broken_xml_is_named(voc, tmp_path, how, rule):
    edit(voc, how)
    data = {"format": "voc", "train": "train", "val": "train", "root": str(voc)}
    recipe = dense_data.detection_recipe(tmp_path, voc, data=data, detector={"masks": False})
    with pytest.raises(UserError, match=rule):
        detect(["-opt", str(recipe)])


def test_a_list_of_nothing_says_why(voc):
    (voc / "ImageSets" / "Main" / "train.txt").write_text("q0\nq1\n")
    with pytest.raises(
        ValueError, match=r"no objects in the annotations of train; .*q0\.xml: the file is missing; 2 files"
    ):
        read_voc(voc, "train")


# Label maps


def label_files(root: Path, split: str = "train") -> list[Path]:
    return sorted((root / "labels" / split).glob("*.png"))


def binary(root: Path, kind: str) -> Path:
    dense_data.make_label_maps(root)
    for file in [*label_files(root), *label_files(root, "val")]:
        with Image.open(file) as image:
            foreground = np.asarray(image) > 0
        if kind == "one bit":
            Image.fromarray(foreground).save(file)
        else:
            Image.fromarray(foreground.astype(np.uint8) * {"255": 255, "1": 1, "128": 128}[kind]).save(file)
    return root


def test_masks_of_0_and_255_are_told_and_mapped(tmp_path, caplog):
    data = SegmentationData(str(binary(tmp_path, "255")), num_classes=2, classes=("ground", "object"))
    find_pairs(data, True)
    assert "numbers in the label maps: 0 (" in caplog.text and "%, ignored)" in caplog.text
    assert "classes that never occur: object; to learn a number that is ignored" in caplog.text
    assert "data.label_ids, here [0, 255]" in caplog.text
    caplog.clear()
    data.label_ids = (0, 255)
    pairs, problems = find_pairs(data, True)
    assert not problems and not caplog.text
    _, labels = LabelledImages(pairs, class_table(data))[0]
    stored = read_label_map(pairs[0].labels)
    assert torch.equal(labels, (stored == 255).long())


def test_masks_of_0_and_128_name_the_setting(tmp_path):
    data = SegmentationData(str(binary(tmp_path, "128")), num_classes=2)
    _, problems = find_pairs(data, True)
    assert "unknown ids (128; see data.num_classes, ignore, label_ids" in str(problems[0])
    data.label_ids = (0, 128)
    assert not find_pairs(data, True)[1]


def test_maps_of_few_bits_hold_the_numbers_that_are_stored(tmp_path):
    data = SegmentationData(str(binary(tmp_path, "one bit")), num_classes=2)
    pairs, problems = find_pairs(data, True)
    assert not problems and set(read_label_map(pairs[0].labels).unique().tolist()) == {0, 1}
    numbers = np.arange(32).reshape(4, 8)
    for bits in (1, 2, 4, 8):
        want = (numbers % 2**bits).astype(np.uint8)
        (tmp_path / "a.png").write_bytes(png_of_bits(want, bits))
        np.testing.assert_array_equal(read_label_map(tmp_path / "a.png").numpy(), want)


def png_of_bits(values: np.ndarray, bits: int) -> bytes:
    import struct
    import zlib

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = (np.unpackbits(values[..., None], axis=-1)[..., 8 - bits :]).reshape(len(values), -1)
    lines = b"".join(b"\0" + np.packbits(row).tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", values.shape[1], len(values), bits, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


@pytest.mark.parametrize("split", ["train", "val"])
def test_maps_in_which_everything_is_ignored_are_refused(tmp_path, split):
    root = dense_data.make_label_maps(tmp_path / "set")
    for file in label_files(root, split):
        Image.new("L", (WIDTH, HEIGHT), 255).save(file)
    with pytest.raises(UserError, match=rf"labels/{split}: the label maps hold nothing but .* 255 \(100 %, ignored\)"):
        segment(["-opt", str(dense_data.segmentation_recipe(tmp_path, root))])
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "ids, message",
    [
        ([0, 1], "label_ids must be 3 different numbers from 0 to 255"),
        ([0, 1, 1], "label_ids must be 3 different numbers"),
        ([0, 1, 256], "label_ids must be 3 different numbers"),
        ([0, 1, 7], r"label_ids and data\.ignore both name 7"),
    ],
)
def test_wrong_label_ids_are_named(ids, message):
    options = {"name": "x", "backbone": {"name": "vheat_tiny"}, "train": {"steps": 2, "schedule": "poly"}}
    options["val"] = {"every": 2}
    with pytest.raises(ValueError, match=message):
        read_recipe({**options, "data": {"root": "x", "num_classes": 3, "label_ids": ids, "ignore": [7]}})


@pytest.mark.parametrize("orientation", TURN_BACK)
def test_images_lie_as_their_label_maps_do(tmp_path, orientation):
    root = dense_data.make_label_maps(tmp_path)
    data = SegmentationData(str(root), num_classes=3)
    before = [LabelledImages(find_pairs(data, True)[0], class_table(data))[k] for k in range(2)]
    first, second = (root / "images" / "train" / f"p{number}.jpg" for number in (0, 1))
    exif = Image.Exif()
    exif[274] = orientation
    with Image.open(first) as image:
        image.transpose(TURN_BACK[orientation]).save(first.with_suffix(".png"), exif=exif)
    first.unlink()
    with Image.open(second) as image:  # the map sees the file as it is stored
        image.save(second.with_suffix(".png"), exif=exif)
    second.unlink()
    pairs, problems = find_pairs(data, True)
    assert not problems
    samples = LabelledImages(pairs, class_table(data))
    for index in (0,) if orientation == 3 else (0, 1):
        for got, want in zip(samples[index], before[index], strict=True):
            assert torch.equal(got, want)


def test_a_network_of_one_channel_is_refused_by_both(tmp_path, coco):
    maps = dense_data.make_label_maps(tmp_path / "maps")
    backbone = {**dense_data.SMALL, "in_chans": 1}
    for main, recipe, root in (
        (detect, dense_data.detection_recipe, coco),
        (segment, dense_data.segmentation_recipe, maps),
    ):
        with pytest.raises(UserError, match=r"backbone\.in_chans must be 3, images are read as RGB, got 1"):
            main(["-opt", str(recipe(tmp_path / main.__module__, root, backbone=backbone))])


def test_predict_draws_images_as_a_viewer_shows_them(tmp_path):
    root = dense_data.make_label_maps(tmp_path / "maps")
    recipe = dense_data.segmentation_recipe(tmp_path, root, train={"steps": 3}, val={"every": 3})
    assert segment(["-opt", str(recipe)]) == 0
    for folder in ("upright", "turned"):
        (tmp_path / folder).mkdir()
        shutil.copy(root / "images" / "val" / "p0.jpg", tmp_path / folder)
        with Image.open(tmp_path / folder / "p0.jpg") as image:
            image.save(tmp_path / folder / "p0.png")
        (tmp_path / folder / "p0.jpg").unlink()
    stored_turned(tmp_path / "turned" / "p0.png", 6)
    for folder in ("upright", "turned"):
        assert (
            segment(["-opt", str(recipe), "--predict", str(tmp_path / folder), "-o", str(tmp_path / f"o{folder}")]) == 0
        )
    drawn = [np.asarray(Image.open(tmp_path / f"o{folder}" / "p0.png")) for folder in ("upright", "turned")]
    np.testing.assert_array_equal(*drawn)
