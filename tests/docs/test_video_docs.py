"""The figures of docs/video.md are those of the file that it names."""

import json
import re

from tests.docs.shown import ROOT

PAGE = (ROOT / "docs" / "video.md").read_text(encoding="utf-8")
RESULTS = json.loads((ROOT / "benchmarks" / "results" / "restoration" / "video_noise.json").read_text(encoding="utf-8"))
METHODS = ("frame by frame", "frame by frame, fine-tuned", "video network")
_ROW = re.compile(r"^\| ([a-z ]+) \|" + 3 * r" ([\d.]+) dB, ([\d.]+) \|" + r" \+([\d.]+) dB \|$", re.MULTILINE)
_CLIP = re.compile(r"^\| [^|]+ \| ([\d.]+) dB, (0\.\d{4}) \| ([\d.]+) dB, (0\.\d{4}) \|$", re.MULTILINE)


def test_the_table_is_that_of_the_file():
    by = {(row["motion"], row["method"]): row for row in RESULTS["results"]}
    rows = _ROW.findall(PAGE)
    assert [row[0] for row in rows] == list(dict.fromkeys(motion for motion, _ in by))
    for motion, *shown in rows:
        one, trained, other = (by[motion, method] for method in METHODS)
        figures = [row[key] for row in (one, trained, other) for key in ("psnr", "flicker")]
        assert shown[:6] == [f"{figure:.2f}" for figure in figures], motion
        assert abs(float(shown[6]) - (other["psnr"] - one["psnr"])) < 0.011, motion


def test_the_clips_that_were_looked_at_are_in_the_file():
    clips = RESULTS["clips"]
    pairs = zip(clips[::2], clips[1::2], strict=True)
    rows = [tuple(text for row in pair for text in (f"{row['psnr']:.2f}", f"{row['ghost']:.4f}")) for pair in pairs]
    assert len(rows) == 7 and _CLIP.findall(PAGE) == rows
