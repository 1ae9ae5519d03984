"""`vheatir compare`: right scores under right panels, the crop where methods differ, a figure that can be printed."""

import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest

import vheatir
from vheatir.compare.api import find_crop
from vheatir.compare.command import main
from vheatir.errors import UserError
from vheatir.evaluate.api import evaluate
from vheatir.evaluate.methods import nlm
from vheatir.image_io import decode_image
from vheatir.metrics.fidelity import scores

pytest.importorskip("matplotlib", reason="the figures need it")
from matplotlib.backends.backend_agg import FigureCanvasAgg

from vheatir.compare.figure import DPI, Row, Shown, draw, error_map, log_spectrum, radial_mean


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    import skimage.data

    path = tmp_path_factory.mktemp("clean") / "cat.png"
    assert cv2.imwrite(str(path), np.ascontiguousarray(skimage.data.chelsea()[80:176, 90:210, ::-1]))
    return path


@pytest.fixture(scope="module")
def small_weights(tmp_path_factory, tiny):
    return tiny.write_weights(tmp_path_factory.mktemp("weights") / "small.safetensors")


def test_scores_are_those_of_evaluate(photo, small_weights, tmp_path):
    out = tmp_path / "deep" / "figure.png"
    argv = [str(photo), "--task", "denoise", "--sigma", "25", "--methods", "input", "nlm", f"net={small_weights}"]
    assert main([*argv, "-o", str(out), str(out.with_suffix(".pdf")), "--json", str(tmp_path / "f.json")]) == 0
    result = json.loads((tmp_path / "f.json").read_text())
    (want,) = evaluate([photo.parent], "denoise", [25], gray=False, method=nlm)
    (record,) = result["images"]
    assert record["scores"]["NL-means"] == dict(want["restored"]) and record["scores"]["input"] == dict(want["input"])
    assert result["methods"]["net"]["weights"]["name"] == "small" and result["sigma"] == 25
    assert cv2.imread(str(out)) is not None and out.with_suffix(".pdf").read_bytes().startswith(b"%PDF")


def test_pairs_are_compared_as_they_are(photo, small_weights, tmp_path):
    clean = cv2.imread(str(photo))
    degraded = tmp_path / "bad.png"
    cv2.imwrite(str(degraded), np.minimum(clean, 245) + 10)
    argv = [str(photo), "--task", "jpeg", "--degraded", str(degraded), "--methods", "input", str(small_weights)]
    with pytest.raises(UserError, match="for the task 'denoise', not 'jpeg'"):
        main([*argv, "-o", str(tmp_path / "x.png")])
    argv = [str(photo), "--task", "denoise", "--degraded", str(degraded), "--methods", "input"]
    assert main([*argv, "-o", str(tmp_path / "x.svg"), "--json", str(tmp_path / "f.json")]) == 0
    (record,) = json.loads((tmp_path / "f.json").read_text())["images"]
    assert record["scores"]["input"]["psnr"] == pytest.approx(cv2.PSNR(clean, cv2.imread(str(degraded))), abs=1e-6)


def test_crop_is_where_the_versions_differ_most():
    clean = np.full((40, 60, 3), 100, np.uint8)
    one, other = clean.copy(), clean.copy()
    one[:10, :10], other[:10, :10] = 200, 200  # both are wrong here: nothing to tell them apart
    other[25:35, 40:50] = 130
    assert find_crop(clean, [one, other], 10) == (40, 25, 10, 10)
    assert find_crop(clean, [one], 10) == (0, 0, 10, 10)
    assert find_crop(clean[..., 0], [one[..., 0], other[..., 0]], 10) == (40, 25, 10, 10)
    assert find_crop(clean, [one], 50) == (0, 0, 50, 40)


def test_every_pixel_of_a_crop_is_a_square_of_the_figure():
    clean = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    shown = [Shown("input", clean[::-1], {"psnr": 9.0, "ssim": 0.5, "psnrb": 8.0}, degraded=True)]
    row = Row("title", clean, shown, (3, 4, 8, 6))
    figure = draw([row], errors=True, spectra=True, blocks=True, zoom=40)

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]
    assert pixels.shape[:2] == tuple(round(side * DPI) for side in figure.get_size_inches()[::-1])
    truth = clean[4:10, 3:11]
    panels = [axes.get_window_extent() for axes in figure.axes]
    for box, image in ((panels[1], clean[::-1][4:10, 3:11]), (panels[2], truth)):
        assert (round(box.width), round(box.height)) == (320, 240)
        top, left = pixels.shape[0] - box.y1, box.x0
        places = [(round(top + 20 + 40 * y), round(left + 20 + 40 * x)) for y in range(6) for x in range(8)]
        got = np.array([pixels[place] for place in places]).reshape(6, 8, 3)
        np.testing.assert_array_equal(got, image)
    texts = [text.get_text() for text in figure.texts]
    assert texts == ["input", "truth", "title", "9.00 dB  0.5000  B 8.00"]


@pytest.mark.parametrize("crop, zoom", [((0, 0, 240, 20), None), ((0, 0, 20, 20), 1), ((5, 0, 1, 60), 2)])
def test_spectra_have_room_beside_flat_and_small_crops(crop, zoom):
    """Below 52 pixels the plot of their means had a negative height, a ValueError after all restoring."""
    clean = np.random.default_rng(0).integers(0, 256, (60, 250), np.uint8)
    row = Row("title", clean, [Shown("x", clean, {"psnr": 9.0, "ssim": 0.5, "psnrb": 8.0})], crop)
    figure = draw([row, row], errors=False, spectra=True, blocks=False, zoom=zoom)
    plots = [axes.get_window_extent() for axes in figure.axes if axes.get_xlabel() == "cycles / pixel"]
    assert len(plots) == 2 and min(min(box.width, box.height) for box in plots) >= 60
    assert plots[0].y0 > plots[1].y1


def test_error_map_and_spectrum_have_the_units_they_claim():
    rng = np.random.default_rng(0)
    noise = np.clip(rng.normal(128, 10, (128, 96)), 0, 255).round().astype(np.uint8)
    frequencies, level = radial_mean(log_spectrum(noise))
    # white noise of variance 100: the mean of the log of a chi-square variable lies 0.25 below the log of its mean
    assert np.abs(level[2:] - (2 - 0.2507)).max() < 0.15 and 0 < frequencies[0] < frequencies[-1] < 0.5
    wave = (128 + 60 * np.sin(2 * np.pi * 0.25 * np.arange(96))).round().astype(np.uint8)
    spectrum = log_spectrum(np.repeat(wave[None], 128, 0))
    assert np.unravel_index(spectrum.argmax(), spectrum.shape) in ((64, 24), (64, 72))  # a quarter of 96 off the middle
    a, b = np.zeros((2, 2, 3), np.uint8), np.full((2, 2, 3), (0, 3, 9), np.uint8)
    np.testing.assert_array_equal(error_map(a, b), np.full((2, 2), 4.0))


def test_several_images_and_gray(photo, small_weights, tmp_path):
    argv = [
        str(photo),
        str(photo),
        "--task",
        "denoise",
        "--sigma",
        "50",
        "--gray",
        "--methods",
        "nlm",
        str(small_weights),
    ]
    argv += ["--errors", "--spectra", "--crop", "0,0,32,32", "5,6,40,20", "-o", str(tmp_path / "x.png")]
    assert main([*argv, "--json", str(tmp_path / "f.json")]) == 0
    images = json.loads((tmp_path / "f.json").read_text())["images"]
    assert [list(record["crop"].values()) for record in images] == [[0, 0, 32, 32], [5, 6, 40, 20]]
    assert list(images[0]["scores"]) == ["NL-means", "small"]


@pytest.mark.parametrize("crop", [(-5, 0, 10, 10), (0, 0, 0, 5), (0.5, 0, 9, 9), (0, 0, 9)], ids=str)
def test_a_crop_that_is_none_is_refused_before_the_work(photo, tmp_path, crop):
    with pytest.raises(UserError, match="--crop: expected whole X, Y"):
        vheatir.compare([photo], [tmp_path / "x.png"], task="denoise", sigma=25, methods=["input"], crops=[crop])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ([], "how is the image to be degraded"),
        (["--quality", "10"], "takes --sigma"),
        (["--sigma", "-1"], "from 0"),
        (["--sigma", "25", "--crop", "100,0,32,32"], "reaches out of its 120x96 pixels"),
        (["--sigma", "25", "--crop", "0,0,9,9", "0,0,9,9"], "2 given for 1 images"),
        (["--sigma", "25", "--methods", "nlm", "nlm"], "the same name"),
        (["--sigma", "25", "--methods", "truth=nlm"], "use LABEL=METHOD"),
        (["--sigma", "25", "--methods", "bm3d"], "bm3d is a method of `vheatir evaluate` only; here are input, nlm"),
        (["--sigma", "25", "--methods", "none"], "takes input, nlm, and weights; .*'none' .* shipped: denoise_color_"),
        (["--degraded", "missing.png", "--methods", "nlm"], "nlm needs the noise level"),
        (["--degraded", "missing.png", "--methods", "input"], "missing.png: cannot be read"),
        (["--sigma", "25", "--zoom", "0"], "--zoom must be"),
    ],
    ids=lambda value: "_".join(value) if isinstance(value, list) else "",
)
def test_wrong_arguments_are_refused(photo, change, message, tmp_path):
    with pytest.raises(UserError, match=message):
        main([str(photo), "--task", "denoise", *change, "-o", str(tmp_path / "x.png")])
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize("kind", [str, Path])
def test_one_image_and_one_figure_need_no_list(photo, tmp_path, kind):
    """A path was no sequence, and a text one of letters."""
    pair = {"degraded": kind(photo), "methods": ["input"], "task": "denoise"}
    found = vheatir.compare(kind(photo), kind(tmp_path / "x.png"), **pair)
    assert [one["image"] for one in found["images"]] == ["cat.png"] and (tmp_path / "x.png").is_file()


@pytest.mark.parametrize("change", [{"images": []}, {"methods": []}], ids=str)
def test_nothing_to_compare_is_said(photo, tmp_path, change):
    """They were a TypeError and an IndexError of the figure."""
    given = {"images": [photo], "out": [tmp_path / "x.png"], "task": "denoise", "sigma": 25} | change
    with pytest.raises(UserError, match="nothing to compare: give at least one image"):
        vheatir.compare(**given)


def test_a_broken_image_at_the_end_shows_before_any_work(photo, tmp_path, monkeypatch):
    (tmp_path / "z.png").write_bytes(photo.read_bytes()[:900])
    monkeypatch.setattr("vheatir.compare.api.degrade", lambda *_arguments: pytest.fail("began"))
    for images in ([str(photo), str(tmp_path / "z.png")], [str(photo), "--degraded", str(tmp_path / "z.png")]):
        with pytest.raises(UserError, match=r"z\.png.*truncated"):
            level = [] if "--degraded" in images else ["--sigma", "25"]
            options = ["--task", "denoise", *level, "--methods", "input", "-o", str(tmp_path / "x.png")]
            main([*images, *options])


def test_wrong_images_and_outputs_are_refused(photo, tmp_path):
    small = tmp_path / "small.png"
    cv2.imwrite(str(small), np.zeros((9, 40, 3), np.uint8))
    common = ["--task", "denoise", "--sigma", "25", "--methods", "input", "-o"]
    with pytest.raises(UserError, match="40x9 pixels; SSIM needs 11x11"):
        main([str(small), *common, str(tmp_path / "x.png")])
    with pytest.raises(UserError, match=r"ends in .png, .pdf, .svg"):
        main([str(photo), *common, str(tmp_path / "x.jpg")])
    with pytest.raises(UserError, match="40x9 pixels; SSIM"):
        main(
            [
                str(photo),
                "--task",
                "denoise",
                "--degraded",
                str(small),
                "--methods",
                "input",
                "-o",
                str(tmp_path / "x.png"),
            ]
        )


@pytest.mark.parametrize("figures", [["photo.png"], ["figure.png", "other.png"]], ids=len)
def test_no_image_is_replaced_by_a_figure(photo, figures, tmp_path, monkeypatch):
    """`-o figure.png other.png`: the second was meant to be read."""
    monkeypatch.chdir(tmp_path)
    for name in ("photo.png", "other.png"):
        (tmp_path / name).write_bytes(photo.read_bytes())
    argv = ["--task", "denoise", "--sigma", "25", "--methods", "input", "-o", *figures]
    with pytest.raises(UserError, match=r"would replace|two \.png files for one figure"):
        main(["./photo.png", *argv])
    assert all(path.read_bytes() == photo.read_bytes() for path in tmp_path.iterdir())


@pytest.mark.parametrize("replaced", ["photo.png", "noisy.png"])
def test_no_image_is_replaced_by_the_numbers(photo, replaced, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("photo.png", "noisy.png"):
        (tmp_path / name).write_bytes(photo.read_bytes())
    argv = ["photo.png", "--task", "jpeg", "--degraded", "noisy.png", "--methods", "input", "-o", "figure.pdf"]
    with pytest.raises(UserError, match=rf"{replaced}: is an image to read, which the JSON file would replace"):
        main([*argv, "--json", f"./{replaced}"])
    assert (tmp_path / replaced).read_bytes() == photo.read_bytes()


@pytest.mark.parametrize("name", [b"a $^$ b.png", b"\xff.png", "größe.png".encode()], ids=str)
def test_names_of_images_may_hold_anything(photo, name, tmp_path):
    path = tmp_path / os.fsdecode(name)
    path.write_bytes(photo.read_bytes())
    vheatir.compare([path], [tmp_path / "figure.png"], task="jpeg", quality=10, methods=["input"])
    assert cv2.imread(str(tmp_path / "figure.png")) is not None


def test_a_method_that_gives_no_image_is_named_with_the_image(photo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.safetensors").touch()
    broken = lambda image, level: np.full_like(image, np.nan)  # noqa: E731
    monkeypatch.setattr("vheatir.compare.api.open_method", lambda *_: (broken, {"method": "broken"}))
    with pytest.raises(UserError, match=rf"{photo}: diverged: image holds NaN"):
        vheatir.compare([photo], task="denoise", sigma=5, methods=["input", "diverged=mine.safetensors"])


def test_photographs_are_compared_with_cleaner_ones(photo, tmp_path):
    noisy = tmp_path / "noisy.png"
    cv2.imwrite(str(noisy), np.minimum(cv2.imread(str(photo)), 245) + 10)
    with_pair = {"task": "photo", "degraded": [noisy], "methods": ["input"]}
    found = vheatir.compare([photo], **with_pair)
    want = scores(decode_image(noisy.read_bytes(), ""), decode_image(photo.read_bytes(), ""))
    assert found["images"][0]["scores"]["input"] == want
    vheatir.compare([photo], **with_pair | {"methods": ["nlm"], "sigma": 5})
    for wrong, message in (
        ({"degraded": None, "sigma": 10}, "add --degraded"),
        ({"quality": 10}, "takes --sigma"),
        ({"gray": True}, "in color"),
        ({"task": "jpeg", "quality": 99.5}, "whole number"),
        ({"task": "jpeg", "quality": 100.5}, "from 1 to 100"),
    ):
        with pytest.raises(UserError, match=message):
            vheatir.compare([photo], **with_pair | wrong)


def test_a_degraded_image_of_another_size_is_refused(photo, tmp_path):
    other = tmp_path / "other.png"
    cv2.imwrite(str(other), np.zeros((20, 40, 3), np.uint8))
    argv = [
        str(photo),
        "--task",
        "denoise",
        "--degraded",
        str(other),
        "--methods",
        "input",
        "-o",
        str(tmp_path / "x.png"),
    ]
    with pytest.raises(UserError, match=r"40x20 pixels, but the clean .* has 120x96"):
        main(argv)
