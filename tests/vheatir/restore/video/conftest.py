"""Weights and a restorer for clips."""

import pytest

import vheatir


@pytest.fixture
def weights(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tiny.write_weights(tmp_path / "w.safetensors")


@pytest.fixture
def restorer(weights):
    return vheatir.Restorer("denoise", weights)
