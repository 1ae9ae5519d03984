"""The work of `vheatir export`: a network as ONNX, as a torch.export program, as a folder, or converted for BasicSR."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from vheatir import weights as files
from vheatir.backbone.models.checkpoint_files import stored_model
from vheatir.errors import UserError
from vheatir.export.graph import is_backbone
from vheatir.export.save import FORMATS, Runner, export_network, seconds
from vheatir.train import publish
from vheatir.utils.files import at_home, atomic_open
from vheatir.utils.run_metadata import prepare_folder


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
    terms = card.parent == files.FOLDER and license_file.is_file() and license_file.name in metadata["license"]
    front = "library_name: vheatir\n" + (f"license: other\nlicense_link: {license_file.name}\n" if terms else "")
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
    path = at_home(weights)
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
