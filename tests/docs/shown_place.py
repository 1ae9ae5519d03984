"""A work place with the files that the pages name: images of a few thousand pixels, sets of a few images."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import skimage.data
import torch
import yaml

from tests.backbone import dense_data
from tests.backbone.classification import small
from tests.docs import shown

PAIRS = ("pairs", "datasets/test/CC15", "datasets/test/PolyU50")
# What one of the pages calls its images.
PHOTOS = [
    *("photo.png", "other.png", "photos/a.png", "photos/b.png", "held_out/c.png", "my_photos/d.png", "FOLDER/e.png"),
    *("scans/a.png", "more/b.jpg", "photographs/f.png", "RESTORED_DIR/g.png", "REFERENCE_DIR/g.png"),
    *(f"{folder}/i_{kind}.png" for folder in PAIRS for kind in ("real", "mean")),
    *("datasets/BSD432/2018.jpg", "datasets/BSD432/2092.jpg", "datasets/BSD432/38082.jpg", "datasets/PD12M_sub/h.png"),
    *("datasets/FreePhotos_sub/i.png", "datasets/FreePhotos_sub/val_j.png"),
    *("datasets/test/CBSD68/101085.jpg", "datasets/test/CBSD68/101087.jpg", "datasets/test/CBSD68/3096.jpg"),
]
GRAY = ["datasets/test/Set12/09.png", "datasets/test/BSD68/test001.png", "datasets/test/Classic5/1.bmp"]
WIDTH, HEIGHT = 80, 72


SMALL = {"dim": 8, "encoder": [1], "middle": 1, "decoder": [1], "attention": ["heat", "heat"], "reach": [0.5, 4.0]}


def make_place(root: Path) -> None:
    """Everything that any page needs and does not make itself; networks come from `make_networks`."""
    for folder in ("options", "scripts", "benchmarks"):
        (root / folder).symlink_to(shown.ROOT / folder, target_is_directory=True)
    photo = skimage.data.chelsea()[..., ::-1]
    for number, name in enumerate([*PHOTOS, *GRAY]):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        crop = np.ascontiguousarray(photo[4 * number :, 9 * number :][:HEIGHT, :WIDTH])
        assert cv2.imwrite(str(path), crop if name in PHOTOS else crop[..., 0])
    blurred = cv2.GaussianBlur(cv2.imread(str(root / "photo.png")), (0, 0), 1)
    assert cv2.imwrite(str(root / "degraded.png"), blurred)
    make_degradation(root)


def make_degradation(root: Path) -> None:
    """The degradation of docs/howto.md as salt.py, and salt.yml, a recipe that uses it."""
    (snippet,) = [block for block in shown.python_blocks("docs/howto.md") if "SaltAndPepper" in block]
    (root / "salt.py").write_text(snippet, encoding="utf-8")
    recipe = yaml.safe_load((shown.ROOT / "options" / "denoise_light.yml").read_text(encoding="utf-8"))
    for phase, folder in (("train", "photos"), ("val", "held_out")):
        table = {key: value for key, value in recipe["datasets"][phase].items() if key in ("gt_size", "augment")}
        recipe["datasets"][phase] = table | {"type": "SaltAndPepper", "share": 0.2, "dataroot_gt": folder}
    recipe["network_g"] |= SMALL
    (root / "salt.yml").write_text(yaml.safe_dump(recipe | {"name": "salt"}), encoding="utf-8")


def make_mixer(root: Path) -> None:
    """The mixer of docs/backbone.md as mean.py."""
    (snippet,) = [block for block in shown.python_blocks("docs/backbone.md") if "class MeanBlock" in block]
    (root / "mean.py").write_text(snippet, encoding="utf-8")


def make_lmdb(root: Path) -> None:
    """The LMDB that denoise.yml trains on."""
    from vheatir.prepare import patches as prepare

    prepare.make_lmdb(root / "photos", root / "datasets" / "DFWB_sub.lmdb")


def _network():
    from vheatir.archs.vheatunet_arch import VHeatUNet

    network = VHeatUNet(**SMALL)
    torch.nn.init.normal_(network.conv_last.weight, std=0.02)
    return network


def make_weights(root: Path, name: str = "mine") -> None:
    """A small network in a file of weights."""
    from vheatir import weights

    network = _network()
    metadata = {"arch": "VHeatUNet", "task": "denoise", "color": "color", "levels": "none", "license": "none"}
    metadata["config"] = json.dumps(network.config)
    weights.save(root / f"{name}.safetensors", network.state_dict(), metadata)


def make_small_denoiser(root: Path) -> None:
    """A small network under the name of shipped weights."""
    make_weights(root, "denoise_color_blind")


def make_checkpoint(root: Path) -> None:
    """A small network as BasicSR leaves it."""
    torch.save({"params": _network().state_dict()}, root / "net_g_latest.pth")


def make_classes(root: Path) -> None:
    """datasets/cifar10_subset with three classes, which stands for ImageNet too."""
    folder = small.make_images(root / "datasets" / "cifar10_subset", train=3, val=2)
    (root / "datasets" / "imagenet").symlink_to(folder, target_is_directory=True)


def make_classifiers(root: Path) -> None:
    """Files as `vheatir pretrain` leaves them, at the places that docs/analysis.md names, and vheat_tiny.pth."""
    from safetensors.torch import save_file

    from vheatir.backbone.models.create import create_model

    arguments = {key: value for key, value in small.SMALL.items() if key != "name"}
    weights = create_model("vheat_tiny", **arguments).state_dict()
    places = ["A", "B", "experiments/mine/models/best"]
    places += [f"experiments/cifar_mixers/{name}/models/latest_ema" for name in ("vheat", "swin")]
    for place in places:
        path = root / f"{place}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(weights, path, {"model": json.dumps(small.SMALL)})
    torch.save({"model": weights}, root / "vheat_tiny.pth")


def make_full_classifier(root: Path) -> None:
    """vheat_tiny.pth in full size."""
    from vheatir.backbone.models.create import create_model

    torch.save({"model": create_model("vheat_tiny").state_dict()}, root / "vheat_tiny.pth")


def make_dense(root: Path) -> None:
    """COCO, ADE20K, CamVid and BCCD, each with a few images of rectangles."""
    data = root / "datasets"
    coco = dense_data.make_coco(data / "coco", train=2, val=1)
    (coco / "annotations").mkdir()
    for split in ("train", "val"):
        (coco / split).rename(coco / f"{split}2017")
        (coco / f"{split}.json").rename(coco / "annotations" / f"instances_{split}2017.json")
    dense_data.make_label_maps(data / "ade20k", "ade20k", train=2, val=1)
    camvid = dense_data.make_label_maps(data / "camvid_subset", train=4, val=1)
    for path in camvid.glob("labels/*/*.png"):
        labels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        cv2.imwrite(str(path), np.where(labels > 0, labels + 7, labels))  # 8 and 9: Car and Pedestrian
    bccd = dense_data.make_voc(data / "bccd", count=4)
    for path in bccd.glob("Annotations/*.xml"):
        path.write_text(path.read_text().replace(">red<", ">RBC<").replace(">blue<", ">WBC<"))
    lists = bccd / "ImageSets" / "Main"
    shutil.copy(lists / "train.txt", lists / "test.txt")
    (lists / "train.txt").rename(lists / "trainval.txt")
