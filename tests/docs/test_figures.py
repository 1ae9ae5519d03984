"""The figures of the pages' tables are those of the files of results that the pages name."""

import json
import re
from typing import Any

import pytest

from tests.docs.shown import ROOT

RESULTS = ROOT / "benchmarks" / "results"
CPU = "cpu-amd-epyc/"
_NUMBER = re.compile(r"[+-]?\d[\d,]*(?:\.\d+)?(?:e[+-]\d+)?")


def read(name: str) -> Any:
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def rows(page: str, after: str) -> list[list[str]]:
    """The cells of the first table after a text of a page, without its head."""
    text = (ROOT / page).read_text(encoding="utf-8")
    assert after in text, f"{page} does not say {after!r}"
    table = re.search(r"^\|.*\n\|[-| ]+\|\n((?:\|.*\n)+)", text[text.index(after) :], re.MULTILINE)
    return [[cell.strip(" *`") for cell in line.strip("|").split("|")] for line in table[1].splitlines()]


def numbers(cells: list[str]) -> list[str]:
    return [number.replace(",", "") for cell in cells for number in _NUMBER.findall(cell)]


def step(text: str) -> float:
    """One unit in the last place of a number as it is written."""
    digits, _, power = text.partition("e")
    return 10.0 ** (int(power or 0) - len(digits.partition(".")[2]))


def check(page: str, texts: list[str], values: list[float]) -> None:
    """Each written number is its value rounded to the places that are shown."""
    assert len(texts) == len(values), f"{page}: {texts} beside {values}"
    wrong = [(text, value) for text, value in zip(texts, values) if abs(float(text) - value) > 0.501 * step(text)]
    assert wrong == [], f"{page}: written, and in the file"


def by_case(name: str) -> dict[str, dict[str, dict[str, Any]]]:
    """Case -> candidate -> result of a file of `vheatir bench`."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for result in read(name)["results"]:
        found.setdefault(result["case"], {})[result["backend"]] = result
    return found


def operator_row(cases: dict, shape: str) -> list[float]:
    """Published milliseconds, three speed-ups, and peaks and errors of the forward."""
    forward = cases[f"hco fwd {shape} float32"]
    both = cases[f"hco fwd+bwd {shape} float32"]["cpu_kernel"]
    published, ours, prepared = (forward[name] for name in ("published", "cpu_kernel", "cpu_kernel prepared"))
    speeds = [ours["speedup"], prepared["speedup"], both["speedup"]]
    pair = [one[key] for key in ("peak_mib", "error") for one in (published, ours)]
    return [published["median_us"] / 1e3, *speeds, *pair]


@pytest.mark.parametrize(
    "page, name",
    [
        ("docs/performance.md", "2026-11-29-hco-avx512-1-thread.json"),
        ("docs/performance.md", "2026-11-29-hco-single-calls-avx512-1-thread.json"),
        ("benchmarks/results/README.md", "2026-11-21-hco-cpu-kernel-ahead-1-thread.json"),
        ("benchmarks/results/README.md", "2026-11-21-hco-cpu-kernel-1-thread.json"),
    ],
)
def test_the_operator(page, name):
    cases = by_case(CPU + name)
    table = rows(page, name)
    assert len(table) == sum(case.startswith("hco fwd ") for case in cases)
    for shape, *cells in table:
        check(page, numbers(cells), operator_row(cases, shape))


def test_blocks_and_classifiers_of_earlier_kernels():
    page = "benchmarks/results/README.md"
    for name, case in (("block", "block fwd {} float32"), ("model", "vheat_tiny fwd 1x3x{0}x{0} float32")):
        file = f"2026-11-21-{name}-1-thread.json"
        for what, *cells in rows(page, file):
            found = by_case(CPU + file)[case.format(what.removesuffix(" px"))]
            pair = (found["published"], found["vheatir"])
            wanted = [one["median_us"] / 1e3 for one in pair] + [pair[1]["speedup"]]
            check(page, numbers(cells), wanted + [one[key] for key in ("peak_mib", "error") for one in pair])


def test_networks():
    page = "docs/performance.md"
    cases: dict[str, Any] = {}
    for name in ("model-224", "train", "model", "restore"):  # that of 224 pixels alone has more rounds
        cases = by_case(f"{CPU}2026-11-28-{name}-avx2-2-threads.json") | cases
    wanted = [f"vheat_tiny fwd 1x3x{side}x{side}" for side in (224, 512, 1024)]
    wanted += ["vheat_tiny train step 4x3x224x224", "restore fwd 1x3x256x256", "restore fwd 1x3x480x320"]
    for case, (_, *cells) in zip(wanted, rows(page, "## Networks"), strict=True):
        theirs, ours = cases[f"{case} float32"].values()
        milliseconds = [theirs["median_us"] / 1e3, ours["median_us"] / 1e3]
        check(page, numbers(cells), [*milliseconds, ours["speedup"], theirs["peak_mib"], ours["peak_mib"]])


def test_decays_of_networks():
    name = "2026-11-28-decays-1-thread.json"
    ratios = {(one["case"], one["kernel"]): one["ratio"] for one in read(CPU + name)["results"]}
    for shape, *cells in rows("docs/performance.md", name):
        wanted = [ratios[f"{form} {shape} float32", "now"] for form in ("fwd", "fwd prepared", "fwd+bwd")]
        check("docs/performance.md", numbers(cells), wanted)


def test_speeds_of_restoration():
    name = "2026-11-29-speed-networks.json"
    found = read(CPU + name)
    seconds = {
        (one["network"], one["type"], one["threads"]): one["s_per_megapixel"]
        for one in found["results"]
        if one["case"] == "images"
    }
    networks = ("vheatunet", "light", "dncnn", "ffdnet", "swinir_light")
    for network, (_, _, *cells) in zip(networks, rows("docs/performance.md", name), strict=True):
        wanted = [seconds[network, kind, threads] for kind in ("float32", "bf16") for threads in (1, 2)]
        psnr = found["psnr"].get(f"{network}/float32", {}).get("psnr") or found["published"][network][0]
        check("docs/performance.md", numbers(cells)[:5], [*wanted, psnr])


def test_bf16():
    page = "docs/performance.md"
    files = [*RESULTS.glob(f"{CPU}*-precision-*.json")]
    found = {one["name"]: one for file in files for one in read(CPU + file.name)["results"]}
    table = rows(page, "**bf16**")
    assert {name.partition("`")[0] for name, *_ in table} == set(found)
    for name, *cells in table:
        one = found[name.partition("`")[0]]
        check(page, numbers(cells), [one["float32_ms"], one["bf16_ms"], one["speedup"], one["change_db"]])


def test_forms_of_the_operator():
    page = "docs/operator_forms.md"
    name = "2026-11-29-heat-forms-1-thread.json"
    times = {
        ("x".join(map(str, one["shape"])), one["pass"], one["candidate"]): one["median_ms"]
        for one in read(CPU + name)["results"]
        if one["dtype"] == "float32"
    }
    keys = [("forward", name) for name in ("diffuse", "prepared decay", "scipy", "dense")]
    keys += [("forward + backward", name) for name in ("diffuse", "decay map")]
    for shape, *cells in rows(page, name):
        check(page, numbers(cells), [times[shape, *key] for key in keys if (shape, *key) in times])


def test_forms_of_the_network():
    found = read(f"{CPU}2026-11-29-network-forms-1-thread.json")["results"]
    for one, (_, *cells) in zip(found, rows("docs/architecture.md", "and heat at every stage.\n"), strict=True):
        check("docs/architecture.md", numbers(cells), [one["float32_ms"], one["bf16_ms"]])


CARDS = {
    "denoise_color_blind": ["denoise_cbsd68.json"],
    "denoise_gray_blind": ["denoise_gray.json"],
    "jpeg_color_blind": ["jpeg_cbsd68.json", "jpeg_classic5.json"],
    "photo_color_blind": ["photo_pairs.json"],
    "photo_color_blind_free": ["photo_free_pairs.json"],
}


@pytest.mark.parametrize("name", CARDS)
def test_cards_of_weights(name):
    page = f"vheatir/weights/{name}.md"
    results = [result for file in CARDS[name] for result in read(f"restoration/{file}")["results"]]
    keys = ("psnr", "ssim", "psnrb") if name.startswith("jpeg") else ("psnr", "ssim")
    for result, (data, color, *cells) in zip(results, rows(page, "| set |"), strict=True):
        assert (data, color) == (result["data"], result["color"])
        scores = [result[kind][key] for kind in ("input", "restored") for key in keys]
        gain = result["restored"]["psnr"] - result["input"]["psnr"]
        check(page, numbers(cells), [result["level"], result["images"], *scores, gain])


def test_reading():
    found = read("restoration/reading_bsd432.json")["results"]
    rates = [one["median_samples_per_processor_s"] for one in found]
    table = rows("docs/training.md", "reading_bsd432.json")
    check("docs/training.md", [number for _, *cells in table for number in numbers(cells)], rates)


# Rows of docs/architecture.md, in order, by the names of benchmarks/designs.py.
ATTENTION = [
    ("none", "no_attention"),
    ("heat at the two coarse stages", "heat_coarse"),
    ("heat at all stages, on maps averaged over 2x2 pixels", "pooled"),
    ("average over the whole map at all stages", "mean"),
    ("heat at the two fine stages", "heat_fine"),
    ("heat of a quarter of the channels", "quarter"),
    ("heat at the two fine stages, averages at the coarse ones", "heat_fine_mean_coarse"),
    ("heat at all stages", "heat"),
    ("no attention, heat inside the gate", "gate"),
    ("heat at all stages, diffusivities from the features", "adaptive"),
    ("heat at all stages, a diffusivity for each frequency and channel", "frequency"),
]
CHANGES = [
    ("learning rate 2e-3", "fast"),
    ("none", "heat"),
    ("three levels instead of four", "two_levels"),
    ("crops of 96", "crop_96"),
    ("24 channels", "narrow"),
    ("flat", "flat"),
]
JPEG = [
    ("none", "no_attention"),
    ("heat at the two coarse stages", "heat_coarse"),
    ("heat in windows on the blocks of the coder (`grid`) at full resolution", "grid_fine"),
    ("heat at all stages", "heat"),
    ("average over the whole map at all stages", "mean"),
    ("heat in windows on the blocks of the coder at all stages but the coarsest", "grid"),
]


@pytest.mark.parametrize(
    "after, rows_of_table, file",
    [
        ("**Heat does not pay at equal time.**", ATTENTION, "designs_8_minutes.json"),
        ("The same with other changes", CHANGES, "designs_8_minutes.json"),
        ("**JPEG**: the same from the recipe", JPEG, "designs_8_minutes_jpeg.json"),
    ],
)
def test_designs(after, rows_of_table, file):
    page = "docs/architecture.md"
    found = read(f"restoration/{file}")["designs"]
    again = read("restoration/designs_8_minutes_mirrored.json")["designs"] if file == "designs_8_minutes.json" else {}
    for (start, name), (what, *cells) in zip(rows_of_table, rows(page, after), strict=True):
        assert what.startswith(start)
        scores = found[name]["scores"] | again.get(name, {})
        wanted = [found[name]["step_s"], found[name]["iterations"]]
        wanted += [scores[phase]["psnr"] for phase in scores if phase.startswith("val_")]
        texts = [cell.removesuffix(" M") for cell in cells]
        if rows_of_table is CHANGES:
            wanted = [scores["parameters"] / 1e6, *wanted]
        check(page, numbers(texts), wanted)


HALF_HOURS = [
    ("heat at the two coarse stages", "heat_coarse"),
    ("none", "no_attention"),
    ("heat at all stages, on maps averaged", "pooled"),
    ("heat at the two fine stages", "heat_fine"),
    ("average over the whole map", "mean"),
]


def test_designs_of_half_an_hour():
    page = "docs/architecture.md"
    seeds = [read(f"restoration/designs_30_minutes{seed}.json")["designs"] for seed in ("", "_seed_1")]
    for (start, name), (what, *cells) in zip(HALF_HOURS, rows(page, "**Half an hour each**"), strict=True):
        assert what.startswith(start)
        assert {one[name]["iterations"] for one in seeds} == {seeds[0][name]["iterations"]}
        wanted = [seeds[0][name]["step_s"], seeds[0][name]["iterations"]]
        for phase in ("val_15", "val_25", "val_50"):
            wanted += [one[name]["scores"][phase]["psnr"] for one in seeds]
        check(page, numbers(cells), wanted)
