"""The `vheatir` command: a table of modules, each imported only when its command is called."""

import argparse
import errno
import importlib
import io
import os
import re
import sys
from collections.abc import Callable, Sequence

from vheatir import __version__
from vheatir.errors import UserError
from vheatir.utils import extras
from vheatir.utils.files import FULL_DISK, printable
from vheatir.utils.heap import keep_heap

_TABLE = (
    ("restore", "vheatir.restore.command", "denoise images or remove their JPEG artifacts"),
    ("train", "vheatir.train.command", "train a network from a YAML file"),
    ("test", "vheatir.test", "evaluate a trained network from a YAML file"),
    ("preview", "vheatir.preview", "show training samples and the statistics of their noise, beside real pairs"),
    ("pretrain", "vheatir.pretrain", "train and evaluate a backbone on labeled images, from a YAML file"),
    (
        "analyze",
        "vheatir.analyze.command",
        "costs, receptive fields, heat maps and invariance of backbones, with figures",
    ),
    ("detect", "vheatir.detect", "train, evaluate and run Faster and Mask R-CNN on a backbone, from a YAML file"),
    ("segment", "vheatir.segment", "train, evaluate and run UPerNet on a backbone, from a YAML file"),
    ("prepare", "vheatir.prepare.command", "fetch, verify, cut and pack image sets for training and evaluation"),
    ("evaluate", "vheatir.evaluate.command", "PSNR, SSIM and PSNR-B on test sets, by the field's protocol"),
    (
        "compare",
        "vheatir.compare.command",
        "figures of images before and after restoring, by several methods, beside the truth",
    ),
    ("receptive-field", "vheatir.receptive_field", "which pixels a restored pixel depends on, with a figure"),
    (
        "export",
        "vheatir.export.command",
        "write a network as ONNX, as a program of PyTorch or for the Hugging Face Hub",
    ),
    ("bench", "vheatir.bench.command", "measure speed and memory against the published formulation"),
    ("info", "vheatir.info", "versions, devices and which operator path would run"),
    ("serve", "vheatir.serve", "a local page: drop an image, restore, compare, download"),
    ("demo", "vheatir.demo", "restore two photographs and train for a minute"),
)
COMMANDS = {name: module for name, module, _ in _TABLE}
_OF_STREAMS = (errno.EPIPE, errno.EIO, *FULL_DISK)
_CLOSED_PIPE = 141  # what a shell says of a program that SIGPIPE ended
_EMPTY = re.compile(r"(--?[\w-]+=)?")


def _parser() -> argparse.ArgumentParser:
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:<{width}}  {summary}" for name, _, summary in _TABLE)
    parser = argparse.ArgumentParser(
        "vheatir",
        description="Image restoration by heat conduction.",
        epilog=f"commands:\n{commands}\n\n`vheatir COMMAND --help` explains a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"vheatir {__version__}")
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="one of the commands below")
    parser.add_argument("args", nargs=argparse.REMAINDER, metavar="...", help="arguments of the command")
    return parser


def run(command: Callable[[list[str]], int | None], argv: Sequence[str] | None = None) -> int:
    """Call a command's main; a `UserError` becomes its message on stderr and status 2, Ctrl-C status 130.

    So does the want of a library that an extra brings, with the extra's name. Letters that the console does not know
    are written as escapes: no name of a file ends finished work. Where the reader of stdout has gone (`| head -1`) the
    command ends without a word, with status 141; a full disk behind stdout or a named file is said, with status 1.

    Modules that are also started with `python -m` end in `raise SystemExit(run(main))`.
    """
    _prepare_streams()
    try:
        status = _status(command, list(sys.argv[1:] if argv is None else argv))
    except OSError as error:
        # of any file; one of stdout comes again, but an unbuffered stream has forgotten what it could not write
        may_be_stdout = error.filename is None and error.errno in _OF_STREAMS
        refused = _refused_by_stdout("\n") if may_be_stdout else None
        if refused is None:
            if error.filename is None or error.errno not in FULL_DISK:
                raise
            sys.stderr.write(f"error: {printable(str(error.filename))} cannot be written: {error.strerror}\n")
            return 1
    except SystemExit:  # argparse ends the program after --help
        refused = _refused_by_stdout()
        if refused is None:
            raise
    else:
        refused = _refused_by_stdout()
    if refused is None:
        return status
    if isinstance(refused, BrokenPipeError):
        return _CLOSED_PIPE
    sys.stderr.write(f"error: standard output cannot be written: {refused.strerror}\n")
    return 1


def _prepare_streams() -> None:
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the caller, as with `>&-`
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 (open until the end)
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _status(command: Callable[[list[str]], int | None], argv: list[str]) -> int:
    try:
        _refuse_empty(argv)
        return command(argv) or 0
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except ModuleNotFoundError as error:
        if (advice := extras.advice(error)) is None:
            raise
        sys.stderr.write(f"error: {advice}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130


def _refuse_empty(argv: Sequence[str]) -> None:
    """UserError for an empty argument: as a path it would be the current folder."""
    for number, argument in enumerate(argv):
        if _EMPTY.fullmatch(argument):
            where = argument or (f"after {argv[number - 1]}" if number else "first")
            raise UserError(f"an argument is empty ({where}), as of a shell variable that is not set; give its value")


def _refused_by_stdout(more: str = "") -> OSError | None:
    """Why stdout cannot take what was written to it, and `more`; what is left of that is dropped."""
    try:
        sys.stdout.write(more)
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python tries once more at its end
        return error
    return None


def main(argv: Sequence[str] | None = None) -> int:
    return run(_call, argv)


def _call(argv: list[str]) -> int | None:
    parsed = _parser().parse_args(argv)
    keep_heap()
    return importlib.import_module(COMMANDS[parsed.command]).main(parsed.args)
