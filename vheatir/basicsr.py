"""BasicSR's own loop with our networks, data, losses and metrics: `python -m vheatir.basicsr train -opt FILE`.

From Python: `train(["-opt", "options/smoke.yml"])`, or in a script that calls BasicSR itself:

    from vheatir.basicsr import register
    register()
    from basicsr.train import train_pipeline
    train_pipeline(".")
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from torch import distributed

from vheatir.cli import run
from vheatir.train.basicsr_loop import prepare
from vheatir.utils.recipes import find_options

__all__ = ["register", "test", "train"]

_EPILOG = """\
BasicSR's own arguments: -opt FILE, --auto_resume, --debug, --force_yml A:B=VALUE ..., --launcher none|pytorch|slurm.
It writes below the working directory: experiments/NAME, tb_logger/NAME, results/NAME.

examples:
  python -m vheatir.basicsr train -opt options/smoke.yml
  python -m vheatir.basicsr train -opt options/smoke.yml --auto_resume
  python -m vheatir.basicsr test -opt options/test_denoise.yml
  torchrun --nproc_per_node=2 -m vheatir.basicsr train -opt options/smoke.yml --launcher pytorch
"""


def register() -> None:
    """Let BasicSR import beside today's torchvision, and know all that our options name.

    Also puts what its `train_pipeline` and `test_pipeline` need today in place of some of its functions, see
    `vheatir.train.basicsr_loop`.

    Raises:
        UserError: BasicSR is missing; says what to install.
    """
    prepare()


def train(arguments: Sequence[str], root: str | Path = ".") -> None:
    """BasicSR's `train_pipeline`.

    Args:
        arguments: of its command line, such as ["-opt", "options/smoke.yml", "--auto_resume"].
        root: the folder below which it writes.

    Raises:
        UserError: something in the options cannot be used.
    """
    _pipeline("train", arguments, root)


def test(arguments: Sequence[str], root: str | Path = ".") -> None:
    """BasicSR's `test_pipeline`, see `train`.

    Args:
        arguments: of its command line.
        root: the folder below which it writes.

    Raises:
        UserError: something in the options cannot be used.
    """
    _pipeline("test", arguments, root)


def _pipeline(which: str, arguments: Sequence[str], root: str | Path) -> None:
    register()
    if which == "train":
        from basicsr.train import train_pipeline as pipeline
    else:
        from basicsr.test import test_pipeline as pipeline
    parser = argparse.ArgumentParser(f"vheatir.basicsr {which}", add_help=False)
    parser.add_argument("-opt")
    found, rest = parser.parse_known_args(list(arguments))
    options = [] if found.opt is None else ["-opt", str(find_options(found.opt))]
    before = sys.argv
    sys.argv = [f"{before[0]} {which}", *options, *rest]  # BasicSR reads them there, and notes them in its copy
    try:
        pipeline(str(Path(root).resolve()))
    finally:
        sys.argv = before
        if distributed.is_initialized():
            distributed.destroy_process_group()


def main(argv: list[str]) -> int:
    """Entry of `python -m vheatir.basicsr`."""
    parser = argparse.ArgumentParser(
        "vheatir.basicsr",
        description="Train or test in BasicSR's own loop with our networks, data, losses and metrics.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("which", choices=("train", "test"), help="its train_pipeline or test_pipeline")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="BasicSR's arguments")
    parsed = parser.parse_args(argv)
    _pipeline(parsed.which, parsed.arguments, ".")
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
