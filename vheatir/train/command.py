"""`vheatir train`: training from a YAML file in BasicSR's layout."""

import argparse

from vheatir.backbone.training.processes import LAUNCHERS, TIMEOUT, started
from vheatir.train import equal_time
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
    parser.add_argument(
        "--launcher", choices=LAUNCHERS, help="what started the processes; by default pytorch under torchrun, else none"
    )
    parser.add_argument(
        "--timeout", type=float, default=TIMEOUT, metavar="SECONDS", help="how long processes wait for each other"
    )
    # torch.distributed.launch adds it; the environment says the same
    parser.add_argument("--local-rank", "--local_rank", type=int, help=argparse.SUPPRESS)
    return parser


def main(argv: list[str]) -> int:
    """Entry of `vheatir train`."""
    if "--compare" in argv:
        return equal_time.main(argv)
    arguments = _parser().parse_args(argv)
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
