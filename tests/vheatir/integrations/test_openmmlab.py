"""The adapter for OpenMMLab's libraries, against a stand-in for their registry."""

import sys
import types

import pytest
import torch

pytest.importorskip("timm", reason="the backbones need the extra `backbone`")

from vheatir.backbone.models.create import create_model
from vheatir.integrations import openmmlab

SMALL = {"img_size": 64, "dims": 8, "depths": [1, 1, 1, 1]}


class Registry:
    """What the adapter uses of mmengine's Registry: registration by class name, building from a table."""

    def __init__(self):
        self.classes = {}

    def register_module(self, name=None, force=False, module=None):
        name = name or module.__name__
        if name in self.classes and not force:
            raise KeyError(f"{name} is already registered")
        self.classes[name] = module
        return module

    def build(self, config: dict):
        arguments = dict(config)
        return self.classes[arguments.pop("type")](**arguments)


@pytest.fixture
def installed(monkeypatch):
    """A stand-in for an installed mmdet."""
    registry = Registry()
    module = types.ModuleType("mmdet.registry")
    module.MODELS = registry
    monkeypatch.setitem(sys.modules, "mmdet", types.ModuleType("mmdet"))
    monkeypatch.setitem(sys.modules, "mmdet.registry", module)
    return registry


def test_nothing_is_registered_where_nothing_is_installed():
    assert openmmlab.register() == []


def test_a_backbone_is_built_from_a_configuration(installed):
    assert openmmlab.register() == [installed] == openmmlab.register()
    network = installed.build({"type": "VHeatIRBackbone", "name": "vheat_tiny", **SMALL})
    maps = network(torch.randn(1, 3, 64, 96))
    assert isinstance(maps, tuple)
    assert [tuple(one.shape) for one in maps] == [(1, 8, 16, 24), (1, 16, 8, 12), (1, 32, 4, 6), (1, 64, 2, 3)]


def test_init_weights_loads_a_classifier(installed, tmp_path):
    openmmlab.register()
    classifier = create_model("vheat_tiny", **SMALL, num_classes=3)
    torch.save({"model": classifier.state_dict()}, tmp_path / "classifier.pth")
    config = {"type": "VHeatIRBackbone", "name": "vheat_tiny", "checkpoint": str(tmp_path / "classifier.pth"), **SMALL}
    network = installed.build(config)
    network.init_weights()
    key = "layers.2.0.op.to_k.0.weight"
    assert torch.equal(network.body.state_dict()[key], classifier.state_dict()[key])


def test_a_broken_installation_is_not_taken_for_none(installed, monkeypatch):
    monkeypatch.setitem(sys.modules, "mmdet", types.ModuleType("mmdet"))
    monkeypatch.delitem(sys.modules, "mmdet.registry")
    with pytest.raises(ModuleNotFoundError, match="mmdet"):
        openmmlab.register()
