"""`vheatir train`: training from a YAML file in BasicSR's layout, and the comparison at equal time."""

import argparse
import os
from pathlib import Path

from vheatir.backbone.training.processes import add_arguments, started
from vheatir.train.equal_time import RESULT, compare
from vheatir.train.options import meeting_port
from vheatir.train.trainer import train


def _parser() -> argparse.ArgumentParser:
    about = (
        "Train a restoration network from a YAML file. `--compare FILE FILE ...` compares several: --compare --help."
    )
    parser = argparse.ArgumentParser("vheatir train", description=about)
    parser.add_argument("-opt", "--opt", required=True, metavar="FILE", help="options file, or name of a recipe")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=VALUE", help="change one option; repeatable")
    parser.add_argument("--plugin", action="append", default=[], metavar="FILE", help="Python file with own classes")
    parser.add_argument("--resume", action="store_true", help="go on from the run's newest whole checkpoint")
    parser.add_argument(
        "--auto-resume", "--auto_resume", action="store_true", help="go on where there is a checkpoint, else start"
    )
    add_arguments(parser)
    return parser


def _comparison_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "vheatir train --compare",
        description="Train several recipes for the same time and compare PSNR over time. Writes "
        f"{RESULT}, psnr_over_time.png and .svg, and the weights. On a CPU the time is processor time.",
    )
    parser.add_argument("--compare", nargs="*", required=True, metavar="FILE", help="options files, or recipes' names")
    parser.add_argument("--minutes", type=float, default=20.0, help="training time of each recipe (default 20)")
    parser.add_argument("--validate-every", type=float, metavar="MINUTES", help="default: a tenth of --minutes")
    parser.add_argument("--jobs", type=int, default=1, help="recipes trained at the same time, on a CPU (default 1)")
    parser.add_argument("--out", type=Path, default=Path("experiments/comparison"), help="folder (default %(default)s)")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=VALUE", help="change an option in all files")
    parser.add_argument("--plugin", action="append", default=[], metavar="FILE", help="Python file with own classes")
    parser.add_argument("--resume", action="store_true", help="go on with the comparison in --out")
    return parser


def main(argv: list[str]) -> int:
    if "--compare" in argv:
        arguments = _comparison_parser().parse_args(argv)
        finished = compare(
            arguments.compare,
            minutes=arguments.minutes,
            validate_every=arguments.validate_every,
            jobs=arguments.jobs,
            out=arguments.out,
            overrides=arguments.set,
            plugins=arguments.plugin,
            resume=arguments.resume,
            argv=argv,
        )
        return 0 if finished else 130
    arguments = _parser().parse_args(argv)
    if arguments.launcher == "slurm" and (port := meeting_port(arguments.opt, arguments.set)):
        os.environ["MASTER_PORT"] = str(port)
    with started(arguments.launcher, arguments.timeout) as processes:
        finished = train(
            arguments.opt,
            overrides=arguments.set,
            plugins=arguments.plugin,
            resume=arguments.resume,
            auto_resume=arguments.auto_resume,
            processes=processes,
            argv=argv,
        )
    return 0 if finished else 130
