"""Cards: what a file of weights is for, where it comes from and how well it does, in Markdown."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors

from vheatir.utils.files import sha256


def card(name: str, path: Path, metadata: Mapping[str, str], facts: Mapping[str, str], results: list[dict]) -> str:
    """The Markdown card of a weights file.

    Args:
        name: heading.
        path: the file.
        metadata: of the file, with the keys of `vheatir.weights.REQUIRED`.
        facts: text per line of the table (data, recipe, command, commit, hardware, time).
        results: those of the JSON that `vheatir evaluate --json` writes; none leaves the table out.
    """
    task = metadata["task"]
    purposes = {
        "denoise": "Removal of Gaussian noise",
        "jpeg": "Removal of JPEG artifacts",
        "photo": "Removal of the noise of cameras and of JPEG artifacts",
        "paired": "Removal of the degradation in its own training data",
    }
    purpose = purposes.get(task, task)
    about = f"{purpose}; {metadata['color']} network; {metadata['levels']}."
    if task == "denoise":
        about += " Noise of cameras is different: do not expect it to be removed."
    rows = {**facts, "parameters": f"{_count(path):,}", "size": f"{path.stat().st_size / 1e6:.2f} MB, float16"}
    rows |= {"SHA-256": f"`{sha256(path)}`", "license": metadata["license"]}
    lines = [f"# {name}", "", about, "", "| | |", "|---|---|", *(f"| {key} | {_cell(rows[key])} |" for key in rows)]
    if results:
        metrics = "PSNR / SSIM / PSNR-B" if task == "jpeg" else "PSNR / SSIM"
        lines += ["", f"{metrics} (dB), mean over the images of a set:", ""]
        level = {"jpeg": "quality", "photo": "noise"}.get(task, "sigma")
        lines += [
            f"| set | channels | {level} | images | input | restored | gain in dB |",
            "|---|---|---|---|---|---|---|",
        ]
        lines += [_result_row(result) for result in results]
    lines += ["", "Configuration:", "", "```json", metadata["config"], "```"]
    return "\n".join(lines) + "\n"


def _count(path: Path) -> int:
    with safetensors.safe_open(path, framework="pt") as file:
        return sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118 (not a mapping)


def _cell(text: str) -> str:
    return str(text).replace("|", "\\|").replace("\n", " ")


def _result_row(result: Mapping[str, Any]) -> str:
    before = _with_infinite(result["input"])
    after = _with_infinite(result["restored"])
    gain = "-" if math.isinf(before["psnr"]) or math.isinf(after["psnr"]) else f"{after['psnr'] - before['psnr']:+.2f}"
    cells = [Path(str(result["data"])).name, result["color"], f"{result['level']:g}", result["images"]]
    cells += [_figures(before, result["task"]), _figures(after, result["task"]), gain]
    return f"| {' | '.join(map(_cell, cells))} |"


def _with_infinite(scores: Mapping[str, float | None]) -> dict[str, float]:
    """Scores of a JSON file, which has null for the infinite PSNR of equal images."""
    return {name: math.inf if value is None else value for name, value in scores.items()}


def _figures(scores: Mapping[str, float], task: str) -> str:
    text = f"{scores['psnr']:.2f} / {scores['ssim']:.4f}"
    return f"{text} / {scores['psnrb']:.2f}" if task == "jpeg" else text
