"""`vheatir analyze`: what backbones cost, see, conduct and are robust to, as figures (PNG, SVG) and JSON."""

import argparse
import sys
from pathlib import Path

from vheatir.analyze.api import ANALYSES, analyze, require_packages
from vheatir.utils.recipes import key_values
from vheatir.utils.run_metadata import prepare_folder


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, got {text}")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    from vheatir.backbone.analysis.invariance import KINDS, PROTOCOLS

    parser = argparse.ArgumentParser("vheatir analyze", description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(dest="analysis", required=True, metavar="ANALYSIS")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--model", nargs="+", default=[], metavar="NAME", help="backbones, with random weights")
    common.add_argument("--weights", nargs="+", type=Path, default=[], metavar="FILE", help="trained weights")
    common.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="argument of the networks")
    common.add_argument("-o", "--out", type=Path, default=Path("analysis"), help="folder to write to")
    common.add_argument("--device", help="cpu or cuda; default: CUDA where there is one")
    common.add_argument("--seed", type=int, default=0, help="of random weights and directions")
    parsers = {
        name: commands.add_parser(name, parents=[common], help=about, description=about)
        for name, (_, _, about) in ANALYSES.items()
    }
    one = parsers["cost"]
    one.add_argument("--img-size", type=_positive, default=224, help="of networks that state none; default: 224")
    one.add_argument("--batch", type=_positive, default=8, help="images of a measured pass")
    one.add_argument("--rounds", type=int, default=5, help="measured passes; 0 to count only")
    one = parsers["invariance"]
    one.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    one.add_argument("--protocol", choices=PROTOCOLS, default=PROTOCOLS[0], help="default: exact")
    one.add_argument("--data", required=True, help="folder of the data set")
    one.add_argument("--reader", default="folder", help="folder, list, zip, tar, torch/NAME or hfds/NAME")
    one.add_argument("--split", default="val")
    one.add_argument("--class-map", metavar="FILE", help="names of the classes in the order of the weights' numbers")
    one.add_argument("--limit", type=_positive, help="images, spread over the set; default: all")
    one = parsers["receptive-field"]
    one.add_argument("--images", type=Path, help="folder of images; default: normal noise")
    one.add_argument("--limit", type=_positive, default=50, help="images")
    one.add_argument("--stage", type=int, default=-1, help="stage whose center is looked at; default: the last")
    for name in ("invariance", "receptive-field"):
        parsers[name].add_argument("--batch", type=_positive, default=8, help="images of a pass")
        parsers[name].add_argument("--workers", type=int, default=0, help="processes that read images")
    return parser


def main(argv: list[str]) -> int:
    """Entry of `vheatir analyze`."""
    require_packages()
    options = vars(_parser().parse_args(argv))
    out = options.pop("out")
    options["arguments"] = key_values(options.pop("set"))
    prepare_folder(out)
    found = analyze(**options, say=lambda text: sys.stdout.write(f"{text}\n"))
    sys.stdout.writelines(f"{path}\n" for path in found.save(out, ["vheatir", "analyze", *argv]))
    return 0
