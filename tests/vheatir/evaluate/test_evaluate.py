"""Evaluation: published input rows, the layout of results, what is refused, and the two scripts."""

import csv
import hashlib
import json
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from tests.vheatir.evaluate.conftest import random_image
from vheatir import weights
from vheatir.data.degradations import jpeg_roundtrip
from vheatir.data.sources import ImageSource
from vheatir.errors import UserError
from vheatir.evaluate import command as evaluation
from vheatir.evaluate import methods
from vheatir.evaluate.api import evaluate
from vheatir.evaluate.folders import compare_folders
from vheatir.evaluate.methods import nlm
from vheatir.evaluate.protocol import degrade, evaluate_image, mean_scores, read_clean
from vheatir.image_io.arrays import luma_bt601, to_float, to_uint8
from vheatir.metrics.fidelity import scores
from vheatir.restore.restorer import Restorer
from vheatir.utils.run_metadata import write_json

ROOT = Path(__file__).resolve().parents[3]


FIGURES = {"psnr", "ssim", "psnrb"}


def golden() -> dict[tuple, dict[str, tuple[float, float]]]:
    """(data, task, color, level) -> figure -> (value, tolerance)."""
    rows: dict[tuple, dict] = {}
    with open(ROOT / "tests" / "data" / "golden.csv", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            key = (row["data"], row["task"], row["color"], int(row["level"]))
            rows.setdefault(key, {})[row["figure"]] = (float(row["value"]), float(row["tolerance"]))
    return rows


GOLDEN = golden()


def smooth(image: np.ndarray, level: float) -> np.ndarray:
    return cv2.GaussianBlur(image, (0, 0), 1.0)


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: "-".join(map(str, case)))
def test_published_input_rows(case, test_data):
    data, task, color, level = case
    (result,) = evaluate([test_data(data)], task, [level], gray=color == "gray", method=None)
    for figure, (value, tolerance) in GOLDEN[case].items():
        assert result["input"][figure] == pytest.approx(value, abs=tolerance), figure


@pytest.mark.parametrize("gray", [True, False], ids=["gray", "color"])
@pytest.mark.parametrize("task", ["denoise", "jpeg"])
def test_results_have_the_documented_layout(images, task, gray):
    levels = [15, 50] if task == "denoise" else [10, 40]
    results = evaluate([images], task, levels, gray=gray, method=smooth)
    assert [result["level"] for result in results] == levels
    for result in results:
        assert (result["data"], result["task"], result["images"]) == ("set", task, 3)
        assert [record["image"] for record in result["per_image"]] == ["a.png", "c.png", "more/b.png"]
        for side in ("input", "restored"):
            assert result[side].keys() == FIGURES
            figures = [record[side]["psnr"] for record in result["per_image"]]
            assert result[side]["psnr"] == pytest.approx(np.mean(figures), abs=1e-12)


def test_levels_default_to_those_of_the_tables(images):
    assert [r["level"] for r in evaluate([images], "denoise", gray=True, method=None)] == [15, 25, 50]
    assert [r["level"] for r in evaluate([images], "jpeg", gray=True, method=None)] == [10, 20, 30, 40]


def test_noise_starts_anew_for_every_image_and_level():
    clean = np.full((20, 30, 3), 128, np.uint8)
    first, again, double = (degrade(clean, "denoise", sigma) - to_float(clean) for sigma in (10, 10, 20))
    np.testing.assert_array_equal(first, again)
    np.testing.assert_allclose(double, 2 * first, atol=1e-6)
    np.random.RandomState(3).normal(size=10)
    np.testing.assert_array_equal(degrade(clean, "denoise", 10) - to_float(clean), first)


def test_without_noise_the_input_equals_the_clean_image():
    """The rounding of float32 was scored, as 157 dB."""
    record, _ = evaluate_image(random_image(24, 32), "denoise", 0, None)
    assert record["input"]["psnr"] == math.inf and record["input"]["ssim"] == 1


def test_a_whole_quality_may_be_a_float():
    """As `evaluate` takes it, and as `vheatir.compare(quality=10.0)` and a `--level` give it."""
    clean = random_image(24, 32)
    np.testing.assert_array_equal(degrade(clean, "jpeg", 10.0), degrade(clean, "jpeg", 10))
    with pytest.raises(ValueError, match=r"a whole number from 1 to 100, got 10\.5"):
        degrade(clean, "jpeg", 10.5)


def test_the_method_sees_the_degraded_image_and_its_level(images):
    seen = []

    def method(image: np.ndarray, level: float) -> np.ndarray:
        seen.append((image.shape, image.dtype, level, float(image.min())))
        return image

    evaluate([images], "denoise", [50], gray=False, method=method, limit=1)
    ((shape, dtype, level, lowest),) = seen
    assert (shape, dtype, level) == ((40, 50, 3), np.float32, 50)
    assert lowest < 0  # not clipped


def test_restored_images_are_clamped_and_rounded_before_scoring():
    clean = random_image(30, 30)
    record, restored = evaluate_image(clean, "denoise", 25, lambda image, level: image)
    assert restored.dtype == np.uint8
    np.testing.assert_array_equal(restored, to_uint8(degrade(clean, "denoise", 25)))
    assert record["restored"] == scores(restored, clean)
    assert record["restored"]["psnr"] > record["input"]["psnr"]  # clipping helps; the input is measured without


def test_jpeg_input_is_measured_on_the_decoded_file():
    clean = random_image(33, 41)
    record, restored = evaluate_image(clean, "jpeg", 10, None)
    assert restored is None and record["restored"] is None
    assert record["input"] == scores(jpeg_roundtrip(clean, 10), clean)


def test_gray_is_luma_for_jpeg_and_opencvs_gray_for_denoising(images):
    source = ImageSource(images, backend="disk")
    color = source.read_native("a.png")
    np.testing.assert_array_equal(read_clean(source, "a.png", "jpeg", gray=True), luma_bt601(color))
    expected = cv2.imread(str(images / "a.png"), cv2.IMREAD_GRAYSCALE)
    np.testing.assert_array_equal(read_clean(source, "a.png", "denoise", gray=True), expected)
    for task in ("jpeg", "denoise"):  # a gray file is read as it is
        np.testing.assert_array_equal(read_clean(source, "c.png", task, gray=True), source.read_native("c.png"))
        assert read_clean(source, "c.png", task, gray=False).shape == (24, 31, 3)


def test_saved_images_score_as_reported(images, tmp_path):
    results = evaluate([images], "jpeg", [10], gray=False, method=smooth, save_images=tmp_path / "out")
    saved = tmp_path / "out" / "set" / "quality10"
    assert sorted(p.relative_to(saved).as_posix() for p in saved.rglob("*.png")) == ["a.png", "c.png", "more/b.png"]
    (images / "c.png").unlink()
    (saved / "c.png").unlink()  # gray on disk, restored as color
    measured = compare_folders(saved, images)
    reported = [record["restored"] for record in results[0]["per_image"] if record["image"] != "c.png"]
    assert {name: measured[name] for name in FIGURES} == pytest.approx(mean_scores(reported), abs=1e-12)


@pytest.mark.parametrize("place", ["set/out", "set", "."])
def test_restored_images_do_not_go_among_the_clean_ones(images, place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="for clean ones; choose another place"):
        evaluate([images], "denoise", [15], gray=False, method=smooth, save_images=place)
    assert evaluate([images], "denoise", [15], gray=False, method=None)[0]["images"] == 3


@pytest.mark.parametrize("shape", [(48, 64), (48, 64, 3)], ids=str)
def test_nl_means_removes_noise(shape):
    clean = random_image(*shape[:2])
    clean = clean if len(shape) == 3 else np.ascontiguousarray(clean[:, :, 0])
    for sigma in (15, 50):
        record, _ = evaluate_image(clean, "denoise", sigma, nlm)
        assert record["restored"]["psnr"] > record["input"]["psnr"] + 5
    image = to_float(clean)
    assert nlm(image, 0) is image


def test_identical_output_is_infinite_and_null_in_json(tmp_path):
    clean = np.full((16, 16), 90, np.uint8)
    record, _ = evaluate_image(clean, "denoise", 0, lambda image, level: image)
    assert record["restored"]["psnr"] == math.inf
    assert mean_scores([record["restored"], scores(clean + 1, clean)])["psnr"] == math.inf
    write_json(tmp_path / "x.json", {"results": [record]})
    assert json.loads((tmp_path / "x.json").read_text())["results"][0]["restored"]["psnr"] is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "blur"}, "unknown task 'blur'"),
        ({"levels": [-5]}, "sigma -5"),
        ({"levels": [15, 15]}, "each only once"),
        ({"levels": []}, "at least one"),
        ({"task": "jpeg", "levels": [0]}, "quality 0"),
        ({"limit": 0}, "at least 1 image"),
        ({"save_images": "out", "method": None}, "nothing is restored"),
        ({"data": ["missing"]}, "missing: no such folder"),
    ],
    ids=["task", "sigma", "twice", "none", "quality", "limit", "save", "folder"],
)
def test_wrong_requests_are_refused(images, changes, message):
    request = {"data": [images], "task": "denoise", "levels": [15], "gray": True} | changes
    with pytest.raises(UserError, match=message):
        evaluate(request.pop("data"), request.pop("task"), **request)


def test_data_that_cannot_be_evaluated_names_itself(images, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: holds no images"):
        evaluate([tmp_path / "empty"], "denoise", gray=True, method=None)
    with pytest.raises(UserError, match="two data folders are called set"):
        evaluate([images, images], "denoise", gray=True, method=None)
    cv2.imwrite(str(images / "a.bmp"), random_image(40, 50))
    with pytest.raises(UserError, match="differ only in suffix"):
        evaluate([images], "denoise", gray=True, method=smooth, save_images=tmp_path / "out")
    cv2.imwrite(str(images / "a.bmp"), random_image(10, 50))
    with pytest.raises(UserError, match=r"a\.bmp: 10x50 pixels"):
        evaluate([images], "denoise", gray=True, method=None)
    data = (images / "a.png").read_bytes()
    (images / "a.bmp").unlink()
    (images / "a.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=r"a\.png"):
        evaluate([images], "denoise", gray=True, method=None)


def test_a_method_that_changes_the_size_is_an_error():
    with pytest.raises(ValueError, match="expected the same"):
        evaluate_image(random_image(20, 20), "denoise", 15, lambda image, level: image[:-1])


@pytest.mark.parametrize(
    ("method", "got"),
    [
        (lambda image, level: None, "NoneType"),
        (lambda image, level: [image], "list"),
        (lambda image, level: to_uint8(image), "an array of uint8"),
    ],
)
def test_a_method_that_returns_no_floats_is_named(images, method, got):
    with pytest.raises(UserError, match=rf"\.png: the method returned {got}, expected a NumPy array of floats"):
        evaluate([images], "denoise", [15], gray=True, method=method)


def test_one_folder_and_one_level_need_no_list(images):
    wanted = evaluate([images], "denoise", [15], gray=True, method=None, limit=1)
    for folder, level in ((images, 15), (str(images), 15.0), (images, np.float32(15))):
        assert evaluate(folder, "denoise", level, gray=True, method=None, limit=1) == wanted


def test_command_writes_table_and_json(images, tmp_path, capsys, monkeypatch):
    about = {"method": "vheatir", "weights": {"name": "mine", "sha256": "0" * 64}, "device": "cpu", "tile": 64}
    asked = []
    monkeypatch.setattr(methods, "open_method", lambda *arguments: (asked.append(arguments), (smooth, about))[1])
    target = tmp_path / "deep" / "out.json"
    command = ["--task", "denoise", "--data", str(images), "--color", "--sigma", "15", "25.5", "--json", str(target)]
    assert evaluation.main([*command, "--weights", "mine", "--tile", "64", "--device", "cpu", "--limit", "2"]) == 0
    assert asked == [("vheatir", "denoise", False, "mine", "cpu", 64, "float32", False)]
    shown = capsys.readouterr()
    assert "sigma 25.5      2" in shown.out and shown.err == ""  # no progress line outside a terminal
    content = json.loads(target.read_text(encoding="utf-8"))
    assert [result["level"] for result in content["results"]] == [15, 25.5]
    assert {"data", "task", "level", "images", "input", "restored", "per_image"} <= content["results"][0].keys()
    metadata = content["metadata"]
    assert metadata["weights"] == about["weights"] and metadata["limit"] == 2 and metadata["seconds"] > 0
    assert (
        metadata["command"].startswith("vheatir evaluate --task denoise") and "RandomState(0)" in metadata["protocol"]
    )
    assert {"versions", "commit", "machine", "utc", "device"} <= metadata.keys()


def _refusing(*_):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("option", ["--json", "--save-images"])
@pytest.mark.skipif(not Path("/proc/version").exists(), reason="/proc, where nothing can be written")
def test_a_place_where_nothing_can_be_written_is_refused_before_work(option, images, monkeypatch):
    monkeypatch.setattr(methods, "open_method", lambda *_: (smooth, {}))
    monkeypatch.setattr("vheatir.evaluate.api.evaluate_image", _refusing)
    argv = ["--task", "denoise", "--data", str(images), "--color", "--sigma", "15", option, "/proc/out.json"]
    with pytest.raises(UserError, match=r"/proc.*nothing can be written there"):
        evaluation.main(argv)


def test_a_disk_that_fills_later_costs_no_scores(images, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(methods, "open_method", lambda *_: (smooth, {"method": "smooth"}))
    argv = ["--task", "denoise", "--data", str(images), "--color", "--sigma", "15"]
    target = tmp_path / "out.json"
    monkeypatch.setattr("vheatir.evaluate.api.save_png", _refusing)
    with pytest.raises(UserError, match=r"a\.png: cannot be written \(No space left on device\)") as refused:
        evaluation.main([*argv, "--save-images", str(tmp_path / "saved"), "--json", str(target)])
    assert refused.value.results == json.loads(target.read_text(encoding="utf-8"))["results"]
    assert "sigma 15      3" in capsys.readouterr().out
    monkeypatch.setattr("vheatir.utils.run_metadata.atomic_open", _refusing)
    with pytest.raises(UserError, match=r"out\.json: cannot be written \(No space left on device\)"):
        evaluation.main([*argv, "--json", str(target)])
    assert "sigma 15      3" in capsys.readouterr().out


@pytest.fixture(params=["color", "gray"])
def weights_file(request, tmp_path) -> Path:
    """Untrained weights for denoising, of a very small network."""
    from vheatir.archs.vheatir_arch import VHeatIR

    network = VHeatIR(in_chans=3 if request.param == "color" else 1, dim=8, depths=(1,))
    about = {"config": json.dumps(network.config), "task": "denoise", "levels": "none", "license": "test"}
    weights.save(tmp_path / "small.safetensors", network.state_dict(), about | {"color": request.param})
    return tmp_path / "small.safetensors"


def test_weights_are_loaded_used_and_recorded(images, weights_file, tmp_path):
    options = ["--task", "denoise", "--sigma", "25", "--device", "cpu", "--weights", str(weights_file), "--limit", "1"]
    assert evaluation.main([*options, "--data", str(images), "--gray", "--json", str(tmp_path / "x.json")]) == 0
    content = json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))
    digest = hashlib.sha256(weights_file.read_bytes()).hexdigest()
    assert content["metadata"]["weights"] == {"name": "small", "sha256": digest}
    assert content["metadata"]["device"] == "cpu"
    assert content["results"][0]["restored"].keys() == FIGURES
    with pytest.raises(UserError, match="for the task 'denoise'"):
        evaluation.main(["--task", "jpeg", "--weights", str(weights_file), "--data", str(images), "--gray"])


@pytest.mark.parametrize("weights_file", ["gray"], indirect=True)
def test_ensemble_scores_the_mean_over_flips_and_rotations(images, weights_file, tmp_path):
    state, about = weights.read(str(weights_file))
    generator = torch.Generator().manual_seed(0)
    for value in state.values():  # untrained, it would hardly change the image
        value.add_(0.03 * torch.randn(value.shape, generator=generator))
    weights.save(weights_file, state, about)
    options = ["--task", "denoise", "--sigma", "25", "--device", "cpu", "--weights", str(weights_file), "--limit", "1"]
    options += ["--data", str(images), "--gray", "--ensemble"]
    assert evaluation.main([*options, "--json", str(tmp_path / "x.json")]) == 0
    content = json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))
    assert content["metadata"]["ensemble"] is True
    network = Restorer("denoise", weights=weights_file, device="cpu").network

    def once(image):
        with torch.inference_mode():
            return network(torch.tensor(image.copy())[None, None])[0, 0].numpy()

    def by_hand(image, _level):
        turned = [np.rot90(image, turns) for turns in range(4)]
        straight = [np.rot90(once(one), -turns) for turns, one in enumerate(turned)]
        mirrored = [np.rot90(once(one[:, ::-1])[:, ::-1], -turns) for turns, one in enumerate(turned)]
        return np.mean(straight + mirrored, 0).clip(0, 1)

    wanted = evaluate(images, "denoise", 25, gray=True, method=by_hand, limit=1)
    plain = evaluate(images, "denoise", 25, gray=True, weights=weights_file, device="cpu", limit=1)
    found = content["results"][0]["restored"]["psnr"]
    assert found == pytest.approx(wanted[0]["restored"]["psnr"], abs=1e-3)
    assert found != pytest.approx(plain[0]["restored"]["psnr"], abs=1e-3)


@pytest.mark.parametrize("weights_file", ["gray"], indirect=True)
def test_gray_weights_are_not_for_the_color_protocol(images, weights_file):
    with pytest.raises(UserError, match="evaluate them with --gray"):
        evaluation.main(["--task", "denoise", "--weights", str(weights_file), "--data", str(images), "--color"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "jpeg", "--sigma", "15", "--weights", "none"], "--task jpeg takes --quality"),
        (["--task", "denoise", "--quality", "15", "--weights", "none"], "--task denoise takes --sigma"),
        (["--task", "jpeg", "--method", "nlm"], "does not apply to --task jpeg"),
        (["--task", "denoise", "--method", "nlm", "--weights", "none"], "takes none of --weights"),
        (["--task", "denoise", "--method", "nlm", "--ensemble"], "takes none of .*--ensemble"),
        (["--task", "denoise", "--weights", "none", "--json", "."], "is a folder"),
        (["--task", "denoise", "--weights", "no such file"], "no such file"),
    ],
    ids=["sigma", "quality", "nlm", "nlm weights", "nlm ensemble", "json", "weights"],
)
def test_command_refuses_what_does_not_fit(images, arguments, message):
    with pytest.raises(UserError, match=message):
        evaluation.main([*arguments, "--data", str(images), "--gray"])
