"""Folders of classes as people have them: numbered by the training set, nothing left out without a word."""

import errno
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

pytest.importorskip("timm", reason="training backbones needs the extra `backbone`")

from tests.backbone.classification import small
from vheatir.backbone.classification.readers import make_reader
from vheatir.backbone.classification.recipe import ClassificationData, read_recipe
from vheatir.backbone.classification.task import build_classifier, make_samples
from vheatir.backbone.models.create import create_model
from vheatir.errors import UserError
from vheatir.pretrain import main


def save_image(path: Path, color=(200, 40, 30), **how) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (24, 20), color).save(path, **how)
    return path


@pytest.fixture
def root(tmp_path) -> Path:
    return small.make_images(tmp_path / "set", train=3, val=2)


def targets(root: Path, split: str, **how) -> dict[str, int]:
    reader = make_reader(ClassificationData(str(root), **how), split)
    return {name: int(target) for name, target in reader.samples}


def as_tar(root: Path, prefix: str = "") -> None:
    for split in ("train", "val"):
        with tarfile.open(root / f"{split}.tar", "w") as archive:
            for path in sorted((root / split).rglob("*")):
                if path.is_file():
                    archive.add(path, prefix + path.relative_to(root / split).as_posix())


@pytest.mark.parametrize("reader", ["folder", "tar"])
@pytest.mark.parametrize("empty", [False, True])
def test_the_training_set_numbers_the_classes_of_val(root, caplog, reader, empty):
    shutil.rmtree(root / "val" / "blue")
    if empty:
        (root / "val" / "blue").mkdir()
    as_tar(root)
    found = targets(root, "val", reader=reader)
    assert {name.split("/")[0]: target for name, target in found.items()} == {"green": 1, "red": 2}
    assert "has no images of 1 classes of" in caplog.text and "'blue'" in caplog.text
    save_image(root / "val" / "violet" / "a.png")
    as_tar(root)
    with pytest.raises(ValueError, match=r"val.*: 1 classes with 1 images that .*train.* lacks: 'violet'"):
        targets(root, "val", reader=reader)


def test_a_val_alone_that_lacks_a_class_cannot_be_numbered(root, tmp_path):
    shutil.rmtree(root / "train")
    recipe = small.make_recipe(tmp_path, root)
    weights = tmp_path / "w.safetensors"
    from safetensors.torch import save_file

    arguments = {key: value for key, value in small.SMALL.items() if key != "name"}
    save_file(create_model("vheat_tiny", **arguments).state_dict(), weights)
    assert main(["-opt", str(recipe), "--eval", "--weights", str(weights)]) == 0
    shutil.rmtree(root / "val" / "green")
    with pytest.raises(UserError, match=r"val has 2 classes, the model 3, .* data\.class_map"):
        main(["-opt", str(recipe), "--eval", "--weights", str(weights)])
    (root / "names.txt").write_text("blue\ngreen\nred\n")
    assert main(["-opt", str(recipe), "--eval", "--weights", str(weights), "--set", "data.class_map=names.txt"]) == 0


def test_lists_that_differ_in_classes_are_told(root, tmp_path, caplog):
    small.make_lists(root)
    (root / "meta" / "val.txt").write_text("blue/00.png 0\nblue/01.png 0\n")
    from vheatir.backbone.classification.recipe import read_recipe

    options = {"name": "x", "model": dict(small.SMALL), "data": {"root": str(root), "reader": "list"}}
    recipe = read_recipe(options)
    arguments = {key: value for key, value in small.SMALL.items() if key != "name"}
    make_samples(recipe, create_model("vheat_tiny", **arguments), False)
    assert "val has no images of classes 1, 2" in caplog.text


@pytest.mark.parametrize("reader", ["folder", "tar"])
def test_hidden_folders_and_files_are_passed_over(root, reader):
    want = targets(root, "train")
    save_image(root / "train" / ".ipynb_checkpoints" / "a.png")
    save_image(root / "train" / "red" / ".thumb.png")
    save_image(root / "train" / "@eaDir" / "a.png")
    (root / "train" / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (root / "train" / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
    as_tar(root)
    assert targets(root, "train", reader=reader) == want


def test_a_link_to_a_folder_above_brings_no_image_twice_or_into_another_class(root):
    (root / "train" / "red" / "all").symlink_to(root / "train")
    found = targets(root, "train")
    assert len(found) == 9 and sorted(found.values()) == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_a_folder_that_cannot_be_read_is_refused(root, monkeypatch):
    want = targets(root, "train")
    (root / "train" / "lost+found").mkdir()  # where a disk is mounted
    save_image(root / "train" / "red" / "closed" / "a.png")
    scandir = os.scandir

    def refused(path):
        if str(path).endswith(("closed", "lost+found")):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(ValueError, match=r"red/closed: the folder cannot be read: Permission denied"):
        targets(root, "train")
    shutil.rmtree(root / "train" / "red" / "closed")
    assert targets(root, "train") == want


@pytest.mark.parametrize("reader", ["folder", "tar"])
def test_a_image_outside_the_classes_is_named(root, tmp_path, reader):
    save_image(root / "train" / "stray.png")
    as_tar(root)
    recipe = small.make_recipe(tmp_path, root, data={"reader": reader})
    with pytest.raises(UserError, match=r"train.*: 1 images lie outside the folders of classes: 'stray\.png'"):
        main(["-opt", str(recipe)])
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("reader", ["folder", "tar"])
def test_the_first_folder_is_the_class_and_told(root, caplog, reader):
    for split in ("train", "val"):
        for name in small.COLORS:
            (root / split / name).rename(root / split / "moved")
            (root / split / name).mkdir()
            (root / split / "moved").rename(root / split / name / "images")
    as_tar(root)
    found = targets(root, "train", reader=reader)
    assert {name.split("/")[0]: target for name, target in found.items()} == {"blue": 0, "green": 1, "red": 2}
    assert "classes are the first folders, blue/images/00.png is of class blue" in caplog.text


def test_a_tar_in_a_folder_of_its_own_and_one_of_archives(root):
    want = targets(root, "train")
    as_tar(root, prefix="./train/")
    assert targets(root, "train", reader="tar") == want
    for name in small.COLORS:
        with tarfile.open(root / f"{name}.tar", "w") as archive:
            for path in sorted((root / "train" / name).iterdir()):
                archive.add(path, path.name)
    with tarfile.open(root / "train.tar", "w") as archive:
        for name in small.COLORS:
            archive.add(root / f"{name}.tar", f"{name}.tar")
    reader = make_reader(ClassificationData(str(root), "tar"), "train")
    assert dict(reader.samples) == want
    for index, (name, _) in enumerate(reader.samples):
        assert reader[index][0].read() == (root / "train" / name).read_bytes()


def test_one_class_alone_is_no_training(root, tmp_path):
    shutil.move(root / "train", root / "inner")
    (root / "train").mkdir()
    shutil.move(root / "inner", root / "train" / "images")
    shutil.rmtree(root / "val")
    shutil.copytree(root / "train", root / "val")
    with pytest.raises(UserError, match=r"train: all images are of one class, 'images'; expected train/CLASS/"):
        main(["-opt", str(small.make_recipe(tmp_path, root))])


def test_more_classes_in_the_model_than_in_the_set_are_told(root, tmp_path, caplog):
    recipe = read_recipe(yaml.safe_load(small.make_recipe(tmp_path, root, model={"num_classes": 5}).read_text()))
    make_samples(recipe, build_classifier(recipe), True)
    assert "train has 3 classes, the model 5 (model.num_classes)" in caplog.text


@pytest.mark.parametrize("kind", ["WEBP", "BMP", "GIF", "TIFF", "PPM"])
@pytest.mark.parametrize("suffix", [True, False])
def test_images_of_other_kinds_and_without_suffix_are_read(root, kind, suffix):
    for split in ("train", "val"):
        shutil.rmtree(root / split / "green")
        name = f"a.{kind.lower()}" if suffix else "a"
        if kind == "PPM" and not suffix:
            name = "a.ppm"  # its first bytes are those of texts too
        save_image(root / split / "green" / name, (40, 200, 60), format=kind)
        assert {t for n, t in targets(root, split).items() if n.startswith("green/")} == {1}


def test_a_class_without_images_is_refused_and_other_files_are_counted(root, caplog):
    (root / "train" / "notes.txt").write_text("x")
    (root / "train" / "red" / "boxes.csv").write_text("x")
    targets(root, "train")
    assert "left out what is no image: 1 of .txt, 1 of .csv" in caplog.text.replace(
        "1 of .csv, 1 of .txt", "1 of .txt, 1 of .csv"
    )
    for path in (root / "train" / "green").iterdir():
        path.rename(path.with_suffix(".svg"))
        path.with_suffix(".svg").write_text("<svg/>")
    with pytest.raises(ValueError, match="train: 1 folders of classes hold no images: 'green'; remove them"):
        targets(root, "train")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_class_map_with_a_byte_order_mark(root, tmp_path, encoding, end):
    file = tmp_path / "names.txt"
    file.write_bytes(f"red{end}green{end}blue{end}".encode(encoding))
    found = targets(root, "train", class_map=str(file))
    assert {name.split("/")[0]: target for name, target in found.items()} == {"red": 0, "green": 1, "blue": 2}


@pytest.mark.parametrize(
    "content, message",
    [
        ("red\ngren\nblue\n", r"1 classes with 3 images that data\.class_map .* lacks: 'green'"),
        ("red\ngreen\nblue\nviolet\n", r"no images of 1 classes of data\.class_map .*: 'violet'; correct"),
        ("red\ngreen\nblue\nred\n", r"1 names come more than once: 'red'"),
        ("red\n\ngreen\nblue\n", r"line 2 is empty"),
        ("", r"expected the names of the classes"),
        (b"\xff\xfe\xff", r"expected text in UTF-8"),
        (None, r"data\.class_map .*names\.txt: no such file"),
    ],
)
def test_a_slip_in_a_class_map_is_named(root, tmp_path, content, message):
    file = tmp_path / "names.txt"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message):
        main(["-opt", str(small.make_recipe(tmp_path, root, data={"class_map": str(file)}))])


def test_flat_sixteen_bit_gray_images_are_told_apart(tmp_path, capsys):
    root = tmp_path / "gray"
    for split in ("train", "val"):
        for gray, name in ((8000, "dark"), (30000, "middle"), (60000, "light")):
            (root / split / name).mkdir(parents=True)
            for number in range(4):
                Image.fromarray(np.full((32, 32), gray + 300 * number, np.uint16)).save(
                    root / split / name / f"{number}.png"
                )
    recipe = small.make_recipe(
        tmp_path,
        root,
        augment={
            "auto_augment": None,
            "mixup": 0.0,
            "cutmix": 0.0,
            "erase": 0.0,
            "color_jitter": 0.0,
            "smoothing": 0.0,
        },
        train={"epochs": 12, "accumulate": 1, "lr": 3e-3, "ema_decay": None},
        val={"every": 12},
    )
    assert main(["-opt", str(recipe)]) == 0
    assert "val/top1 100" in capsys.readouterr().err


@pytest.mark.parametrize("channels, status", [(1, 0), (2, None), (4, None)])
def test_networks_of_one_channel_see_gray(root, tmp_path, channels, status):
    model = {**small.SMALL, "in_chans": channels}
    recipe = small.make_recipe(tmp_path, root, model=model, train={"epochs": 1}, data={"batch_size": 2})
    if status is None:
        with pytest.raises(UserError, match=f"model.in_chans must be 3 for RGB or 1 for gray images, got {channels}"):
            main(["-opt", str(recipe)])
    else:
        assert main(["-opt", str(recipe)]) == status
        assert main(["-opt", str(recipe), "--eval"]) == status


def test_a_network_of_one_channel_gets_the_gray_values(root):
    from vheatir.backbone.classification.recipe import read_recipe

    model = {**small.SMALL, "in_chans": 1}
    recipe = read_recipe({"name": "x", "model": model, "data": {"root": str(root)}, "val": {"crop_pct": 1.0}})
    network = create_model("vheat_tiny", **{key: value for key, value in model.items() if key != "name"})
    samples = make_samples(recipe, network, False)
    image, _ = samples[0]
    with Image.open(root / "val" / samples.reader.samples[0][0]) as stored:
        want = (np.asarray(stored.convert("L")).mean() / 255 - 0.449) / 0.226
    assert image.shape == (1, 32, 32) and abs(image.mean().item() - want) < 0.05


@pytest.mark.parametrize("orientation, shape", [(1, (1.5, 1)), (6, (1, 1.5)), (8, (1, 1.5)), (3, (1.5, 1))])
def test_images_of_training_are_turned(tmp_path, orientation, shape):
    exif = Image.Exif()
    exif[274] = orientation
    for name in ("a", "b"):
        save_image(tmp_path / "set" / "train" / name / "x.jpg", exif=exif)
        Image.new("RGB", (60, 40)).save(tmp_path / "set" / "train" / name / "x.jpg", exif=exif)
    from vheatir.backbone.classification.dataset import Samples

    samples = Samples(make_reader(ClassificationData(str(tmp_path / "set")), "train"), lambda image: image.size, 2)
    size, _ = samples[0]
    assert size == (40 * shape[0], 40 * shape[1])
