"""ONNX files and torch.export programs: written, run and compared with PyTorch before they appear."""

import io
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vheatir.backbone.layers.freezing import freeze
from vheatir.errors import UserError
from vheatir.export.graph import example_inputs, is_backbone, trace
from vheatir.train import publish
from vheatir.utils.files import TEMPORARY_PREFIX, writing
from vheatir.utils.run_metadata import prepare_output

FORMATS = {".onnx": "ONNX", ".pt2": "torch.export program"}
CHECKED = ((1, 37, 53), (2, 64, 48), (1, 120, 96))  # batch, height, width
BATCHES = (1, 2, 5)  # in which a backbone is compared, at its own image size
TOLERANCE = 1e-4  # largest difference from PyTorch in images of [0, 1], or in scores over the largest of them

Runner = Callable[[list[Tensor]], Tensor]


def save_program(network: nn.Module, path: Path) -> Runner:
    """Write `torch.export.load`'s format; returns how to run the written file."""
    held = io.BytesIO()  # where the disk is full, torch's own writer ends the process
    torch.export.save(trace(network), held)
    path.write_bytes(held.getbuffer())
    module = torch.export.load(path).module()
    return lambda inputs: module(*inputs)


def save_onnx(network: nn.Module, path: Path, metadata: Mapping[str, str]) -> Runner:
    """Write an ONNX file with `metadata` in its properties; returns how onnxruntime runs the written file.

    Args:
        network: in eval mode.
        path: of the file.
        metadata: text by key.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 (torch.onnx needs it and says so in the middle of the work)
    except ImportError as error:
        raise UserError(f"exporting to ONNX needs {error.name}; run `pip install 'vheatir[export]'`") from None
    program: Any = torch.onnx.export(
        trace(network),
        (),
        dynamo=True,
        optimize=True,
        verbose=False,
        output_names=["scores" if is_backbone(network) else "restored"],
    )
    program.model.metadata_props.update(metadata)
    program.save(path)
    session = onnxruntime.InferenceSession(path, _one_thread(onnxruntime), providers=["CPUExecutionProvider"])
    names = [item.name for item in session.get_inputs()]

    def run(inputs: list[Tensor]) -> Tensor:
        values = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
        try:
            return torch.from_numpy(session.run(None, values)[0])
        except Exception as error:  # onnxruntime's errors have no other base in common
            raise RuntimeError(str(error)) from error

    return run


def _one_thread(onnxruntime):
    """As many threads as PyTorch has, so that speeds compare."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return options


def export_network(network: nn.Module, path: Path, metadata: Mapping[str, str]) -> tuple[dict[str, float], Runner]:
    """Write a file that appears only after its results were compared with the network's.

    Args:
        network: in eval mode.
        path: file to write, .onnx or .pt2.
        metadata: text that goes into an ONNX file.

    Returns:
        The largest difference from PyTorch in images of [0, 1] for each size of `CHECKED`, and how to run the file.

    Raises:
        UserError: unknown suffix, a missing library, a place that cannot be written, or results that differ by more
            than `TOLERANCE`.
    """
    if path.suffix not in FORMATS:
        raise UserError(
            f"{path}: expected a name in {', '.join([*FORMATS, *publish.CONVERTED])}, or --hub for a folder"
        )
    prepare_output(path)
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{os.getpid()}{path.suffix}")
    with writing(path), _removed(temporary):
        if path.suffix == ".onnx":
            run = save_onnx(network, temporary, metadata)
        else:
            run = save_program(network, temporary)
        found = differences(run, network)
        worst = max(found.values(), key=lambda one: math.inf if math.isnan(one) else one)
        if not worst <= TOLERANCE:
            raise UserError(f"{path}: its results differ from PyTorch's by {worst:.1e}, nothing was written")
        os.replace(temporary, path)
    return found, run


@contextmanager
def _removed(temporary: Path) -> Iterator[None]:
    try:
        yield
    finally:
        temporary.unlink(missing_ok=True)


def differences(run: Runner, network: Any) -> dict[str, float]:
    """Largest difference of `run` from the network for each size of `CHECKED`."""
    found = {}
    sizes = [(batch, *network.img_size) for batch in BATCHES] if is_backbone(network) else CHECKED
    for batch, height, width in sizes:
        inputs = example_inputs(network, batch, height, width)
        with torch.no_grad():
            want = network(*inputs)
            difference = (run(inputs) - want).abs().max().item()
        if is_backbone(network):
            difference /= max(want.abs().max().item(), 1e-6)
        found[f"{batch}x{height}x{width}"] = difference
    return found


def seconds(run: Runner, network: nn.Module, side: int, rounds: int = 5) -> tuple[float, float]:
    """Median seconds for one square image, interleaved, on as many threads.

    Args:
        run: the exported file.
        network: that it was made of.
        side: of the image in pixels.
        rounds: timed calls of each.

    Returns:
        Seconds of `run` and of the network.
    """
    inputs = example_inputs(freeze(network), 1, side, side)
    taken: tuple[list[float], list[float]] = ([], [])
    with torch.inference_mode():
        for number in range(rounds + 1):
            for times, call in zip(taken, (run, lambda given: network(*given))):
                begun = time.perf_counter()
                call(inputs)
                if number:  # the first round prepares tables and memory
                    times.append(time.perf_counter() - begun)
    return statistics.median(taken[0]), statistics.median(taken[1])
