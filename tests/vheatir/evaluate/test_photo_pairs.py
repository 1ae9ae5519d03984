"""Evaluation on pairs of photographs: which files belong together, what is measured, classic methods, refusals."""

import cv2
import numpy as np
import pytest
import skimage.data

from vheatir.cli import main
from vheatir.errors import UserError
from vheatir.evaluate import evaluate
from vheatir.evaluate.methods import nlm_of_photographs
from vheatir.metrics.fidelity import psnr


@pytest.fixture
def pairs(tmp_path):
    """Two pairs, one of them a JPEG in a folder of its own."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "pairs"
    (folder / "more").mkdir(parents=True)
    made = {}
    for name, top in (("a.png", 40), ("more/b.JPG", 100)):
        mean = cv2.GaussianBlur(skimage.data.astronaut()[top : top + 48, 200:264], (0, 0), 2)
        real = np.clip(mean + rng.normal(0, 8, mean.shape), 0, 255).round().astype(np.uint8)
        stem, suffix = name.split(".")
        for kind, pixels in (("real", real), ("mean", mean)):
            file = folder / f"{stem}_{kind}.{suffix}"
            quality = [] if suffix == "png" else [cv2.IMWRITE_JPEG_QUALITY, 98]
            assert cv2.imwrite(str(file), np.ascontiguousarray(pixels[..., ::-1]), quality)
            made[f"{stem}_{kind}"] = cv2.imread(str(file))[..., ::-1]
    return folder, made


def test_input_is_the_photograph_against_its_mean(pairs):
    folder, made = pairs
    (result,) = evaluate([folder], "photo", gray=False, method=None)
    assert [record["image"] for record in result["per_image"]] == ["a_real.png", "more/b_real.JPG"]
    wanted = [psnr(made[f"{stem}_real"], made[f"{stem}_mean"]) for stem in ("a", "more/b")]
    assert [record["input"]["psnr"] for record in result["per_image"]] == pytest.approx(wanted)
    assert result["restored"] is None and result["images"] == 2 and result["level"] == 0


def test_a_method_gets_the_photograph(pairs):
    folder, made = pairs
    seen = []

    def method(image, level):
        seen.append((image, level))
        return image

    (result,) = evaluate([folder], "photo", gray=False, method=method)
    np.testing.assert_allclose(seen[0][0] * 255, made["a_real"], atol=1e-4)
    assert result["restored"] == pytest.approx(result["input"])


def test_non_local_means_gains(pairs):
    results = evaluate([pairs[0]], "photo", [3, 8], gray=False, method="nlm")
    assert [result["level"] for result in results] == [3, 8]
    assert results[1]["restored"]["psnr"] > results[1]["input"]["psnr"] + 1
    image = np.full((16, 16, 3), 0.5, np.float32)
    np.testing.assert_allclose(nlm_of_photographs(image, 5), image, atol=1 / 255)


def test_command_prints_one_line_for_a_folder(pairs, capsys):
    assert main(["evaluate", "--task", "photo", "--data", str(pairs[0]), "--method", "nlm"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and lines[2].split()[:4] == ["pairs", "sigma", "5", "2"]
    assert main(["evaluate", "--task", "photo", "--data", str(pairs[0]), "--weights", "none"]) == 0
    assert "as taken" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--sigma", "5"], "our networks take none"),
        (["--quality", "10"], "takes --sigma"),
        (["--gray"], "evaluated in color"),
    ],
)
def test_what_does_not_belong_to_photographs_is_refused(arguments, message, pairs, capsys):
    assert main(["evaluate", "--task", "photo", "--data", str(pairs[0]), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_other_tasks_need_their_protocol(pairs, capsys):
    assert main(["evaluate", "--task", "denoise", "--data", str(pairs[0])]) == 2
    assert "needs --color or --gray" in capsys.readouterr().err


def test_pairs_that_are_none_are_named(pairs, tmp_path):
    folder, _ = pairs
    (folder / "more" / "b_mean.JPG").rename(folder / "more" / "c_mean.JPG")
    with pytest.raises(UserError, match=r"b_real.JPG: expected one file b_mean.\* beside it, found 0"):
        evaluate([folder], "photo", gray=False, method=None)
    (tmp_path / "none").mkdir()
    cv2.imwrite(str(tmp_path / "none" / "x.png"), np.zeros((20, 20, 3), np.uint8))
    with pytest.raises(UserError, match="found no file named"):
        evaluate([tmp_path / "none"], "photo", gray=False, method=None)


def test_a_mean_without_its_photograph_is_named(pairs):
    folder, _ = pairs
    (folder / "more" / "b_real.JPG").rename(folder / "more" / "c.JPG")
    with pytest.raises(UserError, match=r"b_mean.JPG: expected one file b_real.\* beside it, found 0"):
        evaluate([folder], "photo", gray=False, method=None)


def test_photographs_are_read_in_every_format_of_images(pairs):
    heif = pytest.importorskip("pillow_heif", reason="pip install 'vheatir[phone]'")
    folder, made = pairs
    (folder / "a_real.png").unlink()
    heif.from_bytes("RGB", (64, 48), made["a_real"].tobytes()).save(folder / "a_real.heic", quality=-1, chroma=444)
    (result,) = evaluate([folder], "photo", gray=False, method=None)
    assert [record["image"] for record in result["per_image"]] == ["a_real.heic", "more/b_real.JPG"]
    wanted = psnr(made["a_real"], made["a_mean"])
    assert result["per_image"][0]["input"]["psnr"] == pytest.approx(wanted, abs=0.3)  # through Y'CbCr


def test_files_that_are_left_out_are_counted(pairs, caplog):
    folder, _ = pairs
    for name in ("a_real.NEF", "more/notes.txt", "more/b.txt"):
        (folder / name).write_bytes(b"x")
    cv2.imwrite(str(folder / "alone.png"), np.zeros((20, 20, 3), np.uint8))
    (result,) = evaluate([folder], "photo", gray=False, method=None)
    assert result["images"] == 2
    assert "note: pairs: files of other kinds skipped: 1 .nef, 2 .txt" in caplog.messages
    assert "note: pairs: 1 images are named neither *_real.* nor *_mean.* and were skipped" in caplog.messages


def test_sizes_of_a_pair_must_agree(pairs):
    folder, _ = pairs
    cv2.imwrite(str(folder / "a_mean.png"), np.zeros((40, 64, 3), np.uint8))
    with pytest.raises(UserError, match=r"a_real\.png"):
        evaluate([folder], "photo", gray=False, method=None)


def test_the_last_pair_of_two_sizes_shows_before_any_work(pairs):
    folder, _ = pairs
    cv2.imwrite(str(folder / "more" / "b_mean.JPG"), np.zeros((40, 64, 3), np.uint8))
    with pytest.raises(UserError, match=r"b_real\.JPG: \(48, 64\), but its mean has \(40, 64\)"):
        evaluate(
            [folder], "photo", gray=False, method=lambda *_: pytest.fail("restored before the sizes were compared")
        )
