"""Receptive fields, heat images and invariance figures say what they claim to."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

pytest.importorskip("torchvision", reason="the backbones need the extra `backbone`")

from vheatir.backbone.analysis import heat, invariance
from vheatir.backbone.analysis import receptive_field as erf
from vheatir.kernels.dct import decay_map


def test_a_convolutions_field_ends_where_its_kernels_end(make_model):
    model = make_model("unified_convnext_micro", depths=(1, 1, 1, 1)).eval()
    field = erf.receptive_field(model, [torch.randn(2, 3, 64, 64), torch.randn(1, 3, 64, 64)], stage=0)
    # The stem sees 3 + 2 * 2 pixels, the kernel 7 of its outputs, which are 4 pixels apart: 7 + 6 * 4 = 31.
    reached = field.nonzero()
    assert field.shape == (64, 64)
    assert (reached.double().mean(0) + 0.5).tolist() == [erf.centre_of(64, 0)] * 2 == [32.5, 32.5]
    assert (reached.max(0).values - reached.min(0).values).tolist() == [30, 30]
    assert field[16, 16] == 0 < field[33, 33]


def test_a_heat_layer_sees_the_whole_image(make_model):
    model = make_model("vheat_tiny", depths=(1, 1, 1, 1), reach=(8.0, 8.0)).eval()
    field = erf.receptive_field(model, [torch.randn(1, 3, 64, 64)], stage=0)
    assert (field > 0).all()


def test_a_field_is_a_mean_over_images(make_model):
    model, images = make_model("unified_swin_micro").eval(), torch.randn(3, 3, 64, 64)
    together, apart = (erf.receptive_field(model, images.split(n), 1) for n in (3, 1))
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-6)
    assert together.max() > 1e-3  # not the rounding errors of a sum of channels that a norm keeps constant
    with pytest.raises(ValueError, match="no images"):
        erf.receptive_field(model, [], 1)


def test_the_area_is_that_of_a_square_around_the_centre():
    assert [erf.centre_of(side, 3) for side in (32, 64, 224)] == [0.5, 32.5, 96.5]
    even = torch.ones(64, 64, dtype=torch.float64)
    assert erf.area_ratio(even, 3, 1.0) == 1.0
    assert erf.area_ratio(even, 3, 0.25) == (33 / 64) ** 2  # 31 x 31 pixels hold less
    point = torch.zeros(64, 64, dtype=torch.float64)
    point[31, 32] = 1
    assert erf.area_ratio(point, 3, 0.99) == (3 / 64) ** 2


@pytest.mark.parametrize("k", [2.0, 8.0])
def test_a_point_of_heat_spreads_over_its_blur_length(k):
    decay = decay_map(torch.full((65, 65, 3), k, dtype=torch.float64))
    response = heat.point_response(decay)
    torch.testing.assert_close(response.sum((0, 1)), torch.ones(3, dtype=torch.float64))  # no heat is lost
    assert heat.spread(response).tolist() == pytest.approx([math.sqrt(2 * k)] * 3, rel=1e-3)
    assert heat.mean_diffusivity(decay).tolist() == pytest.approx([k] * 3)


@pytest.mark.parametrize("k", [8.0, 50.0])
def test_frequencies_of_which_nothing_is_left_do_not_shorten_the_blur(k):
    decay = decay_map(torch.full((56, 56, 2), k))
    assert (decay == 0).any()
    assert heat.mean_diffusivity(decay).tolist() == pytest.approx([k] * 2, rel=1e-5)
    assert heat.describe_layer(decay)["blur_px"] == pytest.approx([math.sqrt(2 * k)] * 5, rel=1e-5)


def test_where_no_frequency_is_left_the_diffusivity_is_the_least_that_fits():
    decay = decay_map(torch.full((4, 4, 1), 1e4))
    (k,) = heat.mean_diffusivity(decay).tolist()
    assert k == pytest.approx(-math.log(torch.finfo(torch.float32).tiny) / (math.pi / 4) ** 2)


def test_diffusivity_of_a_map_of_one_pixel_is_nothing():
    assert heat.mean_diffusivity(torch.ones(1, 1, 2)).tolist() == [0, 0]


def test_layers_are_described_alike_folded_or_not(make_model):
    model = make_model("unified_heat_micro", mixer_args={"reach": (0.5, 4)}).eval().double()
    before = [(stage, block, heat.describe_layer(decay)) for stage, block, decay in heat.decays(model)]
    after = [(stage, block, heat.describe_layer(decay)) for stage, block, decay in heat.decays(model.fold())]
    assert [one[:2] for one in before] == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (3, 0)]
    for (*_, first), (*_, second) in zip(before, after, strict=True):
        for key in first:
            assert second[key] == pytest.approx(first[key], rel=1e-6), key
    blur = before[0][2]["blur_px"]
    assert blur[0] == pytest.approx(0.5, rel=0.1) and blur[-1] == pytest.approx(4, rel=0.1)


def test_heat_images_need_heat(make_model):
    with pytest.raises(ValueError, match="no heat layers"):
        list(heat.decays(make_model("unified_swin_micro")))


def test_magnitudes_of_the_published_protocol():
    counts = {kind: len(invariance.magnitudes_of(kind, 224, "published")) for kind in invariance.KINDS}
    assert counts == {"translation": 17, "pre_rotation": 19, "post_rotation": 19, "scale": 15}
    assert invariance.magnitudes_of("translation", 32, "published")[-1] == 64
    assert invariance.magnitudes_of("translation", 224) == invariance.magnitudes_of("translation", 224, "published")
    assert invariance.magnitudes_of("translation", 32) == list(range(10))
    assert invariance.magnitudes_of("scale", 224)[-1] == pytest.approx(1.95)
    with pytest.raises(ValueError, match="got 'shear' by 'exact'"):
        invariance.magnitudes_of("shear", 224)


def sample_image(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("size", [(40, 40), (47, 61), (33, 90)], ids=str)
@pytest.mark.parametrize("kind", ["translation", "pre_rotation", "post_rotation"])
def test_the_first_magnitude_is_the_standard_view(kind, size):
    """The published shift of 0 rounds odd margins another way."""
    views = invariance.Views(kind, 32, (0.5,) * 3, (0.5,) * 3)(sample_image(*size))
    assert views.shape == (1 + len(invariance.magnitudes_of(kind, 32)), 3, 32, 32)
    assert torch.equal(views[0], views[1])


@pytest.mark.parametrize("protocol, directions", [("exact", 8), ("published", 7)])
def test_directions_are_drawn_from_those_of_the_protocol(protocol, directions, monkeypatch):
    drawn = set()

    def noted(image, size, pixels, direction, *, published):
        assert published == (protocol == "published")
        drawn.add(direction)
        return image.crop((0, 0, size, size))

    monkeypatch.setattr(invariance, "shifted_view", noted)
    views = invariance.Views("translation", 16, (0.5,) * 3, (0.5,) * 3, protocol)
    for _ in range(30):
        views(sample_image(20, 20))
    assert drawn == set(range(directions))


class FirstPixel(nn.Module):
    """Class 0 where the first pixel is dark."""

    def forward(self, images):
        return torch.stack([-images[:, 0, 0, 0], images[:, 0, 0, 0]], 1)


def test_figures_of_a_set_are_means_over_its_images():
    views, labels = torch.randn(7, 4, 3, 2, 2), torch.randint(0, 2, (7,))
    one = invariance.evaluate_views(FirstPixel(), [(views, labels)])
    parts = invariance.evaluate_views(FirstPixel(), zip(views.split(3), labels.split(3), strict=True))
    assert one["images"] == parts["images"] == 7
    for name in ("loss", "acc1", "acc5", "consistency", "standard_acc1"):
        assert parts[name] == pytest.approx(one[name], rel=1e-6), name
    bright = views[:, :, 0, 0, 0] > 0
    assert one["consistency"] == pytest.approx((100 * (bright[:, 1:] == bright[:, :1]).double().mean(0)).tolist())
    assert one["acc1"] == pytest.approx((100 * (bright[:, 1:] == labels[:, None]).double().mean(0)).tolist())
    with pytest.raises(ValueError, match="no images"):
        invariance.evaluate_views(FirstPixel(), [])


def test_another_default_device_changes_no_figure(make_model):
    model, images = make_model("vheat_tiny", depths=(1, 1, 1, 1)).eval(), torch.randn(2, 3, 64, 64)
    views = invariance.Views("translation", 32, [0.0] * 3, [1.0] * 3)

    def figures():
        torch.manual_seed(0)
        field = erf.receptive_field(model, [images], 1)
        layers = [heat.describe_layer(decay) for *_, decay in heat.decays(model)]
        return field.tolist(), erf.area_ratio(field, 1, 0.5), layers, views(Image.new("RGB", (50, 40))).tolist()

    want = figures()
    with torch.device("meta"):
        assert figures() == want
