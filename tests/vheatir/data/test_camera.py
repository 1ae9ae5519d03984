"""The camera's parts: tone curve, mosaic, noise by the published model, smoothing; noise is zero on average."""

import math

import numpy as np
import pytest

from vheatir.data.camera import (
    DEMOSAICING,
    PHASES,
    SRGB_TO_CAMERA,
    Shot,
    Smoothing,
    ToneCurve,
    _raw_noise,
    add_within_range,
    camera_noise,
    demosaic,
    mosaic,
    read_variance,
    smooth_noise,
)
from vheatir.data.noise_statistics import noise_statistics, spread

ALL_VALUES = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, 2)
LINEAR = ToneCurve(1.0, 0.0)


def shot(**changes):
    plain = {"curve": LINEAR, "gains": np.ones(3), "color": np.eye(3), "shot": 0.004, "read": 1e-5, "bits": 14}
    return Shot(**plain | changes)


def flat(color, side=128):
    return np.full((side, side, 3), color, np.uint8)


@pytest.mark.parametrize(("gamma", "contrast"), [(1.0, 0.0), (1.8, 0.0), (2.2, 1.0), (2.6, 0.5)])
def test_tone_curve_goes_back_and_forth(gamma, contrast):
    curve = ToneCurve(gamma, contrast)
    light = curve.light(ALL_VALUES)
    assert light.dtype == np.float32 and light.min() == 0 and light.max() == 1
    assert np.abs(curve.tone(light) * 255 - ALL_VALUES).max() < 0.13
    tone = light ** (1 / gamma)
    expected = (1 - contrast) * tone + contrast * (3 * tone**2 - 2 * tone**3)
    np.testing.assert_allclose(expected * 255, ALL_VALUES, atol=0.02)
    assert (np.diff(light[..., 0].ravel()) > 0).all()
    assert curve.tone(np.array([-1, 2], np.float32)).tolist() == [0, 1]
    fine = np.linspace(0, 1, 5003) ** 2
    tone = fine ** (1 / gamma)
    expected = (1 - contrast) * tone + contrast * (3 * tone**2 - 2 * tone**3)
    assert abs((curve.tone(fine.astype(np.float32)) - expected).mean()) * 255 < 0.005, "the nearest of the table"


def test_read_noise_follows_shot_noise_as_published():
    assert read_variance(0.01, 0.0) == pytest.approx(math.exp(1.2) * 0.01**2.18)
    assert read_variance(0.01, 0.26) / read_variance(0.01, 0.0) == pytest.approx(math.exp(0.26))


def test_color_matrices_keep_white_and_mix_colors():
    np.testing.assert_allclose(SRGB_TO_CAMERA.sum(axis=2), 1)
    assert all(np.linalg.cond(matrix) < 10 for matrix in SRGB_TO_CAMERA)
    assert (np.diagonal(np.linalg.inv(SRGB_TO_CAMERA), axis1=1, axis2=2) > 1).all()  # sensors see less saturated colors


@pytest.mark.parametrize("phase", PHASES)
def test_mosaic_has_each_color_where_the_phase_says(phase):
    raw = np.zeros((6, 8, 3)) + np.array([1.0, 2.0, 3.0])
    square = mosaic(raw, phase)[:2, :2]
    assert ["RGB"[int(value) - 1] for value in square.ravel()] == list(phase)


@pytest.mark.parametrize("method", DEMOSAICING)
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("shape", [(16, 20), (17, 21)])
def test_demosaicing_finds_the_colors_in_every_phase(shape, phase, method):
    color = np.array([1000, 20000, 50000], np.uint16)
    found = demosaic(mosaic(np.zeros((*shape, 3), np.uint16) + color, phase), phase, method)
    assert found.shape == (*shape, 3)
    np.testing.assert_array_equal(found[2:-2, 2:-2], np.zeros((shape[0] - 4, shape[1] - 4, 3)) + color)


@pytest.mark.parametrize("phase", PHASES)
def test_bilinear_demosaicing_agrees_with_kornia(phase):
    torch = pytest.importorskip("torch")
    from kornia.color import CFA, raw_to_rgb

    filters = {"RGGB": CFA.BG, "GRBG": CFA.GB, "GBRG": CFA.GR, "BGGR": CFA.RG}
    seen = np.random.default_rng(0).integers(0, 65536, (16, 16), dtype=np.uint16)
    other = raw_to_rgb(torch.from_numpy(seen.astype(np.float32) / 65535)[None, None], filters[phase])[0]
    found = demosaic(seen, phase, "bilinear") / 65535
    np.testing.assert_allclose(found[2:-2, 2:-2], other.permute(1, 2, 0).numpy()[2:-2, 2:-2], atol=2e-5)


@pytest.mark.parametrize(("method", "name"), [("bilinear", "bilinear"), ("malvar", "Malvar2004")])
@pytest.mark.parametrize("phase", PHASES)
def test_demosaicing_agrees_with_colour_demosaicing(phase, method, name):
    color = pytest.importorskip("colour_demosaicing")
    seen = np.random.default_rng(0).integers(0, 65536, (16, 18), dtype=np.uint16)
    other = getattr(color, f"demosaicing_CFA_Bayer_{name}")(seen / 65535, phase)
    found = demosaic(seen, phase, method)[2:-2, 2:-2] / 65535
    np.testing.assert_allclose(found, np.clip(other, 0, 1)[2:-2, 2:-2], atol=2e-5)


def test_binning_leaves_as_much_noise_as_that_of_kornia():
    torch = pytest.importorskip("torch")
    from kornia.color import CFA, raw_to_rgb_2x2_downscaled

    setting = shot(demosaicing=None)
    deviation = math.sqrt(setting.shot * 100 / 255 + setting.read)
    seen = 100 / 255 + deviation * torch.randn(1, 1, 256, 256, generator=torch.Generator().manual_seed(0))
    kornia = raw_to_rgb_2x2_downscaled(seen, CFA.BG)[0].std((1, 2)).numpy()
    ours = camera_noise(flat(100), setting, np.random.default_rng(0)).std((0, 1))
    np.testing.assert_allclose(ours, kornia, rtol=0.03)


@pytest.mark.parametrize("level", [25, 128, 190])
def test_variance_is_that_of_the_model(level):
    setting = shot(demosaicing=None)
    noise = camera_noise(flat(level), setting, np.random.default_rng(0))
    expected = setting.shot * level / 255 + setting.read
    np.testing.assert_allclose(noise.var((0, 1)) / expected, [1, 0.5, 1], rtol=0.05)  # a square has two green pixels


def test_white_balance_amplifies_noise_of_red_and_blue():
    noise = camera_noise(flat(100), shot(gains=np.array([2, 1, 1.5]), demosaicing=None), np.random.default_rng(0))
    red, green, blue = noise.var((0, 1))
    assert red / green == pytest.approx(2 * 2, rel=0.1) and blue / green == pytest.approx(2 * 1.5, rel=0.1)


@pytest.mark.parametrize("method", [*DEMOSAICING, None])
def test_without_noise_there_is_none_whatever_the_image(method):
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    silent = shot(shot=1e-12, read=0, bits=16, demosaicing=method, color=SRGB_TO_CAMERA[0], gains=np.array([2, 1, 1.7]))
    assert np.abs(camera_noise(image, silent, np.random.default_rng(0))).max() < 2 / 255


def test_fewer_bits_leave_coarser_steps():
    image = np.tile(np.arange(256, dtype=np.uint8), (64, 1))[..., None].repeat(3, 2)
    settings = [shot(shot=1e-12, read=0, bits=bits) for bits in (8, 10, 14)]
    strengths = [camera_noise(image, setting, np.random.default_rng(0)).std() for setting in settings]
    assert strengths[0] > 2 * strengths[1] > 4 * strengths[2]


COLORS = [(2, 6, 60), (0, 0, 40), (10, 3, 3), (250, 254, 230), (120, 130, 110), (30, 25, 20)]


def _mean_noise(color, one_sided):
    """Mean over pixels and shots of the finished image minus the clean one, for each channel, in 8-bit values."""
    image, rng, means = flat(color), np.random.default_rng(0), []
    for number in range(12):
        development = {"gains": np.array([2, 1, 1.8]), "color": SRGB_TO_CAMERA[number % 5]}
        sensor = {"shot": 0.008, "read": read_variance(0.008, 0), "one_sided": one_sided}
        setting = shot(curve=ToneCurve(2.2, 0.5), phase=list(PHASES)[number % 4], **development, **sensor)
        noise = smooth_noise(camera_noise(image, setting, rng), Smoothing(0.6, 1.5, 0.1, 0.5, 0.45))
        noisy = image + 255 * noise if one_sided else add_within_range(image, noise)
        means.append((np.clip(noisy, 0, 255) - image).mean((0, 1)))
    return np.mean(means, axis=0)


@pytest.mark.parametrize("color", COLORS, ids=str)
def test_noise_has_no_mean_not_even_in_dark_saturated_colors(color):
    assert np.abs(_mean_noise(color, one_sided=False)).max() < 0.3


def test_black_that_is_cut_off_lifts_dark_colors():
    assert (_mean_noise((0, 0, 40), one_sided=True) > 2).all()


@pytest.mark.parametrize("demosaicing", [None, "bilinear"])
def test_raw_numbers_stay_above_black_where_it_is_cut_off(demosaicing):
    black = np.zeros((32, 32, 3), np.float32)
    noises = [
        _raw_noise(black, shot(demosaicing=demosaicing, one_sided=one_sided), np.random.default_rng(0))
        for one_sided in (True, False)
    ]
    assert noises[0].min() == 0 < noises[0].max()
    assert noises[1].min() < 0


def test_the_strength_of_clipped_noise_is_that_of_the_square_of_nine_pixels():
    noise = np.zeros((33, 33), np.float32)
    noise[16, 16] = 50 / 255
    changed = np.abs(add_within_range(np.full((33, 33), 10, np.uint8), noise) - 10) > 1e-3
    expected = np.zeros_like(changed)
    expected[12:21, 12:21] = True
    np.testing.assert_array_equal(changed, expected)


def test_clipping_at_black_and_white_keeps_the_mean_of_strong_noise():
    noise = np.random.default_rng(0).normal(0, 10 / 255, (256, 256)).astype(np.float32)
    for level in (0, 1, 4, 12, 30, 243, 253, 255):
        image = np.full((256, 256), level, np.uint8)
        noisy = add_within_range(image, noise)
        assert noisy.min() >= 0 and noisy.max() <= 255
        assert noisy.mean() == pytest.approx(level, abs=0.25), level
    untouched = add_within_range(np.full((256, 256), 128, np.uint8), noise)
    np.testing.assert_allclose(untouched, 128 + 255 * noise, atol=1e-4)


@pytest.mark.parametrize("demosaicing", [None, "bilinear", "edge_aware"])
@pytest.mark.parametrize("upright", [False, True])
def test_row_noise_is_shared_by_rows_of_the_sensor(demosaicing, upright):
    image = flat(128)

    def noise(**changes):
        return camera_noise(image, shot(demosaicing=demosaicing, **changes), np.random.default_rng(1)) * 255

    stripes = noise(rows=0.02, upright=upright) - noise()
    along, across = stripes.std(1 - upright).mean(), stripes.mean(1 - upright).std()
    assert along < 0.4 * across and across == pytest.approx(0.02 * 255, rel=0.35)
    wide = noise(rows=0.02, row_width=3.0, upright=upright) - noise()
    means = wide.mean((1 - upright, 2))
    assert means.std() == pytest.approx(0.02 * 255, rel=0.35)
    assert np.abs(np.diff(means)).mean() < 0.6 * np.abs(np.diff(stripes.mean((1 - upright, 2)))).mean()


def test_statistics_tell_stripes_along_rows_from_those_along_columns():
    clean = np.full((200, 150, 3), 128, np.float32)
    generator = np.random.default_rng(0)
    white, offsets = generator.normal(0, 4, clean.shape), generator.normal(0, 3, (200, 1, 1))
    plain, striped = noise_statistics(clean + white, clean), noise_statistics(clean + white + offsets, clean)
    assert plain.rows == pytest.approx(1 / 8, rel=0.1) and plain.columns == pytest.approx(1 / 8, rel=0.1)
    expected = math.hypot(3, plain.luma_std / 8) / math.hypot(3, plain.luma_std)
    assert striped.rows == pytest.approx(expected, rel=0.1) and striped.columns < plain.columns
    assert plain.direction < 0.02 and striped.direction == pytest.approx(expected**2, rel=0.15)
    turned = [np.ascontiguousarray(image.transpose(1, 0, 2)) for image in (clean + white + offsets, clean)]
    assert noise_statistics(*turned).columns == pytest.approx(striped.rows, rel=0.1)
    scene = 4 * np.cos(np.arange(200) * np.pi / 100)[:, None, None]
    assert noise_statistics(clean + white + scene, clean).rows < 1.3 * plain.rows, "slow changes are no stripes"


def test_smoothing_sets_autocorrelation_and_ratio():
    noise = np.random.default_rng(0).normal(0, 5, (512, 512, 3)).astype(np.float32)
    image = np.full(noise.shape, 128, np.float32)
    white = noise_statistics(image + noise, image)
    assert max(map(abs, (*white.luma, *white.chroma))) < 0.01
    done = noise_statistics(image + smooth_noise(noise, Smoothing(0.7, 1.4, 0, 0, 0.4)), image)
    for lags, deviation in ((done.luma, 0.7), (done.chroma, 1.4)):
        expected = [math.exp(-(lag**2) / (4 * deviation**2)) for lag in (1, 2, 3, 4)]
        np.testing.assert_allclose(lags, expected, atol=0.03)
    assert done.luma_std < white.luma_std
    assert done.ratio == pytest.approx(0.4, rel=0.05)
    gray = noise_statistics(image + smooth_noise(noise, Smoothing(0.7, 1.4, 0, 0, 0.0)), image)
    assert gray.luma_std == pytest.approx(done.luma_std) and gray.chroma_std < 1e-4


def test_tail_lengthens_and_sharpening_shortens_the_autocorrelation():
    noise = np.random.default_rng(0).normal(0, 5, (512, 512, 3)).astype(np.float32)
    image = np.full(noise.shape, 128, np.float32)

    def measured(**changes):
        smoothing = Smoothing(**{"luma": 0.7, "chroma": 1.4, "luma_tail": 0, "chroma_tail": 0, "ratio": 0.4} | changes)
        return noise_statistics(image + smooth_noise(noise, smoothing), image)

    plain, tail, sharp = measured(), measured(luma_tail=0.3, chroma_tail=0.6), measured(sharpen=1.0)
    assert tail.luma[2] > plain.luma[2] + 0.05 and tail.chroma[3] > plain.chroma[3] + 0.2
    assert sharp.luma[1] < plain.luma[1] - 0.05 and sharp.luma_std > 1.2 * plain.luma_std
    assert sharp.chroma == pytest.approx(plain.chroma, abs=0.01)


def test_a_share_of_luma_is_smoothed_three_times_as_far():
    noise = np.zeros((61, 61, 3), np.float32)
    noise[30, 30] = 1

    def gaussian(deviation):
        weights = np.exp(-(np.arange(-30, 31) ** 2) / (2 * deviation**2))
        return weights / weights.sum()

    found = smooth_noise(noise, Smoothing(1.0, 0.0, 0.5, 0.0, 0.0, stretch=2.25))[..., 1]
    near, far = (np.outer(gaussian(times / 1.5), gaussian(times * 1.5)) for times in (1, 3))
    np.testing.assert_allclose(found, 0.5 * near + 0.5 * 3 * far, atol=1e-3)


def test_statistics_tell_dark_from_bright_and_name_their_quantiles():
    clean = np.full((64, 64, 3), 40, np.uint8)
    clean[:, 32:] = 200
    noise = np.random.default_rng(0).normal(0, 1, (64, 64, 1)) * np.where(clean < 100, 6, 2)
    found = noise_statistics(clean + noise + 3, clean)
    assert found.dark_std == pytest.approx(6, rel=0.1) and found.bright_std == pytest.approx(2, rel=0.1)
    assert found.bias == pytest.approx(3, abs=0.3) and found.chroma_std == pytest.approx(0, abs=1e-5)
    table = spread([found, found])
    assert {"std", "ratio", "luma_1", "luma_4", "chroma_1", "chroma_4"} <= set(table)
    assert table["dark_std"] == pytest.approx([found.dark_std] * 3)
    with pytest.raises(ValueError, match="one size"):
        noise_statistics(clean[:32], clean)
