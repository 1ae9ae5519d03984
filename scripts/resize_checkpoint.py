#!/usr/bin/env python3
"""Bring a backbone's checkpoint to another image size, and report every changed shape.

    python scripts/resize_checkpoint.py vheat_tiny vheat_tiny.pth vheat_tiny_512.safetensors --img-size 512

Resized are vHeat's frequency embeddings, windows' bias tables and position embeddings. For detection and segmentation
code that zero-pads embeddings (the published conversion), use `--embeddings index`. A .safetensors file keeps what
weights of `vheatir pretrain` say of themselves: network, classes and license.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

# The checkout, where vheatir is not installed.
sys.path.append(str(Path(__file__).resolve().parent.parent))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="name such as vheat_tiny or unified_swin_small")
    parser.add_argument("source", type=Path, help="checkpoint to read: .pth, .pt or .safetensors")
    parser.add_argument("target", type=Path, help="file to write: .safetensors, or .pth with the tensors under 'model'")
    parser.add_argument("--img-size", type=int, nargs="+", required=True, help="image side, or height and width")
    parser.add_argument("--weights", choices=("model", "ema"), default="model", help="which weights of the file")
    parser.add_argument(
        "--embeddings",
        choices=("relative", "index"),
        default="relative",
        help="keep the frequency of an embedding's entries (default) or their index, zeros appended (published)",
    )
    return parser.parse_args(argv)


def arguments_of(source: Path, name: str) -> dict:
    """Arguments of the network, besides its size, that weights of `vheatir pretrain` state; {} for other files."""
    from vheatir.backbone.models.checkpoint_files import stored_model

    stored = stored_model(source)
    left_out = ("name", "img_size", "pretrained", "grad_checkpointing")
    return {key: value for key, value in stored.items() if key not in left_out} if stored.get("name") == name else {}


def metadata_at(source: Path, name: str, size: int | Sequence[int]) -> dict[str, str]:
    """What weights of `vheatir pretrain` say of themselves, with another image size; {} for other files."""
    from safetensors import safe_open

    from vheatir.backbone.models.checkpoint_files import is_safetensors, stored_model

    if not is_safetensors(source):
        return {}
    with safe_open(source, "pt") as file:
        found = dict(file.metadata() or {})
    model = stored_model(source)
    if model.get("name") == name:
        found["model"] = json.dumps({**model, "img_size": size if isinstance(size, int) else list(size)})
    else:  # which says nothing of this network
        found.pop("model", None)
    return found


def convert(args: argparse.Namespace) -> None:
    import torch
    from safetensors.torch import save

    from vheatir.backbone.models.checkpoint import fit_state, read_state, without_prefix
    from vheatir.backbone.models.create import create_model, list_models
    from vheatir.utils.files import atomic_open

    if args.model not in list_models():
        raise ValueError(f"unknown network {args.model}; known: {', '.join(list_models())}")
    if min(args.img_size) < 1:
        raise ValueError(f"--img-size must be above 0, got {args.img_size}")
    if len(args.img_size) > 2:
        raise ValueError(f"--img-size takes one side or height and width, got {args.img_size}")
    if args.target.suffix not in (".safetensors", ".pth"):
        raise ValueError(f"{args.target}: the file to write must end in .safetensors or .pth")
    if args.target.exists() and args.target.samefile(args.source):
        raise ValueError(f"{args.target}: is the checkpoint to read, which would be lost; write another file")
    state, report = read_state(args.source, args.weights)
    size = args.img_size[0] if len(args.img_size) == 1 else tuple(args.img_size)
    arguments = {**arguments_of(args.source, args.model), "img_size": size}
    with torch.device("meta"):
        model = create_model(args.model, **arguments)
    state = without_prefix(state, model.state_dict(), report, args.weights)
    head = state.get(f"{model.head_name}.weight")
    if head is not None and len(head) != model.num_classes:
        with torch.device("meta"):
            model = create_model(args.model, **{**arguments, "num_classes": len(head)})
    state, report = fit_state(state, model, args.embeddings, report)
    if not report.loaded:
        raise ValueError(f"{args.source} holds no weights of {args.model}")
    tensors = {key: value.contiguous() for key, value in state.items()}
    with atomic_open(args.target) as file:
        if args.target.suffix == ".safetensors":
            file.write(save(tensors, metadata_at(args.source, args.model, size)))
        else:
            torch.save({"model": tensors}, file)
    print(report)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    try:
        convert(args)
    except (ValueError, OSError) as error:
        print(f"resize_checkpoint: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
