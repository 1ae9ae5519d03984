"""scripts/publish_weights.py turns what a run leaves behind into weights and a card that name each other."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from vheatir import weights
from vheatir.archs.vheatir_arch import VHeatIR
from vheatir.errors import UserError
from vheatir.utils.files import sha256

SCRIPT = Path(__file__).parents[3] / "scripts" / "publish_weights.py"
FACTS = ["--name", "mine", "--task", "denoise", "--levels", "sigma 0-55", "--data", "photos", "--recipe", "mine.yml"]
FACTS += ["--command", "vheatir train -opt mine.yml", "--hardware", "a laptop", "--time", "a day", "--commit", "abc"]
FACTS += ["--license", "CC BY 4.0, as the photos"]


@pytest.fixture
def publish():
    spec = importlib.util.spec_from_file_location("publish_weights", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.fixture
def network():
    network = VHeatIR(dim=8, depths=(1,), embed_size=4, downscale=2, reach=(0.5, 4.0)).eval()
    torch.nn.init.normal_(network.conv_last.weight, std=0.02)
    return network


def _saved(network, folder: Path, suffix: str) -> Path:
    path = folder / f"best{suffix}"
    if suffix == ".pth":
        torch.save({"params_ema": network.state_dict()}, path)
    else:
        metadata = {"config": json.dumps(network.config), "task": "denoise", "color": "color", "levels": "?"}
        weights.save(path, network.state_dict(), {**metadata, "license": "not stated"})
    return path


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_published_weights_are_the_trained_ones_and_the_card_names_them(suffix, publish, network, tmp_path):
    assert publish([str(_saved(network, tmp_path, suffix)), *FACTS, "--folder", str(tmp_path)]) == 0
    path = tmp_path / "mine.safetensors"
    loaded, metadata = weights.load(path)
    image = torch.rand(1, 3, 12, 10)
    torch.testing.assert_close(loaded(image), network(image), atol=2e-3, rtol=0)
    assert metadata["levels"] == "sigma 0-55" and metadata["license"] == "CC BY 4.0, as the photos"
    card = (tmp_path / "mine.md").read_text()
    assert all(text in card for text in (sha256(path), "a laptop", "photos", "Gaussian noise", "abc"))


def test_the_license_must_be_said(publish, network, tmp_path, capsys):
    """Which data the weights were trained on, nothing else knows."""
    facts = FACTS[: FACTS.index("--license")]
    with pytest.raises(SystemExit):
        publish([str(_saved(network, tmp_path, ".pth")), *facts, "--folder", str(tmp_path)])
    assert "--license" in capsys.readouterr().err and not (tmp_path / "mine.safetensors").exists()


def test_the_card_of_an_own_degradation_speaks_of_no_gaussian_noise(publish, network, tmp_path):
    facts = ["paired" if fact == "denoise" else fact for fact in FACTS]
    assert publish([str(_saved(network, tmp_path, ".pth")), *facts, "--folder", str(tmp_path)]) == 0
    _, metadata = weights.load(tmp_path / "mine.safetensors")
    assert metadata["task"] == weights.PAIRED and weights.serve(metadata, "jpeg")
    card = (tmp_path / "mine.md").read_text()
    assert "Removal of the degradation in its own training data; color" in card and "Gaussian" not in card


def test_figures_of_other_weights_are_refused(publish, network, tmp_path):
    figures = tmp_path / "figures.json"
    figures.write_text(json.dumps({"results": [], "metadata": {"weights": {"sha256": "0" * 64}}}))
    checkpoint = str(_saved(network, tmp_path, ".safetensors"))
    with pytest.raises(UserError, match="evaluate these"):
        publish([checkpoint, *FACTS, "--folder", str(tmp_path), "--evaluation", str(figures)])


def test_of_several_checkpoints_the_mean_is_published(publish, network, tmp_path):
    files, states = [], []
    for number in range(3):
        folder = tmp_path / str(number)
        folder.mkdir()
        with torch.no_grad():
            network.conv_last.weight.add_(0.01 * number**2)
        files.append(str(_saved(network, folder, ".safetensors")))
        states.append(network.conv_last.weight.detach().clone())
    assert publish([*files, *FACTS, "--folder", str(tmp_path)]) == 0
    mean = weights.load(tmp_path / "mine.safetensors")[0].conv_last.weight
    torch.testing.assert_close(mean, sum(states) / 3, atol=1e-4, rtol=0)
    assert all(not torch.allclose(mean, state, atol=1e-3) for state in states)

    other = VHeatIR(dim=8, depths=(1, 1), embed_size=4, downscale=2, reach=(0.5, 4.0))
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match=r"other/best.*VHeatIR.*depths"):
        publish([files[0], str(_saved(other, tmp_path / "other", ".safetensors")), *FACTS, "--folder", str(tmp_path)])
