"""`vheatir info`: what is installed, what the machine offers, and which operator path would run and why."""

import argparse
import json
import os
import sys
from typing import Any

import torch

import vheatir.restore.precision as precisions
from vheatir import compat, weights
from vheatir.errors import UserError
from vheatir.kernels import dispatch
from vheatir.kernels.cpu import library as native
from vheatir.kernels.cuda import build as cuda_build
from vheatir.kernels.cuda import driver as cuda_driver
from vheatir.utils.run_metadata import machine, versions

# (H, W) of the feature maps the paths are shown for: a small one, a training crop, a photograph, and awkward sides
_SIDES = ((56, 56), (128, 128), (321, 481), (512, 512), (1080, 1920), (1, 4096))


def operator_paths(device: str) -> list[dict[str, Any]]:
    """Which path `heat_conduction` would take on `device` for maps of several sizes, and why."""
    chosen = [(height, width, dispatch.choose(height, width, torch.device(device))) for height, width in _SIDES]
    return [
        {"height": height, "width": width, "path": path.name, "reason": path.reason} for height, width, path in chosen
    ]


def cpu_kernel() -> dict[str, Any]:
    """Whether the native CPU kernel runs here, with which instructions, from which file; or why not."""
    reason = native.refusal()
    if reason is not None:
        return {"available": False, "reason": reason}
    library = native.library()
    return {"available": True, "instructions": library.instructions, "library": str(library.path)}


def cuda_kernels() -> dict[str, Any]:
    """Whether the CUDA kernels run on the first device, from which file, whether they are the default; or why not."""
    device = torch.device("cuda", 0)
    reason = cuda_driver.refusal(device)
    if reason is not None:
        return {"available": False, "reason": reason}
    loaded = cuda_driver.device(device)
    default = os.environ.get(cuda_build.SWITCH) == "1"
    return {"available": True, "library": str(loaded.path), "capability": loaded.capability, "default": default}


def collect() -> dict[str, Any]:
    """Everything that `vheatir info` shows, as plain values."""
    about = machine()
    devices = ["cpu", *(["cuda"] if about["cuda_devices"] else [])]
    return {
        "versions": versions(),
        "machine": about,
        "cpu_kernel": cpu_kernel(),
        "cuda_kernels": cuda_kernels(),
        "precision": precision(),
        "paths": {device: operator_paths(device) for device in devices},
        "training": _training(),
    }


def precision() -> dict[str, Any]:
    """Instructions of the processor for bfloat16, and what the precision "auto" means for each shipped weights."""
    device = torch.device("cpu")
    chosen = {name: precisions.choose("auto", device, weights.find(name)) for name in weights.available()}
    return {
        "instructions": precisions.instructions(device),
        "auto": {name: {"precision": choice.name, "reason": choice.reason} for name, choice in chosen.items()},
    }


def _training() -> str:
    """Whether BasicSR can be imported here, or what to do."""
    try:
        compat.require_basicsr()
    except UserError as error:
        return f"not available: {error}"
    return "available"


def _text(info: dict[str, Any]) -> str:
    about = info["machine"]
    lines = [f"{name:<14} {version or '-'}" for name, version in info["versions"].items()]
    lines += [
        "",
        f"{'system':<14} {about['system']}",
        f"{'processor':<14} {about['cpu']}, {about['cpu_capability']}, {about['cores']} cores, "
        f"{about['threads']} threads in torch",
        f"{'CUDA':<14} {'built for ' + about['cuda_build'] if about['cuda_build'] else 'not in this build of torch'}"
        f", {len(about['cuda_devices'])} devices",
    ]
    lines += [
        f"{'':<14} {one['name']}, compute capability {one['capability']}, {one['memory_gib']} GiB"
        for one in about["cuda_devices"]
    ]
    kernel = info["cpu_kernel"]
    state = f"{kernel['instructions']}, {kernel['library']}" if kernel["available"] else kernel["reason"]
    lines += [f"{'CPU kernel':<14} {state}"]
    kernels = info["cuda_kernels"]
    use = "the default" if kernels.get("default") else "with backend='cuda', or by default with VHEATIR_CUDA=1"
    state = f"{kernels['library']}, {use}" if kernels["available"] else kernels["reason"]
    lines += [f"{'CUDA kernels':<14} {state}"]
    lines += [f"{'bfloat16':<14} {info['precision']['instructions'] or 'no instructions for it'}"]
    lines += [f"{'training':<14} {info['training']}"]
    lines += ["", "--precision auto on this processor, by weights:"]
    lines += [f"{name:<22} {one['precision']:<8} {one['reason']}" for name, one in info["precision"]["auto"].items()]
    for device, rows in info["paths"].items():
        lines += ["", f"heat_conduction on {device}, by height x width of the map:"]
        lines += [f"{row['height']:>5} x {row['width']:<6} {row['path']:<12} {row['reason']}" for row in rows]
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    """Entry of `vheatir info`."""
    parser = argparse.ArgumentParser("vheatir info", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    options = parser.parse_args(argv)
    info = collect()
    sys.stdout.write((json.dumps(info, indent=2) if options.json else _text(info)) + "\n")
    return 0
