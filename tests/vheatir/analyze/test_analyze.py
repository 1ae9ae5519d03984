"""`vheatir analyze`: each analysis is one command that writes figures and JSON."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("timm", reason="backbones need the extra `backbone`")

from matplotlib.figure import Figure
from safetensors.torch import load_file, save_file

from tests.backbone.classification import small
from vheatir.analyze import figures
from vheatir.analyze.command import main
from vheatir.analyze.images import image_batches
from vheatir.analyze.networks import choose
from vheatir.backbone.analysis.cost import count_macs
from vheatir.backbone.models.create import create_model
from vheatir.errors import UserError

SIZES = ["--set", "img_size=32", "--set", "dims=8", "--set", "depths=[1, 1, 1, 1]", "--set", "num_classes=3"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """Weights as `vheatir pretrain` leaves them, with the network's arguments."""
    torch.manual_seed(1)
    arguments = {key: value for key, value in small.SMALL.items() if key != "name"}
    path = tmp_path_factory.mktemp("runs") / "mine" / "models" / "best.safetensors"
    path.parent.mkdir(parents=True)
    save_file(create_model("vheat_tiny", **arguments).state_dict(), path, {"model": json.dumps(small.SMALL)})
    return path


def analyze(out: Path, name: str, *arguments: object) -> dict:
    """What the command wrote as JSON; the figures have to be images."""
    assert main([name, "-o", str(out), *map(str, arguments)]) == 0
    figures = sorted(out.glob("*.png"))
    assert figures
    for path in figures:
        with Image.open(path) as image:
            assert np.ptp(np.asarray(image.convert("L"))) > 100, path  # something is drawn
        assert "<svg" in path.with_suffix(".svg").read_text()
    return json.loads((out / f"{name.replace('-', '_')}.json").read_text())


def test_names_with_dollars_are_drawn_as_they_are(tmp_path):
    name, levels = "my$x^$", {"levels": [0, 1], "consistency": [1, 2], "acc1": [1, 2]}
    row = {"network": name, "macs": {"total": 1e9}, "parameters": {"total": 1e6}, "inference": {"images_per_s": 2}}
    drawn = {
        "invariance": figures.invariance_figure([{"network": name, "kinds": {"translation": levels}}]),
        "field": figures.receptive_field_figure({name: {"trained": np.ones((3, 3))}}),
        "cost": figures.cost_figure([row]),
    }
    for stem, figure in drawn.items():
        figures.save(figure, tmp_path / stem)
        assert f"<!-- {name} -->" in (tmp_path / f"{stem}.svg").read_text()


def test_cost(tmp_path, capsys):
    models = ["--model", "vheat_tiny", "unified_swin_micro"]
    sizes = ["--set", "dims=24", "--set", "depths=[1, 1, 1, 1]", "--img-size", "32", "--batch", "2"]
    found = analyze(tmp_path, "cost", *models, *sizes, "--rounds", "2")
    heat, swin = found["results"]
    assert heat["merged"]["macs"]["total"] < heat["macs"]["total"] and "merged" not in swin
    for row in (heat, swin):
        assert row["training"]["images_per_s"] > 0 and row["training"]["peak_mib"] > row["inference"]["peak_mib"] > 0
    assert "GMACs" in capsys.readouterr().out and found["metadata"]["command"].startswith("vheatir analyze cost")


def test_costs_of_trained_weights_are_those_at_their_own_size(weights, tmp_path):
    """The weights state images of 32 pixels, the command's default is 224."""
    (row,) = analyze(tmp_path, "cost", "--weights", weights, "--batch", "2", "--rounds", "2")["results"]
    assert row["img_size"] == [32, 32] and row["inference"]["images_per_s"] > 0
    assert row["macs"]["total"] == count_macs(create_model(**small.SMALL), 32)["total"]


def test_the_start_of_a_released_network_is_without_its_weights(tmp_path, monkeypatch):
    """`--set pretrained=true` names weights too: the field at the start is another one than theirs."""
    built = []

    def create(name, pretrained=False, **arguments):
        built.append(pretrained)
        return create_model(name, **arguments)

    monkeypatch.setattr("vheatir.analyze.networks.create_model", create)
    rows = analyze(tmp_path, "receptive-field", "--model", "vheat_tiny", *SIZES, "--set", "pretrained=true")["results"]
    assert [row["state"] for row in rows] == ["at the start", "trained"] and built == [False, True]


def test_cost_of_all_models_is_counted_without_being_run(tmp_path, monkeypatch):
    monkeypatch.setattr("vheatir.analyze.networks.list_models", lambda: ["vheat_tiny", "unified_heat_micro"])
    rows = analyze(tmp_path, "cost", "--rounds", "0")["results"]
    assert [(row["network"], "training" in row) for row in rows] == [
        ("vheat_tiny", False),
        ("unified_heat_micro", False),
    ]
    assert rows[0]["parameters"]["total"] == 30853480


@pytest.mark.parametrize("protocol", ["exact", "published"])
def test_invariance(weights, tmp_path, protocol):
    root = small.make_images(tmp_path / "set", train=1, val=2)
    common = ["--weights", weights, "--data", root, "--protocol", protocol, "--batch", "4"]
    found = analyze(tmp_path / "a", "invariance", *common)
    (row,) = found["results"]
    assert found["protocol"] == protocol and row["network"] == "mine"
    assert set(row["kinds"]) == {"translation", "pre_rotation", "post_rotation", "scale"}
    turned = row["kinds"]["post_rotation"]
    assert turned["images"] == 6 and turned["consistency"][0] == 100 and len(turned["acc1"]) == 19
    again = analyze(tmp_path / "b", "invariance", *common[:-1], "1", "--workers", "1", "--kinds", "translation")
    shifts = again["results"][0]["kinds"]["translation"]
    assert shifts["acc1"] == pytest.approx(row["kinds"]["translation"]["acc1"])  # neither batches nor processes matter


def test_classes_have_the_numbers_of_the_weights(weights, tmp_path):
    """Otherwise top-1 would be that of other classes, as after a training with `data.class_map`."""
    root = small.make_images(tmp_path / "set", train=1, val=1)
    names = ["red", "green", "blue"]  # not in the order of the folders
    file = tmp_path / "ordered.safetensors"
    save_file(load_file(weights), file, {"model": json.dumps(small.SMALL), "classes": json.dumps(names)})
    (tmp_path / "names.txt").write_text("\n".join(names))
    common = ["--weights", file, "--data", root, "--kinds", "scale"]
    with pytest.raises(UserError, match=r"'blue' is number 2 in .*ordered\.safetensors.* file for --class-map"):
        analyze(tmp_path / "a", "invariance", *common)
    found = analyze(tmp_path / "b", "invariance", *common, "--class-map", tmp_path / "names.txt")
    assert found["results"][0]["kinds"]["scale"]["images"] == 3
    with pytest.raises(UserError, match=r"class_map belongs to data\.reader folder.*--class-map is data\.class_map"):
        analyze(tmp_path / "c", "invariance", *common, "--reader", "list", "--class-map", tmp_path / "names.txt")
    shutil.rmtree(root / "train")
    shutil.rmtree(root / "val" / "red")
    with pytest.raises(UserError, match=r"val has 2 classes, the model 3.*--class-map is data\.class_map"):
        analyze(tmp_path / "d", "invariance", *common)


def test_receptive_field_before_and_after_training(weights, tmp_path):
    rows = analyze(tmp_path / "noise", "receptive-field", "--weights", weights, "--limit", "2", "--stage", "1")
    assert [row["state"] for row in rows["results"]] == ["at the start", "trained"]
    for ratio in (row["area_ratio"] for row in rows["results"]):
        assert 0 < ratio["0.2"] <= ratio["0.5"] <= ratio["0.99"] <= 1
    images = small.make_images(tmp_path / "set", train=1, val=1)
    rows = analyze(tmp_path / "images", "receptive-field", "--model", "unified_heat_micro", *SIZES, "--images", images)
    assert [row["state"] for row in rows["results"]] == ["at the start"]


def test_heat_images(weights, tmp_path):
    (row,) = analyze(tmp_path, "heat", "--weights", weights)["results"]
    assert {path.stem for path in tmp_path.glob("*.png")} == {"heat_points", "heat_decay"}
    assert [(layer["stage"], layer["block"]) for layer in row["layers"]] == [(stage, 0) for stage in range(4)]


def test_heat_images_of_several_networks_have_names_of_their_own(tmp_path):
    analyze(tmp_path, "heat", "--model", "vheat_tiny", "unified_heat_micro", *SIZES)
    assert len(list(tmp_path.glob("*.png"))) == 4


def test_one_network_may_be_named_without_a_list(weights):
    assert [one.label for one in choose("vheat_tiny", (), {}, "cpu").networks] == ["vheat_tiny"]
    for path in (weights, str(weights)):
        assert [one.label for one in choose((), path, {}, "cpu").networks] == ["mine"]


@pytest.mark.parametrize("place", ["", "models", "mine/models"])
def test_a_run_has_its_name_wherever_the_command_is_called(weights, place, monkeypatch):
    file = Path(place, weights.name)
    monkeypatch.chdir(weights.parents[len(file.parts) - 1])
    (network,) = choose((), [file], {}, "cpu").networks
    assert network.label == "mine"


def test_figures_of_networks_whose_names_have_dots_do_not_replace_each_other(tmp_path):
    written = [path for name in ("heat_lr_0.1", "heat_lr_0.2") for path in figures.save(Figure(), tmp_path / name)]
    names = ["heat_lr_0.1.png", "heat_lr_0.1.svg", "heat_lr_0.2.png", "heat_lr_0.2.svg"]
    assert [path.name for path in written] == sorted(path.name for path in tmp_path.iterdir()) == names


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["heat"], r"name a network: --model NAME, --weights FILE"),
        (["heat", "--model", "vheat_huge"], r"vheat_huge cannot be built"),
        (["heat", "--model", "resnet18"], r"resnet18 is none of this package's backbones"),
        (["heat", "--model", "unified_swin_micro"], r"no heat layers"),
        (["heat", "--weights", "none.safetensors"], r"no checkpoint none\.safetensors"),
        (["heat", "--model", "vheat_tiny", "--set", "img_size"], r"--set img_size: expected KEY=VALUE"),
        (["heat", "--model", "vheat_tiny", "--set", "dimz=8"], r"vheat_tiny cannot be built .*dimz"),
        (["invariance", "--model", "vheat_tiny", "--data", "nowhere"], r"data\.root nowhere: no such folder"),
        (
            ["invariance", "--model", "vheat_tiny", *SIZES, "--data", ".", "--reader", "wds/x"],
            r"--reader wds/x gives images in a row only",
        ),
        (["receptive-field", "--model", "vheat_tiny", "--images", "."], r"holds no images"),
        (["receptive-field", "--model", "vheat_tiny", *SIZES, "--stage", "4"], r"has the stages 0 to 3, or -1"),
        (["heat", "--model", "vheat_tiny", *SIZES, "--set", "img_size=4"], r"all of its maps are of one pixel"),
        (["receptive-field", "--model", "vheat_tiny", "--set", "img_size=[32, 64]"], r"views are square"),
    ],
)
def test_what_is_wrong_is_said(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        main(arguments)
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize("limit", ["0", "-3", "all"])
def test_a_limit_is_a_number_of_images(limit, capsys):
    with pytest.raises(SystemExit):
        main(["receptive-field", "--model", "vheat_tiny", f"--limit={limit}"])
    assert f"--limit: expected a whole number above 0, got {limit}" in capsys.readouterr().err


def test_files_without_arguments_need_a_name(weights, tmp_path):
    plain = tmp_path / "plain.pth"
    torch.save(create_model("vheat_tiny", img_size=32, dims=8, depths=(1, 1, 1, 1), num_classes=3).state_dict(), plain)
    with pytest.raises(UserError, match="add --model NAME"):
        main(["heat", "--weights", str(plain), "-o", str(tmp_path)])
    assert main(["heat", "--weights", str(plain), "--model", "vheat_tiny", *SIZES, "-o", str(tmp_path)]) == 0
    with pytest.raises(UserError, match="set num_classes"):
        main(["heat", "--weights", str(weights), "--set", "num_classes=5", "-o", str(tmp_path)])
    with pytest.raises(UserError, match="two networks have one name"):
        main(["heat", "--weights", str(weights), str(weights), "-o", str(tmp_path)])


def test_a_network_beside_weights_of_another_is_not_passed_over(weights):
    with pytest.raises(UserError, match=r"^unified_swin_micro: the weights belong to vheat_tiny; give either"):
        choose(["vheat_tiny", "unified_swin_micro"], [weights], {}, "cpu")
    assert [one.label for one in choose(["vheat_tiny"], [weights], {}, "cpu").networks] == ["mine"]


@pytest.mark.parametrize("named", [[], ["--model", "vheat_tiny"]])
def test_weights_of_detectors_and_segmenters_are_refused(named, tmp_path):
    file = tmp_path / "best.safetensors"
    described = {"backbone": {"name": "vheat_tiny"}, "classes": ["car"]}
    save_file({"body.outnorm0.weight": torch.ones(8)}, file, {"model": json.dumps(described)})
    with pytest.raises(UserError, match=r"best\.safetensors: weights of a detector or segmenter"):
        main(["heat", "--weights", str(file), *named, "-o", str(tmp_path)])


def test_images_of_a_folder_are_found_behind_links_and_without_hidden_ones(tmp_path):
    for name in ("set/a.png", "elsewhere/b.png"):
        (tmp_path / name).parent.mkdir()
        Image.new("RGB", (40, 40), "gray").save(tmp_path / name)
    (tmp_path / "set" / "._a.png").write_bytes(b"what macOS leaves in archives")
    (tmp_path / "set" / "link").symlink_to(tmp_path / "elsewhere")
    model = create_model("vheat_tiny", **{key: value for key, value in small.SMALL.items() if key != "name"})
    assert sum(len(batch) for batch in image_batches(model, tmp_path / "set", 9, 4, 0)) == 2
    with pytest.raises(UserError, match="the folder cannot be read"):
        list(image_batches(model, tmp_path / "none", 9, 4, 0))
