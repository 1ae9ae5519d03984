"""`vheatir analyze`: what backbones cost, see, spread and bear, as figures (PNG, SVG) and JSON.

Each kind of analysis is one command; the measuring is in `vheatir.backbone.analysis`, the drawing in
`vheatir.analyze.figures`.
"""

import argparse
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vheatir.cli import run as run_command
from vheatir.errors import UserError
from vheatir.utils import run_metadata

_NEEDED = ("timm", "torchvision", "matplotlib")


def write(arguments: argparse.Namespace, name: str, content: dict[str, Any], figures: dict[str, Any]) -> None:
    """Write NAME.json and the figures into the folder, and say where they are."""
    from vheatir.analyze.figures import save
    from vheatir.analyze.networks import device_of

    written = [arguments.out / f"{name}.json"]
    metadata = {
        **run_metadata.run_metadata(["vheatir", "analyze", *arguments.argv]),
        "device": str(device_of(arguments)),
    }
    run_metadata.write_json(written[0], {"metadata": metadata, **content})
    for stem, figure in figures.items():
        written += save(figure, arguments.out / stem)
    sys.stdout.write("".join(f"{path}\n" for path in written))


def cost(arguments: argparse.Namespace) -> None:
    """Parameters and multiply-accumulates of networks, and where measured their speed and memory."""
    from vheatir.analyze.cost import measured
    from vheatir.analyze.figures import cost_figure
    from vheatir.analyze.networks import networks
    from vheatir.backbone import list_models

    if not arguments.weights and not arguments.model:
        arguments.model = list_models()
    rows = []
    for network in networks(arguments):
        rows.append(measured(network, arguments))
        sys.stdout.write(_cost_line(rows[-1]) + "\n")
    write(arguments, "cost", {"img_size": arguments.img_size, "results": rows}, {"cost": cost_figure(rows)})


def _cost_line(row: dict[str, Any]) -> str:
    text = f"{row['network']:24} {row['parameters']['total'] / 1e6:7.2f} M {row['macs']['total'] / 1e9:8.3f} GMACs"
    if "merged" in row:
        counts = row["merged"]
        text += f" (merged {counts['parameters']['trainable'] / 1e6:.2f} M, {counts['macs']['total'] / 1e9:.3f} GMACs)"
    for kind in ("inference", "training"):
        if kind in row:
            text += f", {kind} {row[kind]['images_per_s']:.2f} images/s and {row[kind]['peak_mib']:.0f} MiB"
    return text


def invariance(arguments: argparse.Namespace) -> None:
    """How networks bear shifts, rotations and scales, on a labelled set."""
    from vheatir.analyze.figures import invariance_figure
    from vheatir.analyze.images import view_batches
    from vheatir.analyze.networks import networks
    from vheatir.backbone.analysis.invariance import evaluate_views
    from vheatir.backbone.errors import as_user_error

    rows = []
    for network in networks(arguments):
        model, kinds = network.build(arguments), {}
        for kind in arguments.kinds:
            with as_user_error():
                levels, batches = view_batches(model, kind, arguments)
                kinds[kind] = {"levels": levels, **evaluate_views(model, batches)}
            consistency = kinds[kind]["consistency"]
            sys.stdout.write(
                f"{network.label:24} {kind:14} same class {consistency[0]:.1f} % at {levels[0]:g}, "
                f"{consistency[-1]:.1f} % at {levels[-1]:g}, mean {sum(consistency) / len(levels):.1f} %\n"
            )
        rows.append({"network": network.label, "weights": network.weights and str(network.weights), "kinds": kinds})
    content = {"protocol": arguments.protocol, "results": rows}
    write(arguments, "invariance", content, {"invariance": invariance_figure(rows)})


def receptive_field(arguments: argparse.Namespace) -> None:
    """Effective receptive fields at the start and, for given weights, after training."""
    from vheatir.analyze.figures import receptive_field_figure
    from vheatir.analyze.images import image_batches
    from vheatir.analyze.networks import networks
    from vheatir.backbone.analysis import receptive_field as erf
    from vheatir.backbone.errors import as_user_error

    rows, fields = [], {}
    for network in networks(arguments):
        states = {"at the start": network.build(arguments, fresh=True)}
        if network.weights is not None or network.arguments.get("pretrained"):
            states["trained"] = network.build(arguments)
        fields[network.label] = {}
        for state, model in states.items():
            stage = arguments.stage % len(model.depths)
            with as_user_error():
                field = erf.receptive_field(model, image_batches(model, arguments), stage)
            fields[network.label][state] = field.numpy()
            area = {f"{share:g}": erf.area_ratio(field, stage, share) for share in erf.SHARES}
            rows.append({"network": network.label, "state": state, "stage": stage, "area_ratio": area})
            said = ", ".join(f"{float(share):.0%} within {100 * ratio:.1f} %" for share, ratio in area.items())
            sys.stdout.write(f"{network.label:24} {state:14} {said} of the area\n")
    figure = receptive_field_figure(fields)
    write(arguments, "receptive_field", {"results": rows}, {"receptive_field": figure})


def heat(arguments: argparse.Namespace) -> None:
    """How far a point of heat spreads in each stage, and the learned decay of each channel."""
    from vheatir.analyze import figures
    from vheatir.analyze.networks import networks
    from vheatir.backbone.analysis import heat as found
    from vheatir.backbone.errors import as_user_error

    content, drawn = [], {}
    chosen = networks(arguments)
    for network in chosen:
        layers, points, decays = [], {}, []
        with as_user_error():
            everything = list(found.decays(network.build(arguments)))
        for stage, block, decay in everything:
            decay = decay.float().cpu()
            layers.append({"stage": stage, "block": block, **found.describe_layer(decay)})
            if decay.shape[0] * decay.shape[1] == 1:
                continue  # a map of one pixel has nowhere to conduct to
            order = found.mean_diffusivity(decay).argsort()
            places = [order[round(part * (len(order) - 1))].item() for part in (0, 0.25, 0.5, 0.75, 1)]
            response, blur = found.point_response(decay).numpy(), (2 * found.mean_diffusivity(decay)).sqrt()
            maps = [(f"blur {blur[one]:.2f} px", response[..., one]) for one in places]
            points[f"stage {stage}"] = [*maps, ("mean of channels", response.mean(2))]  # that of the last block stays
            decays.append((f"stage {stage}, block {block}", decay[:, 0, order].numpy()))
        end = "" if len(chosen) == 1 else f"_{network.label}"
        drawn |= {f"heat_points{end}": figures.point_figure(list(points.items()))}
        drawn |= {f"heat_decay{end}": figures.decay_figure(decays, columns=min(4, len(decays)))}
        content.append({"network": network.label, "layers": layers})
    write(arguments, "heat", {"results": content}, drawn)


_ANALYSES: dict[str, Callable[[argparse.Namespace], None]] = {
    "cost": cost,
    "heat": heat,
    "invariance": invariance,
    "receptive-field": receptive_field,
}


def _parser() -> argparse.ArgumentParser:
    from vheatir.backbone.analysis.invariance import KINDS, PROTOCOLS

    parser = argparse.ArgumentParser("vheatir analyze", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="analysis", required=True, metavar="ANALYSIS")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--model", nargs="+", default=[], metavar="NAME", help="backbones, with fresh weights")
    common.add_argument("--weights", nargs="+", type=Path, default=[], metavar="FILE", help="trained weights")
    common.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="argument of the networks")
    common.add_argument("-o", "--out", type=Path, default=Path("analysis"), help="folder to write to")
    common.add_argument("--device", help="cpu or cuda; default: CUDA where there is one")
    common.add_argument("--seed", type=int, default=0, help="of fresh weights and drawn directions")
    parsers = {
        name: commands.add_parser(name, parents=[common], help=act.__doc__, description=act.__doc__)
        for name, act in _ANALYSES.items()
    }
    one = parsers["cost"]
    one.add_argument("--img-size", type=int, default=224)
    one.add_argument("--batch", type=int, default=8, help="images of a measured pass")
    one.add_argument("--rounds", type=int, default=5, help="measured passes; 0 to count only")
    one = parsers["invariance"]
    one.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    one.add_argument("--protocol", choices=PROTOCOLS, default=PROTOCOLS[0], help="default: exact")
    one.add_argument("--data", required=True, help="folder of the data set")
    one.add_argument("--reader", default="folder", help="folder, list, zip, tar, or a reader of timm")
    one.add_argument("--split", default="val")
    one.add_argument("--limit", type=int, help="images, spread over the set; default: all")
    one = parsers["receptive-field"]
    one.add_argument("--images", type=Path, help="folder of pictures; default: normal noise")
    one.add_argument("--limit", type=int, default=50, help="images")
    one.add_argument("--stage", type=int, default=-1, help="stage whose centre is looked at; default: the last")
    for name in ("invariance", "receptive-field"):
        parsers[name].add_argument("--batch", type=int, default=8, help="images of a pass")
        parsers[name].add_argument("--workers", type=int, default=0, help="processes that read images")
    return parser


def main(argv: list[str]) -> int:
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"vheatir analyze needs {', '.join(missing)}; run: pip install -e '.[backbone]'")
    arguments = _parser().parse_args(argv)
    arguments.argv = argv
    run_metadata.prepare_output(arguments.out / "x.json")
    _ANALYSES[arguments.analysis](arguments)
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(main))
