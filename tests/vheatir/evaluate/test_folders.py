"""`scripts/calculate_metrics.py` and folders of images compared: pairs, formats, gray and alpha, what is refused."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.vheatir.evaluate.conftest import random_image
from vheatir.errors import UserError
from vheatir.evaluate.api import evaluate
from vheatir.evaluate.folders import compare_folders
from vheatir.image_io.arrays import luma_bt601
from vheatir.metrics.fidelity import psnr

ROOT = Path(__file__).resolve().parents[3]


def script(name: str, *arguments: str | Path) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "scripts" / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT.parent)


def test_evaluation_script_measures_the_input_without_weights(images, tmp_path):
    options = ["--task", "jpeg", "--gray", "--weights", "none", "--quality", "10", "--json", tmp_path / "x.json"]
    done = script("evaluate_restoration.py", "--data", images, *options)
    assert done.returncode == 0, done.stderr
    (result,) = json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))["results"]
    assert result["restored"] is None
    assert f"{result['input']['psnr']:.2f}" in done.stdout
    failed = script("evaluate_restoration.py", "--data", tmp_path / "nowhere", *options)
    assert failed.returncode == 2 and failed.stderr.startswith("error: ") and "Traceback" not in failed.stderr


@pytest.fixture
def restored(images: Path, tmp_path: Path) -> Path:
    """Results for `images`, as JPEG files of another program would be: same names, other suffix."""
    folder = tmp_path / "results"
    for path in images.rglob("*.png"):
        target = folder / path.relative_to(images).with_suffix(".bmp")
        target.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(target), cv2.blur(cv2.imread(str(path), cv2.IMREAD_UNCHANGED), (3, 3)))
    return folder


def test_metrics_script_pairs_by_stem(images, restored, tmp_path):
    done = script("compute_metrics.py", restored, images, "--border", "2", "--json", tmp_path / "x.json")
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))
    (result,) = content["results"]
    assert [record["image"] for record in result["per_image"]] == ["a", "c", "more/b"]
    clean, blurred = (cv2.imread(str(path)) for path in (images / "a.png", restored / "a.bmp"))
    assert result["per_image"][0]["psnr"] == pytest.approx(psnr(blurred, clean, border=2), abs=1e-9)
    assert result["psnr"] == pytest.approx(np.mean([record["psnr"] for record in result["per_image"]]), abs=1e-12)
    assert done.stdout.splitlines()[-1].split()[:2] == ["mean", f"{result['psnr']:.2f}"]
    assert content["metadata"]["command"].startswith("python scripts/compute_metrics.py")


def test_luma_compares_gray_results_with_color_references(images, tmp_path):
    folder = tmp_path / "gray"
    (folder / "more").mkdir(parents=True)
    for name in ("a.png", "more/b.png"):
        bgr = cv2.imread(str(images / name))
        cv2.imwrite(str(folder / name), luma_bt601(np.ascontiguousarray(bgr[:, :, ::-1])))
    (images / "c.png").unlink()
    assert compare_folders(folder, images, luma=True)["psnr"] == math.inf
    with pytest.raises(UserError, match="both gray or both color"):
        compare_folders(folder, images)


def test_a_file_in_the_place_of_a_folder_is_named(images, restored):
    file = next(images.glob("*.png"))
    with pytest.raises(UserError, match=r"\.png: no such folder.*this is a file, give its folder$"):
        compare_folders(restored, file)
    with pytest.raises(UserError, match=r"\.png: no such folder.*this is a file, give its folder$"):
        evaluate([file], "denoise", [15], gray=True)
    with pytest.raises(UserError, match=r"none: no such folder, expected one with images; check the path$"):
        compare_folders("none", images)


def test_folders_that_do_not_match_are_refused(images, restored):
    (restored / "a.bmp").rename(restored / "d.bmp")
    with pytest.raises(UserError, match=r"2 images have no partner[^$]*a: in .* missing in[^$]*d: in .* missing in"):
        compare_folders(restored, images)
    (restored / "d.bmp").rename(restored / "a.bmp")
    with pytest.raises(UserError, match=r"a\.bmp: border 20"):
        compare_folders(restored, images, border=20)
    cv2.imwrite(str(restored / "a.bmp"), random_image(40, 49))
    with pytest.raises(UserError, match=r"a\.bmp is 40x49 color and .*a\.png is 40x50 color; expected the same size"):
        compare_folders(restored, images)


@pytest.mark.parametrize("damage", ["cut", "text", "small"])
def test_a_broken_image_at_the_end_shows_before_any_work(images, damage):
    rng, calls = np.random.default_rng(0), []
    whole = cv2.imencode(".png", rng.integers(0, 256, (40, 40, 3), dtype=np.uint8))[1].tobytes()
    small = cv2.imencode(".png", np.zeros((5, 40), np.uint8))[1].tobytes()
    (images / "z.png").write_bytes({"cut": whole[:900], "text": b"no image", "small": small}[damage])

    def method(image, level):
        calls.append(level)
        return image

    with pytest.raises(UserError, match=r"1 of \d+ images cannot be used[^$]*z\.png"):
        evaluate([images], "denoise", [15, 25], gray=False, method=method)
    assert not calls
    evaluate([images], "denoise", [15], gray=False, method=method, limit=2)  # it is not among these
    assert len(calls) == 2


def test_a_broken_image_shows_before_folders_are_compared(images, restored, monkeypatch):
    (restored / "more" / "b.bmp").write_bytes(b"")
    monkeypatch.setattr("vheatir.evaluate.folders.scores", lambda *_args, **_options: pytest.fail("compared"))
    with pytest.raises(UserError, match=r"b\.bmp: the file is empty"):
        compare_folders(restored, images)


def pair(tmp_path, restored, reference):
    for name, image in (("out", restored), ("ref", reference)):
        (tmp_path / name).mkdir(exist_ok=True)
        bgr = image if image.ndim == 2 else image[..., [2, 1, 0, 3][: image.shape[2]]]
        cv2.imwrite(str(tmp_path / name / "a.png"), bgr)
    return tmp_path / "out", tmp_path / "ref"


@pytest.mark.parametrize("luma", [False, True])
@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_three_equal_channels_are_gray_beside_gray(tmp_path, luma, swap, dtype):
    rng = np.random.default_rng(0)
    scale = 1 if dtype is np.uint8 else 257
    gray, other = (rng.integers(0, 256, (20, 30)).astype(np.uint8) for _ in range(2))
    images = [np.dstack([gray] * 3).astype(dtype) * scale, other.astype(dtype) * scale]
    result = compare_folders(*pair(tmp_path, *(images[::-1] if swap else images)), luma=luma)
    assert result["psnr"] == pytest.approx(psnr(gray, other), abs=1e-12) and result["notes"] == []


def test_alpha_is_not_compared_and_a_note_says_so(tmp_path):
    rng = np.random.default_rng(0)
    color, other = (rng.integers(0, 256, (20, 30, 3), dtype=np.uint8) for _ in range(2))
    folders = pair(tmp_path, np.dstack([color, color[..., 0]]), other)
    result = compare_folders(*folders)
    assert result["psnr"] == pytest.approx(psnr(color, other), abs=1e-12)
    assert len(result["notes"]) == 1 and "a.png: its alpha is not compared" in result["notes"][0]
    done = script("compute_metrics.py", *folders)
    assert done.returncode == 0 and "its alpha is not compared" in done.stderr


def test_folders_are_compared_in_every_format_and_others_are_counted(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        for name in ("one.png", "two.jfif"):
            data = cv2.imencode(f".{'jpg' if name.endswith('jfif') else 'png'}", random_image(20, 30))[1]
            (tmp_path / folder / name).write_bytes(data.tobytes())
    (tmp_path / "a" / "three.jxl").write_bytes(b"x")
    (tmp_path / "b" / "three.jxl").write_bytes(b"x")
    found = compare_folders(tmp_path / "a", tmp_path / "b")
    assert found["images"] == 2
    expected = "files of other kinds skipped: 1 .jxl"
    assert found["notes"] == [f"{tmp_path / 'a'}: {expected}", f"{tmp_path / 'b'}: {expected}"]


def test_luma_refuses_gray_that_cannot_be_luma(tmp_path):
    rng = np.random.default_rng(0)
    color = rng.integers(0, 256, (40, 30, 3), dtype=np.uint8)
    full_range = cv2.normalize(luma_bt601(color), None, 0, 255, cv2.NORM_MINMAX)
    with pytest.raises(UserError, match=r"a\.png: is to be the BT\.601 luma.*from 16 to 235.*leave --luma out"):
        compare_folders(*pair(tmp_path, full_range, color), luma=True)
    luma = luma_bt601(color)
    luma[0, :5] = (3, 250, 0, 255, 12)  # what restoring may push out
    assert compare_folders(*pair(tmp_path, luma, color), luma=True)["psnr"] > 20


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="names there are always text")
@pytest.mark.parametrize("name", ["写真 é", os.fsdecode(b"caf\xe9")], ids=ascii)
def test_names_that_the_console_cannot_show_end_nothing(tmp_path, name):
    color = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    out, ref = pair(tmp_path, color, color[::-1])
    for folder in (out, ref):
        (folder / "a.png").rename(folder / f"{name}.png")
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT)}
    commands = [
        [str(ROOT / "scripts" / "compute_metrics.py"), str(out), str(ref)],
        ["-m", "vheatir", "evaluate", "--task", "denoise", "--color", "--weights", "none", "--data", str(out)],
    ]
    for command in commands:
        arguments = [sys.executable, *command, "--json", str(tmp_path / "x.json")]
        done = subprocess.run(arguments, capture_output=True, check=False, env=environment)
        assert done.returncode == 0, done.stderr
        results = json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))["results"]
        assert results[0]["per_image"][0]["image"].startswith(name[:3])
        (tmp_path / "x.json").unlink()
