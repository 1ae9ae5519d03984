"""Every recipe of detection and segmentation: its network has the published size, and makes a step, shrunk."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("timm", reason="training backbones needs the extra `backbone`")
pytest.importorskip("pycocotools", reason="detection needs the extra `detection`")

from tests.backbone import dense_data
from vheatir.backbone.analysis.cost import count_macs
from vheatir.backbone.dense.cost import WholeDetector, folded_for
from vheatir.backbone.detection.model import build_detector
from vheatir.backbone.models.feature_maps import build_features
from vheatir.backbone.segmentation.upernet import Segmenter
from vheatir.backbone.training.batches import checked, train_loader
from vheatir.detect import DetectSession
from vheatir.segment import SegmentSession
from vheatir.utils.recipes import find_options, load_table, recipes

SESSIONS = {"detection": DetectSession, "segmentation": SegmentSession}
NAMES = [(task, path.stem) for task in SESSIONS for path in sorted((recipes() / task).glob("*.yml"))]
# drop_path_rate of each row of the papers' tables.
ROWS = {f"mask_rcnn_vheat_{row}": rate for row, rate in (("tiny_1x", 0.1), ("tiny_3x", 0.2), ("small_1x", 0.3))}
ROWS |= {"mask_rcnn_vheat_small_3x": 0.4, "mask_rcnn_vheat_base_1x": 0.5}
ROWS |= {
    f"mask_rcnn_unified_{mixer}_{size}_1x": rate
    for mixer in ("halo", "pvt", "swin", "convnext", "dcn_v3")
    for size, rate in (("micro", 0.1), ("tiny", 0.2), ("small", 0.2), ("base", 0.3))
}
ROWS |= {f"upernet_vheat_{size}_ade20k": rate for size, rate in (("tiny", 0.3), ("small", 0.4), ("base", 0.5))}


def table_of(task: str, name: str, *changes: str) -> dict:
    return load_table(find_options(f"{task}/{name}"), changes)


@pytest.fixture(scope="module")
def roots(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("data")
    layouts = {
        name: dense_data.make_label_maps(folder / name, name, 2, 1) for name in ("ade20k", "cityscapes", "folders")
    }
    return {
        "coco": dense_data.make_coco(folder / "coco", 2, 1),
        "voc": dense_data.make_voc(folder / "voc", 2),
        **layouts,
    }


def shrink(task: str, table: dict, roots: dict[str, Path]) -> dict:
    """The recipe on small data with a small network; its kind, rules and rates as they are."""
    if table["backbone"]["name"] != "resnet18":
        table["backbone"] |= dense_data.shrunk(table["backbone"]["name"])
    data = table["data"] | {"batch_size": 2, "workers": 0}
    table["train"]["warmup_steps"] = 1
    if task == "segmentation":
        table["head"] |= {"channels": 8, "aux_channels": 8}
        table["augment"] |= {"scale": [72, 56], "crop": 48}
        table["val"] |= {"scale": [72, 56], "crop": 48, "stride": 32}
        data["root"] = str(roots[data["layout"]])
    else:
        table["detector"] |= {"channels": 8, "short_side": 56, "long_side": 96, "proposals": [16, 8], "box_samples": 8}
        table["detector"]["anchors"] = [8, 16, 32, 64, 128]
        table["augment"] |= {"short_sides": [48, 56], "long_side": 96}
        names = (
            {"train": "train", "val": "train"}
            if data["format"] == "voc"
            else {"train": "train.json", "val": "val.json"}
        )
        data |= {"root": str(roots[data["format"]]), "train_images": "train", "val_images": "val", **names}
        data |= {"num_classes": 2, "classes": ["red", "blue"]}
    return {**table, "data": data, "device": "cpu"}


def test_every_row_has_its_recipe():
    assert set(ROWS) <= {name for _, name in NAMES}
    for task, name in NAMES:
        if name in ROWS:
            assert table_of(task, name)["backbone"]["drop_path_rate"] == ROWS[name], name
            assert f"_{table_of(task, name)['backbone']['name'].split('_', 1)[1]}_" in name


@pytest.mark.parametrize("task, name", NAMES, ids=lambda value: value)
def test_each_recipe_builds_and_steps(task, name, roots):
    table = shrink(task, table_of(task, name), roots)
    session = SESSIONS[task](Path(f"{name}.yml"), table, "train")
    samples = session.samples()
    plan = session.plan(len(samples))
    optimizer = session.optimizer(plan)
    session.lr_schedule(optimizer, plan)(session.until(plan).total // 2)
    batch = next(checked(train_loader(samples, plan, 0, 1, 0, False)))
    before = {key: value.clone() for key, value in session.model.named_parameters()}
    loss, scalars = session.task().loss(session.model.train(), batch)
    loss.backward()
    optimizer.step()
    assert 0 < loss.item() < 30 and all(value.isfinite() for value in scalars.values())
    moved = [key for key, value in session.model.named_parameters() if not torch.equal(value, before[key])]
    assert {"backbone", "rpn", "roi_heads"} <= {key.split(".")[0] for key in moved} or task == "segmentation"
    assert {"body", "head", "auxiliary"} <= {key.split(".")[0] for key in moved} or task == "detection"


def parameters(model: torch.nn.Module) -> float:
    return sum(parameter.numel() for parameter in model.parameters()) / 1e6


@pytest.mark.parametrize("size, published, giga", [("tiny", 53, 286), ("small", 74, 377), ("base", 115, 526)])
def test_mask_rcnn_has_the_published_size_and_cost(size, published, giga):
    """In the form for training, with frequency embeddings for images of 512; costs at 800 x 1280."""
    recipe = DetectSession.read(table_of("detection", f"mask_rcnn_vheat_{size}_1x"))
    with torch.device("meta"):
        model = build_detector(build_features(recipe.backbone), recipe.detector, 80)
    assert parameters(model) == pytest.approx(published, rel=0.02)
    assert count_macs(WholeDetector(model), (800, 1280))["total"] / 1e9 == pytest.approx(giga, rel=0.005)


@pytest.mark.parametrize("size, published, merged", [("tiny", 62, True), ("small", 82, True), ("base", 129, False)])
def test_upernet_has_the_published_size(size, published, merged):
    """Tiny and small in the merged form for images of 224, base in the form for training at 512."""
    recipe = SegmentSession.read(table_of("segmentation", f"upernet_vheat_{size}_ade20k"))
    with torch.device("meta"):
        model = Segmenter(build_features(recipe.backbone), recipe.head, 150)
    assert parameters(folded_for(model, (224, 224)) if merged else model) == pytest.approx(published, rel=0.02)


def test_published_rules_of_decay():
    recipe = DetectSession.read(table_of("detection", "mask_rcnn_unified_swin_micro_1x"))
    assert recipe.train.no_decay == ("norm", "absolute_pos_embed", "relative_position_bias_table")
    assert DetectSession.read(table_of("detection", "mask_rcnn_vheat_tiny_3x")).train.no_decay == ("norm",)
    from vheatir.backbone.dense.recipe import parameter_groups

    body = build_features(dense_data.shrunk("unified_swin_micro"))
    decayed, free = (set(map(id, group["params"])) for group in parameter_groups(body, 0.05, recipe.train.no_decay))
    for name, parameter in body.named_parameters():
        exempt = "norm" in name or "relative_position_bias_table" in name
        assert id(parameter) in (free if exempt else decayed), name
    assert any("bias" in name and id(p) in decayed for name, p in body.named_parameters())


def test_rates_of_the_published_schedules():
    from vheatir.backbone.dense.recipe import DenseTrain, make_lr_schedule

    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)])

    def rate(train, step, steps, per_epoch):
        make_lr_schedule(train, optimizer, steps, per_epoch)(step)
        return optimizer.param_groups[0]["lr"]

    detection = DetectSession.read(table_of("detection", "mask_rcnn_vheat_tiny_1x")).train
    per_epoch = 7330  # of COCO's 117 266 images with objects, 16 a step
    got = [rate(detection, step, 12 * per_epoch, per_epoch) for step in (0, 999, 8 * 7330 - 1, 8 * 7330, 11 * 7330)]
    assert got == pytest.approx([1e-7, 1e-4, 1e-4, 1e-5, 1e-6])
    segmentation = SegmentSession.read(table_of("segmentation", "upernet_vheat_tiny_ade20k")).train
    got = [rate(segmentation, step, 160000, 1263) for step in (0, 1500, 80750, 159999)]
    assert got == pytest.approx([6e-11, 6e-5, 6e-5 * (1 - 79250 / 158499), 0], abs=1e-12)
    assert rate(DenseTrain(epochs=1, warmup_steps=0), 0, 10, 10) == 1e-4
