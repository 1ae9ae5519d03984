"""`vheatir export`: networks as ONNX, as a torch.export program, as a folder for the Hugging Face Hub, or for BasicSR.

ONNX files and programs need no vheatir where they run: the heat operator stands in them as products with cosine
matrices, which are made from the map's size while they run, so height, width and batch stay free.
"""

import argparse
import io
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vheatir import weights as files
from vheatir.backbone.layers.freezing import freeze
from vheatir.backbone.models.checkpoint_files import stored_model
from vheatir.errors import UserError
from vheatir.kernels.diffusion.boundaries import INSULATED, PERIODIC, ZERO
from vheatir.kernels.dispatch import compute_dtype
from vheatir.train import publish
from vheatir.utils.files import TEMPORARY_PREFIX, atomic_open, writing
from vheatir.utils.lazy import callable_package
from vheatir.utils.recipes import key_values
from vheatir.utils.run_metadata import prepare_folder, prepare_output

FORMATS = {".onnx": "ONNX", ".pt2": "torch.export program"}
CHECKED = ((1, 37, 53), (2, 64, 48), (1, 120, 96))  # batch, height, width
BATCHES = (1, 2, 5)  # in which a backbone is compared, at its own image size
TOLERANCE = 1e-4  # largest difference from PyTorch in images of [0, 1], or in scores over the largest of them
_TRACED = (2, 72, 88)  # any batch and sides that are unlike each other

Runner = Callable[[list[Tensor]], Tensor]


def _basis(n: int, boundary: str, like: Tensor) -> tuple[Tensor, Tensor]:
    """The orthonormal basis (n, n) of a boundary condition, a function to a row, and w^2 of each, (n, 1).

    In operations that every format has, whatever n turns out to be.
    """
    index = torch.arange(n, device=like.device)
    place = index.double()
    step = math.pi / (place[-1] + 1)
    if boundary == PERIODIC:
        order = 2.0 * torch.div(index + 1, 2, rounding_mode="floor").double()
        cosine = (index % 2 == 1) | (index == 0)
    else:
        order = place + 1 if boundary == ZERO else place
        cosine = torch.full_like(index, boundary == INSULATED, dtype=torch.bool)
        place = place + 0.5
    # onnxruntime long had no cosine of float64, but the sine
    table = torch.sin(order[:, None] * place[None] * step + (math.pi / 2) * cosine[:, None].double())
    table = table / table.norm(dim=1, keepdim=True)
    return table.to(like.dtype), (order * step).square()[:, None].to(like.dtype)


def _conduct(x: Tensor, decay: Tensor, backend: str) -> Tensor:
    """What `vheatir::conduct` becomes."""
    return _conduct_with_spectrum(x, decay, backend)[0]


def _conduct_with_spectrum(x: Tensor, decay: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    """What `vheatir::conduct_with_spectrum` becomes, of a network whose decay needs a gradient."""
    wide = x.to(compute_dtype(x.dtype))
    rows = _basis(x.shape[1], INSULATED, wide)[0]
    columns = _basis(x.shape[2], INSULATED, wide)[0]
    spectrum = torch.einsum("nh,bhwc,mw->bnmc", rows, wide, columns)
    y = torch.einsum("nh,bnmc,mw->bhwc", rows, spectrum * decay.to(wide.dtype), columns)
    return y.to(x.dtype), spectrum


def _diffuse(x: Tensor, k: Tensor, boundary: str, backend: str) -> Tensor:
    """What `vheatir::diffuse` becomes; k is (D, 1, C) or (D, B, C)."""
    y = x.to(k.dtype)
    for axis in range(x.ndim - 2):
        basis, squares = _basis(x.shape[axis + 1], boundary, y)
        lines = y.movedim(axis + 1, -2)  # (B, ..., N, C)
        decay = torch.exp(-squares * k[axis][:, None])
        for _ in range(x.ndim - 3):
            decay = decay[:, None]
        y = (basis.T @ (decay * (basis @ lines))).movedim(-2, axis + 1)
    return y.to(x.dtype)


def _pixel_unshuffle(image: Tensor, factor: int) -> Tensor:
    """What `pixel_unshuffle` becomes: translators for ONNX took its channels in another order."""
    batch, channels, height, width = image.shape
    rows = height // factor
    columns = width // factor
    parts = image.reshape(batch, channels, rows, factor, columns, factor).permute(0, 1, 3, 5, 2, 4)
    return parts.reshape(batch, channels * factor * factor, rows, columns)


def decompositions() -> dict[Any, Callable]:
    """What our operators become in operations of PyTorch alone, for `ExportedProgram.run_decompositions`.

    For a network of your own that calls `heat_conduction` with a decay that is not prepared, `diffuse` or a heat layer:
    the program then needs no vheatir where it runs, and `torch.onnx.export` takes it. The products are with matrices
    that are made from the size of the maps while it runs.
    """
    own = torch.ops.vheatir
    return {
        own.conduct.default: _conduct,
        own.conduct_with_spectrum.default: _conduct_with_spectrum,
        own.diffuse.default: _diffuse,
        torch.ops.aten.pixel_unshuffle.default: _pixel_unshuffle,
    }


def is_backbone(network: nn.Module) -> bool:
    """Whether a network gives scores of classes, for images of one size, in place of restored images."""
    return hasattr(network, "forward_features")


def _inputs(network: Any, batch: int, height: int, width: int) -> list[Tensor]:
    if is_backbone(network):
        generator = torch.Generator().manual_seed(batch)
        return [torch.randn(batch, network.in_chans, *network.img_size, generator=generator)]
    generator = torch.Generator().manual_seed(height)
    image = torch.rand(batch, network.config["in_chans"], height, width, generator=generator)
    return [image, torch.rand(batch, generator=generator)] if network.level_map else [image]


def trace(network: nn.Module) -> torch.export.ExportedProgram:
    """The network as operations of PyTorch alone, for any batch and sides whose coarsest maps exceed one pixel.

    Inputs: `image` (B, in_chans, H, W) in float32, and `level` (B,) where the network takes one; of a backbone `x`
    (B, in_chans, H, W), normalized, of the network's `img_size`. The network is moved to the CPU and to eval mode.
    """
    network = network.cpu().float().eval().requires_grad_(False)
    batch = torch.export.Dim("batch", min=1)
    side = torch.export.Dim.DYNAMIC
    if is_backbone(network):
        shapes = {"x": {0: batch}}
    else:
        shapes = {"image": {0: batch, 2: side, 3: side}} | ({"level": {0: batch}} if network.level_map else {})
    with torch.no_grad():
        program = torch.export.export(network, tuple(_inputs(network, *_TRACED)), dynamic_shapes=shapes)
        return program.run_decompositions(decompositions())


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
        worst = max(found.values())
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
        inputs = _inputs(network, batch, height, width)
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
    inputs = _inputs(freeze(network), 1, side, side)
    taken: tuple[list[float], list[float]] = ([], [])
    with torch.inference_mode():
        for number in range(rounds + 1):
            for times, call in zip(taken, (run, lambda given: network(*given))):
                begun = time.perf_counter()
                call(inputs)
                if number:  # the first round prepares tables and memory
                    times.append(time.perf_counter() - begun)
    return statistics.median(taken[0]), statistics.median(taken[1])


def save_hub(name_or_path: str | Path, folder: Path) -> None:
    """A folder for `from_pretrained` of `vheatir.hub` and for uploading: config.json, model.safetensors, README.md."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: expected an empty or new folder")
    state, metadata = files.read(name_or_path)
    prepare_folder(folder)
    kept = {key: value for key, value in metadata.items() if key not in ("config", "vheatir_format")}
    config = json.loads(metadata["config"])
    files.save(folder / "model.safetensors", state, metadata)
    with atomic_open(folder / "config.json") as file:
        file.write((json.dumps(config | {"vheatir": kept}, indent=2) + "\n").encode())
    card = files.find(name_or_path).with_suffix(".md")
    if not card.is_file():
        return
    license_file = files.FOLDER / "LICENSE-WEIGHTS"
    terms = card.parent == files.FOLDER and license_file.is_file()
    front = "library_name: vheatir\n" + ("license: other\nlicense_link: LICENSE-WEIGHTS\n" if terms else "")
    with atomic_open(folder / "README.md") as file:
        file.write(f"---\n{front}---\n\n".encode() + card.read_bytes())
    if terms:
        with atomic_open(folder / license_file.name) as file:
            file.write(license_file.read_bytes())


def export(
    weights: str | Path,
    output: str | Path | None = None,
    *,
    hub: str | Path | None = None,
    task: str | None = None,
    opt: str | Path | None = None,
    time_side: int | None = None,
    model: str | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write a network as ONNX, as a torch.export program, as a folder for the Hugging Face Hub, or for BasicSR.

    Batch, height and width are dynamic. Input: image (B, channels, H, W), float32, RGB or gray in [0, 1]; level (B,),
    sigma / 255 or quality / 100, for networks that take one. Output: restored, like image, not clipped. Of a backbone
    the batch alone stays free. Input: x (B, channels, H, W) of its image size, float32, normalized. Output: scores.

    Args:
        weights: shipped name or safetensors file, weights of `vheatir pretrain`, or a .pth file of BasicSR.
        output: file to write: .onnx or .pt2; .safetensors from a .pth file, or the other way round. Give this or `hub`.
        hub: empty or new folder to write: config.json, model.safetensors and the card.
        task: denoise, jpeg, photo or paired, for a .safetensors file; by default what the options say.
        opt: options of the training of a .pth file; by default those that BasicSR left in the run's folder.
        time_side: then time a square image of that side in pixels, both ways; of a backbone an image of its own size.
        model: the backbone that other files' weights belong to.
        arguments: of the backbone, in place of those in the file.

    Returns:
        {"differences": the largest difference from PyTorch for each checked size, "seconds": {"exported", "pytorch"},
        "timed": the size of the timed image, "converted": a line that says what was done}; None where there is nothing
        to say: differences of files that hold the same weights, seconds without `time_side`.

    Raises:
        UserError: unknown suffix, a folder that is not empty, a missing library, or results that differ.
    """
    if (output is None) == (hub is None):
        raise UserError("give either a file (.onnx, .pt2, .safetensors, .pth) or a folder for the Hub")
    found: dict[str, Any] = {"differences": None, "seconds": None, "timed": None, "converted": None}
    if output is not None and Path(output).suffix in publish.CONVERTED:
        _refuse(time_side, model, arguments, f"{output}: holds the same weights in another form")
        return found | {"converted": publish.convert(weights, Path(output), task, opt)}
    _check_unconverted(task, opt, time_side)
    chosen = _backbone(weights, model, arguments or {})
    if arguments and chosen is None:
        raise UserError(f"{', '.join(arguments)}: arguments belong to backbones; name one with --model NAME")
    if hub is not None:
        if chosen is not None:
            raise UserError("--hub is for restoration networks; save a backbone with timm's save_for_hf")
        _refuse(time_side, None, None, f"{hub}: holds the same weights in another form")
        save_hub(weights, Path(hub))
        return found
    network: Any
    network, metadata = files.load(weights) if chosen is None else chosen
    assert output is not None  # or `hub` would have been given
    largest, run = export_network(network, Path(output), metadata)
    if time_side:
        height, width = network.img_size if is_backbone(network) else (time_side, time_side)
        found["timed"] = f"{height}x{width}"
        found["seconds"] = _timed(run, network, time_side, Path(output))
    return found | {"differences": largest}


def _timed(run: Runner, network: nn.Module, side: int, output: Path) -> dict[str, float]:
    try:
        exported, pytorch = seconds(run, network, side)
    except (AssertionError, RuntimeError) as error:  # a program's own check of its input, or no memory
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{output}: is written, but does not run for --time {side}: {reason}") from error
    return {"exported": exported, "pytorch": pytorch}


def _refuse(time_side: int | None, model: str | None, arguments: Mapping[str, Any] | None, why: str) -> None:
    """UserError for what only files that compute take."""
    given = {"--time": time_side, "--model": model, "--set": arguments or None}
    names = ", ".join(name for name, value in given.items() if value is not None)
    if names:
        raise UserError(f"{why}; {names}: only for {' and '.join(FORMATS)} files")


def _check_unconverted(task: str | None, opt: str | Path | None, time_side: int | None) -> None:
    """UserError for arguments that do not serve where a network is written."""
    if task is not None or opt is not None:
        raise UserError("a task and options are for converting a .pth file to .safetensors")
    if time_side is not None and time_side < 1:
        raise UserError(f"--time: expected a side of at least 1 pixel, got {time_side}")


def _backbone(
    weights: str | Path, model: str | None, arguments: Mapping[str, Any]
) -> tuple[nn.Module, dict[str, str]] | None:
    """The backbone that is named, and what its file will say of it; None where it is a restoration network.

    Raises:
        UserError: an unknown name or argument, or weights that do not fit.
    """
    path = Path(weights)
    if model is None:
        if not path.is_file() or path.suffix not in (".safetensors", ".pth", ".pt"):
            return None
        try:
            stored = stored_model(path)
        except ValueError as error:
            raise UserError(str(error)) from error
        if "backbone" in stored:
            raise UserError(f"{path}: weights of a detector or segmenter; backbones of classifiers can be exported")
        if "name" not in stored:
            return None
    from vheatir.analyze.networks import choose  # needs the extra `backbone`

    chosen = choose([] if model is None else [model], [path], arguments, "cpu")
    (network,) = chosen.networks
    built = chosen.build(network)
    config: Any = built.pretrained_cfg
    described = {**network.arguments, "img_size": list(built.img_size), "num_classes": built.num_classes}
    statistics = {key: json.dumps(list(config[key])) for key in ("mean", "std")}
    return built, {"task": "classification", "model": json.dumps(described), **statistics}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "vheatir export",
        description="Write a network as ONNX (.onnx), as a torch.export program (.pt2) or as a folder for the Hub, or "
        "convert BasicSR's .pth files to weights for `vheatir restore` (.safetensors), and back.",
        epilog="Batch, height and width are dynamic. Input: image (B, channels, H, W), float32, RGB or gray in [0, 1]; "
        "level (B,), sigma / 255 or quality / 100, for networks that take one. Output: restored, like image, not "
        "clipped. Of a backbone only the batch is dynamic; input: x (B, channels, H, W), float32, normalized; output: "
        "scores (B, classes). Exit status: 0 written and equal to PyTorch's results, 2 refused.",
    )
    parser.add_argument(
        "weights", metavar="NAME|PATH", help="a shipped name, a safetensors or .pth file, or weights of pretrain"
    )
    parser.add_argument("--model", metavar="NAME", help="the backbone that other files' weights belong to")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="argument of the backbone, as img_size=256"
    )
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="file to write: .onnx, .pt2, .safetensors or .pth"
    )
    target.add_argument(
        "--to", choices=("safetensors", "pth", "onnx", "pt2"), help="the same, under the name of the weights"
    )
    target.add_argument("--hub", type=Path, metavar="DIR", help="folder to write: config.json and model.safetensors")
    parser.add_argument(
        "--task", choices=sorted(set(publish.TASKS.values())), help="what a .pth file is for, if no options say it"
    )
    parser.add_argument("--opt", "-opt", metavar="FILE", help="options of the training of a .pth file, or a recipe")
    parser.add_argument("--time", type=int, metavar="SIDE", help="then time a square image of that side, both ways")
    return parser


def main(argv: list[str]) -> int:
    """Entry of `vheatir export`."""
    options = _parser().parse_args(argv)
    output = options.output
    if options.to is not None:
        source = Path(options.weights)
        suffixed = source.suffix in (*publish.CONVERTED, ".pt")
        output = source.with_suffix(f".{options.to}") if suffixed else source.with_name(f"{source.name}.{options.to}")
    found = export(
        options.weights,
        output,
        hub=options.hub,
        task=options.task,
        opt=options.opt,
        time_side=options.time,
        model=options.model,
        arguments=key_values(options.set),
    )
    if options.hub is not None:
        sys.stdout.write(f"{options.hub}: written\n")
        return 0
    if found["converted"] is not None:
        sys.stdout.write(f"{found['converted']}\n")
        return 0
    sizes = ", ".join(f"{difference:.1e} at {size}" for size, difference in found["differences"].items())
    sys.stdout.write(f"{output}: {FORMATS[output.suffix]}, differs from PyTorch by {sizes}\n")
    if found["seconds"]:
        threads = torch.get_num_threads()
        ours = found["seconds"]["exported"]
        theirs = found["seconds"]["pytorch"]
        sys.stdout.write(f"{found['timed']} pixels on {threads} threads: {ours:.3f} s, PyTorch {theirs:.3f} s\n")
    return 0


callable_package(__name__)
