"""`vheatir export`: networks as ONNX, as a torch.export program, as a folder for the Hub, or for BasicSR."""

import argparse
import pickle
import sys
from pathlib import Path

import torch

from vheatir.errors import UserError
from vheatir.export.api import export
from vheatir.export.save import FORMATS
from vheatir.train import publish
from vheatir.utils.recipes import key_values
from vheatir.weights import METADATA


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


def _named_after(weights: str, kind: str) -> Path:
    """The file that `--to` writes.

    Raises:
        UserError: it would replace a checkpoint that nobody named, such as the one that the weights were made of.
    """
    source = Path(weights)
    suffixed = source.suffix in (*publish.CONVERTED, ".pt")
    output = source.with_suffix(f".{kind}") if suffixed else source.with_name(f"{source.name}.{kind}")
    if kind == "pth" and output != source and output.is_file() and not _was_exported(output):
        raise UserError(
            f"{output}: exists and was not written by `vheatir export`; a checkpoint of a training holds more than "
            "these weights. Name another file by -o, or remove it"
        )
    return output


def _was_exported(path: Path) -> bool:
    """Whether a .pth file holds what our weights say of themselves."""
    try:
        content = torch.load(path, map_location="meta", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError):
        return False
    return isinstance(content, dict) and METADATA in content


def main(argv: list[str]) -> int:
    """Entry of `vheatir export`."""
    options = _parser().parse_args(argv)
    output = options.output if options.to is None else _named_after(options.weights, options.to)
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
