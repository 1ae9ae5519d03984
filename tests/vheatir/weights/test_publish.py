"""scripts/publish_weights.py: from a training checkpoint to weights and a card whose figures belong to them."""

import importlib.util
import json
import re
from pathlib import Path

import pytest
import torch
import yaml

from vheatir import weights
from vheatir.archs.vheatir_arch import VHeatIR
from vheatir.cli import run
from vheatir.utils.files import sha256

SCRIPT = Path(__file__).resolve().parents[3] / "scripts" / "publish_weights.py"
CONFIG = {"dim": 8, "depths": [1, 2], "embed_size": 8, "downscale": 2}
FACTS = {
    "levels": "sigma 0-55",
    "data": "400 photographs",
    "recipe": "options/denoise_light.yml",
    "command": "vheatir train -opt a | b",
    "commit": "0123abc",
    "hardware": "2 CPU cores",
    "time": "1.5 hours",
    "license": "as its 400 photographs: CC BY-SA 4.0",
}


@pytest.fixture
def checkpoint(tmp_path):
    network = VHeatIR(**CONFIG)
    torch.save({"params_ema": network.state_dict(), "params": VHeatIR(**CONFIG).state_dict()}, tmp_path / "net_g.pth")
    return tmp_path / "net_g.pth"


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("publish_weights", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def publish(script, checkpoint, tmp_path):
    facts = [text for key, value in FACTS.items() for text in (f"--{key}", value)]

    def call(*arguments, task="denoise"):
        fixed = [checkpoint, "--name", "tiny", "--task", task, "--folder", tmp_path, *facts]
        return run(script.main, [str(text) for text in [*fixed, *arguments]])

    return call


def evaluation(path, digest, **changes):
    row = {"data": "CBSD68", "task": "denoise", "color": "color", "level": 25, "images": 68}
    row |= {"input": {"psnr": 20.184, "ssim": 0.4, "psnrb": 20.0}, "restored": {"psnr": 31, "ssim": 0.88, "psnrb": 31}}
    path.write_text(json.dumps({"results": [row | changes], "metadata": {"weights": {"sha256": digest}}}))
    return path


def test_weights_are_those_of_the_moving_average_and_can_be_loaded(publish, checkpoint, tmp_path):
    assert publish() == 0
    network, metadata = weights.load(tmp_path / "tiny.safetensors")
    wanted = torch.load(checkpoint, weights_only=True)["params_ema"]
    for key, value in network.state_dict().items():
        torch.testing.assert_close(value, wanted[key].half().float(), atol=0, rtol=0)
    assert json.loads(metadata["config"]) == network.config
    assert metadata["license"] == FACTS["license"] and metadata["color"] == "color"


def test_the_short_name_of_a_license_stands_for_that_of_the_shipped_weights(publish, tmp_path):
    assert publish("--license", "bsds500") == 0
    shipped = weights.read("denoise_color_blind")[1]["license"]
    assert weights.read(tmp_path / "tiny.safetensors")[1]["license"] == shipped and "BSDS500" in shipped


def test_the_card_states_facts_figures_and_the_hash(publish, tmp_path):
    assert publish() == 0
    digest = sha256(tmp_path / "tiny.safetensors")
    assert publish("--evaluation", evaluation(tmp_path / "figures.json", digest)) == 0
    assert sha256(tmp_path / "tiny.safetensors") == digest, "publishing again gives the same file"
    card = (tmp_path / "tiny.md").read_text()
    assert digest in card and "Noise of cameras is different" in card
    assert all(value.replace("|", "\\|") in card for value in FACTS.values())
    assert "| CBSD68 | color | 25 | 68 | 20.18 / 0.4000 | 31.00 / 0.8800 | +10.82 |" in card
    rows = [line for line in card.splitlines() if line.startswith("| set") or line.startswith("| CBSD68")]
    assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1


def test_infinite_figures_are_null_in_the_file_and_stand_in_the_card(publish, tmp_path):
    """At sigma 0 the input equals the clean image."""
    publish()
    scores = {"psnr": None, "ssim": 1.0, "psnrb": None}
    file = evaluation(tmp_path / "figures.json", sha256(tmp_path / "tiny.safetensors"), level=0, input=scores)
    assert publish("--evaluation", file) == 0
    assert "| CBSD68 | color | 0 | 68 | inf / 1.0000 | 31.00 / 0.8800 | - |" in (tmp_path / "tiny.md").read_text()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"restored": None}, "without restored"), ({"task": "jpeg"}, "another task")],
    ids=["input only", "other task"],
)
def test_figures_that_do_not_belong_are_refused(publish, tmp_path, capsys, changes, reason):
    publish()
    file = evaluation(tmp_path / "figures.json", sha256(tmp_path / "tiny.safetensors"), **changes)
    assert publish("--evaluation", file) == 2
    assert reason in capsys.readouterr().err


def test_figures_of_other_weights_are_refused(publish, tmp_path, capsys):
    assert publish("--evaluation", evaluation(tmp_path / "figures.json", "0" * 64)) == 2
    assert "measured with weights 0000" in capsys.readouterr().err
    assert not (tmp_path / "tiny.safetensors").exists()


def test_figures_of_an_ensemble_are_refused(publish, tmp_path, capsys):
    publish()
    file = evaluation(tmp_path / "figures.json", sha256(tmp_path / "tiny.safetensors"))
    content = json.loads(file.read_text())
    content["metadata"]["ensemble"] = True
    file.write_text(json.dumps(content))
    assert publish("--evaluation", file) == 2
    assert "measured with --ensemble" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["no JSON", "[]", '{"results": []}'])
def test_files_that_hold_no_figures_are_named(publish, tmp_path, capsys, text):
    (tmp_path / "figures.json").write_text(text)
    assert publish("--evaluation", tmp_path / "figures.json") == 2
    assert "figures.json: not what `vheatir evaluate --json` writes" in capsys.readouterr().err


def test_what_was_published_before_stays_where_the_new_weights_are_refused(publish, checkpoint, tmp_path, capsys):
    """A card must never stand beside other weights."""
    assert publish() == 0
    before = sha256(tmp_path / "tiny.safetensors")
    figures = evaluation(tmp_path / "figures.json", before)
    state = VHeatIR(**CONFIG).state_dict()
    torch.save(state, checkpoint)
    assert publish("--evaluation", figures) == 2
    assert "evaluate these" in capsys.readouterr().err
    torch.save({**state, "norm.bias": state["norm.bias"] + 1e6}, checkpoint)
    assert publish() == 2
    assert "cannot be stored" in capsys.readouterr().err
    assert sha256(tmp_path / "tiny.safetensors") == before
    left = ["figures.json", "net_g.pth", "tiny.md", "tiny.safetensors"]
    assert sorted(path.name for path in tmp_path.iterdir()) == left


def test_a_folder_that_does_not_exist_is_made(publish, tmp_path):
    assert publish("--folder", tmp_path / "new" / "folder") == 0
    assert weights.load(tmp_path / "new" / "folder" / "tiny.safetensors")


def test_options_state_what_shapes_cannot_tell(publish, tmp_path):
    options = tmp_path / "options.yml"
    options.write_text(yaml.safe_dump({"network_g": {"type": "VHeatIR", "resize": "published", **CONFIG}}))
    assert publish("--options", options) == 0
    assert weights.load(tmp_path / "tiny.safetensors")[0].config["resize"] == "published"


def test_options_are_read_as_those_of_a_training(publish, tmp_path, capsys):
    """Plain YAML knows no `extends` and takes 1e-5 for text; broken YAML was a traceback."""
    table = "{type: VHeatIR, layer_scale: 1e-5, " + json.dumps(CONFIG)[1:]
    (tmp_path / "base.yml").write_text(f"network_g: {table}\n")
    (tmp_path / "options.yml").write_text("extends: base.yml\nname: tiny\n")
    network = VHeatIR(**CONFIG, layer_scale=1e-5)
    torch.save({"params": network.state_dict()}, tmp_path / "net_g.pth")
    assert publish("--options", tmp_path / "options.yml") == 0
    assert weights.load(tmp_path / "tiny.safetensors")[0].config["layer_scale"] == 1e-5
    (tmp_path / "options.yml").write_text("network_g: [")
    assert publish("--options", tmp_path / "options.yml") == 2
    assert "options.yml: not valid YAML" in capsys.readouterr().err
    for text in ("name: tiny\n", "network_g: VHeatIR\n"):
        (tmp_path / "options.yml").write_text(text)
        assert publish("--options", tmp_path / "options.yml") == 2
        assert "options.yml: holds no table network_g" in capsys.readouterr().err


def test_other_networks_are_refused(publish, checkpoint, tmp_path, capsys):
    torch.save({"params": {"conv.weight": torch.zeros(3, 3)}}, checkpoint)
    assert publish() == 2
    assert str(checkpoint) in capsys.readouterr().err and not (tmp_path / "tiny.safetensors").exists()


def _saved(network, folder):
    """As the weights of a run."""
    folder.mkdir()
    metadata = {"config": json.dumps(network.config), "task": "denoise", "color": "color", "levels": "?"}
    weights.save(folder / "best.safetensors", network.state_dict(), {**metadata, "license": "not stated"})
    return folder / "best.safetensors"


def test_the_license_must_be_said(script, checkpoint, tmp_path, capsys):
    """Which data the weights were trained on, nothing else knows."""
    facts = [text for key, value in FACTS.items() if key != "license" for text in (f"--{key}", value)]
    with pytest.raises(SystemExit):
        script.main([str(checkpoint), "--name", "tiny", "--task", "denoise", "--folder", str(tmp_path), *facts])
    assert "--license" in capsys.readouterr().err and not (tmp_path / "tiny.safetensors").exists()


def test_the_card_of_an_own_degradation_speaks_of_no_gaussian_noise(publish, tmp_path):
    assert publish(task="paired") == 0
    metadata = weights.load(tmp_path / "tiny.safetensors")[1]
    assert metadata["task"] == weights.PAIRED and weights.serve(metadata, "jpeg")
    card = (tmp_path / "tiny.md").read_text()
    assert "Removal of the degradation in its own training data; color" in card and "Gaussian" not in card


def test_of_several_checkpoints_the_mean_is_published(script, tmp_path, capsys):
    facts = [text for key, value in FACTS.items() for text in (f"--{key}", value)]
    fixed = ["--name", "tiny", "--task", "denoise", "--folder", str(tmp_path), *facts]
    network = VHeatIR(**CONFIG)
    files, values = [], []
    for number in range(3):
        torch.nn.init.normal_(network.conv_last.weight, std=0.02)
        files.append(str(_saved(network, tmp_path / str(number))))
        values.append(network.conv_last.weight.detach().clone())
    assert run(script.main, [*files, *fixed]) == 0
    mean = weights.load(tmp_path / "tiny.safetensors")[0].conv_last.weight
    torch.testing.assert_close(mean, sum(values) / 3, atol=1e-4, rtol=0)
    assert all(not torch.allclose(mean, value, atol=1e-3) for value in values)
    other = _saved(VHeatIR(**CONFIG | {"depths": [1, 1]}), tmp_path / "other")
    assert run(script.main, [files[0], str(other), *fixed]) == 2
    assert re.search(r"other/best.*VHeatIR.*depths", capsys.readouterr().err)
