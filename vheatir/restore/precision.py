"""In which numbers a network computes: float32, or products in bfloat16 where that is fast and changes nothing seen.

With bfloat16 the operands of the products are rounded to it; sums, the residual stream and the image stay in float32.
"""

import json
from pathlib import Path
from typing import NamedTuple

import torch

from vheatir import weights as store
from vheatir.errors import UserError
from vheatir.restore.defaults import PRECISIONS
from vheatir.utils.files import sha256

MOST_CHANGE_DB = 0.01  # of the PSNR on any set, for a choice that nobody asked for
LEAST_SPEEDUP = 1.1  # likewise
_RECORDS = "bf16.json"  # beside the shipped weights; written by benchmarks/precision.py


class Choice(NamedTuple):
    """What runs, and why."""

    bf16: bool
    reason: str

    @property
    def name(self) -> str:
        return "bf16" if self.bf16 else "float32"


def instructions(device: torch.device) -> str | None:
    """The processor's instructions for products of bfloat16: "AMX-BF16", "AVX512-BF16" or None; None for GPUs."""
    if device.type != "cpu":
        return None
    if hasattr(torch.cpu, "get_capabilities"):
        found = torch.cpu.get_capabilities()
        amx = found.get("amx_bf16", False)
        avx512 = found.get("avx512_bf16", False)
    else:  # PyTorch before 2.10; every processor with AMX's tiles multiplies bfloat16 in them
        amx = torch.cpu._is_amx_tile_supported()
        avx512 = torch.cpu._is_avx512_bf16_supported()
    if amx:
        return "AMX-BF16"
    return "AVX512-BF16" if avx512 else None


def records() -> dict[str, dict]:
    """What was measured of shipped weights with bfloat16, by the SHA-256 of their files.

    Each holds `name`, `change_db` (the largest change of the PSNR on any set) and `speedup` by instructions.
    """
    path = store.FOLDER / _RECORDS
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def choose(precision: str, device: torch.device, weights: Path) -> Choice:
    """What a precision means for a device and a file of weights.

    Args:
        precision: "float32", "bf16" or "auto". The last takes bf16 on a processor with instructions for it, for weights
            of which was measured that their PSNR changes by less than `MOST_CHANGE_DB` on every set, and that they are
            faster with these instructions.
        device: where the network computes.
        weights: their file.

    Raises:
        UserError: no such precision.
    """
    if precision not in PRECISIONS:
        raise UserError(f"unknown precision {precision!r}; known: {', '.join(PRECISIONS)}")
    if precision != "auto":
        return Choice(precision == "bf16", "asked for")
    able = instructions(device)
    if able is None:
        return Choice(False, "no instructions for bfloat16" if device.type == "cpu" else "not measured on a GPU")
    record = records().get(sha256(weights)) if weights.parent == store.FOLDER else None
    if record is None:
        return Choice(False, "the change by bfloat16 was not measured for these weights")
    if record["change_db"] >= MOST_CHANGE_DB:
        return Choice(False, f"bfloat16 changes the PSNR by up to {record['change_db']:.3f} dB")
    speedup = record["speedup"].get(able)
    if speedup is None or speedup < LEAST_SPEEDUP:
        return Choice(False, f"not known to be faster with {able}" if speedup is None else f"not faster with {able}")
    return Choice(True, f"{able}, PSNR changed by at most {record['change_db']:.3f} dB, {speedup:.1f} times as fast")
