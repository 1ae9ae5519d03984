"""The figures of docs/video.md are those of the file that it names."""

import json
import re

from tests.docs.shown import ROOT

PAGE = (ROOT / "docs" / "video.md").read_text(encoding="utf-8")
RESULTS = json.loads((ROOT / "benchmarks" / "results" / "restoration" / "video_noise.json").read_text(encoding="utf-8"))
_ROW = re.compile(r"^\| ([a-z ]+) \| ([\d.]+) dB, ([\d.]+) \| ([\d.]+) dB, ([\d.]+) \| \+([\d.]+) dB \|$", re.MULTILINE)


def test_the_table_is_that_of_the_file():
    by = {(row["motion"], row["method"]): row for row in RESULTS["results"]}
    rows = _ROW.findall(PAGE)
    assert [row[0] for row in rows] == list(dict.fromkeys(motion for motion, _ in by))
    for motion, *shown in rows:
        one, other = by[motion, "frame by frame"], by[motion, "video network"]
        figures = [one["psnr"], one["flicker"], other["psnr"], other["flicker"]]
        assert shown[:4] == [f"{figure:.2f}" for figure in figures], motion
        assert abs(float(shown[4]) - (other["psnr"] - one["psnr"])) < 0.011, motion


def test_the_clips_that_were_looked_at_are_in_the_file():
    shown = {f"{row['psnr']:.2f}" for row in RESULTS["clips"]}
    assert len(shown) == 6 and all(figure in PAGE for figure in shown)
