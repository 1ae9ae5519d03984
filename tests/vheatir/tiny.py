"""A small network in a file, images, and what lies in a folder: shared by the tests of restoring."""

import json
from pathlib import Path

import numpy as np
import torch

from vheatir import weights
from vheatir.archs.vheatir_arch import VHeatIR
from vheatir.image_io import Image, write_image


def write_weights(path, task="denoise", **changes):
    """A small network whose random last layer really changes the image."""
    torch.manual_seed(0)
    network = VHeatIR(**{"dim": 8, "depths": [1], "embed_size": 8, "downscale": 2} | changes)
    torch.nn.init.normal_(network.conv_last.weight, std=0.02)
    metadata = {"task": task, "color": "color", "levels": "none", "license": "none"}
    weights.save(path, network.state_dict(), {"config": json.dumps(network.config), **metadata})
    return path


def image(path, shape=(12, 10, 3), depth=8):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).uniform(size=shape).astype(np.float32)
    write_image(path, Image(pixels, bit_depth=depth))
    return path


def below(folder):
    return sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file())
