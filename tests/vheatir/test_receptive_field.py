"""`vheatir receptive-field`: gradients against networks whose receptive field is known."""

import io
import json

import cv2
import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from vheatir.errors import UserError
from vheatir.receptive_field import draw_fields, effective_receptive_field, held_within, main, side_of_share


class _Blurred(nn.Module):
    """The input plus a fixed 5x5 convolution of it."""

    def __init__(self, kernel):
        super().__init__()
        self.kernel = kernel

    def forward(self, image):
        return image + nn.functional.conv2d(image, self.kernel, padding=2)


def test_field_of_a_convolution_is_its_mirrored_kernel():
    kernel = torch.randn(1, 1, 5, 5, dtype=torch.float64)
    images = [torch.rand(1, 1, 11, 13, dtype=torch.float64) for _ in range(2)]
    field = effective_receptive_field(_Blurred(kernel), images, (5, 6))
    want = torch.zeros(11, 13, dtype=torch.float64)
    want[3:8, 4:9] = kernel[0, 0].abs()  # a correlation: pixel y + i weighs kernel[i]
    assert_close(field, want)


def test_field_is_the_derivative_of_the_correction(tiny, tmp_path):
    from vheatir import weights

    network, _ = weights.load(tiny.write_weights(tmp_path / "w.safetensors"))
    network = network.double().eval()
    image, step = torch.rand(1, 3, 12, 12, dtype=torch.float64), 1e-6
    field = effective_receptive_field(network, [image], (6, 5))

    def corrected(pixels):
        with torch.no_grad():
            return (network(pixels) - pixels)[0, :, 6, 5].sum()

    for y, x in ((6, 5), (0, 11), (7, 4)):
        want = 0.0
        for channel in range(3):
            moved = [image.clone(), image.clone()]
            moved[0][0, channel, y, x] += step
            moved[1][0, channel, y, x] -= step
            want += abs(corrected(moved[0]) - corrected(moved[1])) / (2 * step)
        assert float(field[y, x]) == pytest.approx(float(want), rel=1e-4)


def test_sides_that_hold_a_share():
    field = torch.zeros(9, 11, dtype=torch.float64)
    field[4, 5], field[2, 5], field[8, 5] = 5, 4, 1
    assert [side_of_share(field, (4, 5), share) for share in (0.5, 0.9, 0.99)] == [1, 5, 9]
    assert_close(held_within(field, (4, 5))[:5], torch.tensor([0.5, 0.5, 0.9, 0.9, 1.0], dtype=torch.float64))
    with pytest.raises(ValueError, match="no images"):
        effective_receptive_field(nn.Identity(), [], (0, 0))


def test_command_writes_figure_and_figures(tiny, tmp_path):
    pytest.importorskip("matplotlib", reason="the figure needs it")
    import skimage.data

    photo = tmp_path / "cat.png"
    cv2.imwrite(str(photo), np.ascontiguousarray(skimage.data.chelsea()[:60, :70, ::-1]))
    files = [
        str(tiny.write_weights(tmp_path / "a.safetensors")),
        str(tiny.write_weights(tmp_path / "b.safetensors", level_map=True)),
    ]
    argv = [str(photo), "--task", "denoise", "--weights", *files, "--size", "24"]
    out = ["-o", str(tmp_path / "f.png"), str(tmp_path / "f.svg"), "--json", str(tmp_path / "f.json")]
    assert main([*argv, *out]) == 0
    result = json.loads((tmp_path / "f.json").read_text())
    assert [one["name"] for one in result["results"]] == ["a", "b"] and result["sigma"] == 25
    for one in result["results"]:
        sides = list(one["side_px"].values())
        assert 1 <= sides[0] <= sides[1] <= sides[2] <= 25
    assert cv2.imread(str(tmp_path / "f.png")) is not None
    for change, message in (
        (["--at", "5,5"], "reach out of its 70x60"),
        (["--at", "five"], "expected X,Y"),
        (["--size", "1"], "--size must be"),
        (["--level", "-3"], "--level -3"),
        (["--task", "jpeg"], "for the task 'denoise'"),
    ):
        with pytest.raises(UserError, match=message):
            main([*argv, *change, *out])


def test_names_with_dollars_are_drawn_as_they_are():
    pytest.importorskip("matplotlib", reason="figures need matplotlib")
    file = io.BytesIO()
    draw_fields({"my$x^$": torch.rand(5, 5) + 0.1}, (2, 2)).savefig(file, format="svg")
    assert file.getvalue().count(b"<!-- my$x^$ -->") == 2
