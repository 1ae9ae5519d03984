"""The command line of `vheatir detect` and `vheatir segment`: arguments, modes, and what is printed."""

import argparse
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vheatir.backbone.errors import as_user_error
from vheatir.backbone.training.processes import add_arguments, started
from vheatir.errors import UserError
from vheatir.tasks.dense import DenseSession, measure_cost, predict
from vheatir.tasks.session import best_weights, train
from vheatir.utils import run_metadata
from vheatir.utils.recipes import find_options, load_table

_SIZES = ("224", "512", "800x1280")


def _lines(result: dict[str, Any]) -> Iterator[str]:
    for name, value in result.get("scores", {}).items():
        yield f"{name} {value:.3f}"
    for size, entry in result.get("cost", {}).items():
        for form in ("training", "merged"):
            if form in entry:
                counts = entry[form]["parameters"]
                macs = entry[form]["macs"]["total"]
                yield (
                    f"{size} {form} form: {counts['total']:,} parameters, {counts['trainable']:,} trainable, "
                    f"{macs / 1e9:.1f} GMACs"
                )
        if "pass" in entry:
            yield f"{size} a pass: {entry['pass']['median_s']:.3f} s, peak {entry['pass']['peak_mib']:.0f} MiB"


def parser_for(command: str, what: str) -> argparse.ArgumentParser:
    """Arguments of both commands."""
    parser = argparse.ArgumentParser(
        f"vheatir {command}",
        description=f"{what} For several processes: torchrun --nproc-per-node N -m vheatir {command} -opt FILE",
    )
    parser.add_argument("-opt", "--opt", required=True, metavar="FILE", help="options file, or name of a recipe")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=VALUE", help="change one option; repeatable")
    mode = parser.add_mutually_exclusive_group()
    for name, text in (
        ("resume", "go on from the run's newest whole checkpoint"),
        ("eval", "evaluate --weights, or the best of the run, on data.val"),
        ("cost", "parameters, multiply-accumulates, speed, memory by --sizes"),
    ):
        mode.add_argument(f"--{name}", action="store_const", const=name, dest="mode", help=text)
    mode.add_argument("--predict", type=Path, metavar="PATH", help="draw what is found in an image or a folder")
    parser.add_argument("--pretrained", metavar="FILE", help="the backbone's weights to start from")
    parser.add_argument("--weights", metavar="FILE", help="weights for --eval and --predict")
    parser.add_argument("-o", "--output", type=Path, metavar="FOLDER", help="where --predict writes")
    parser.add_argument("--sizes", nargs="+", default=_SIZES, metavar="HxW", help="sizes of images for --cost")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="timed passes for --cost; 0: count only")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what --eval or --cost found")
    add_arguments(parser)
    return parser


def _parse(kind: type[DenseSession], parser: argparse.ArgumentParser, argv: list[str]) -> dict[str, Any]:
    """The arguments by name, with a `mode` of the session, once they fit together and what they need is installed."""
    given = vars(parser.parse_args(argv))
    given["resume"] = given["mode"] == "resume"
    if given["resume"]:
        given["mode"] = "train"
    if given["predict"]:
        given["mode"] = "predict"
    mode = given["mode"] = given["mode"] or "train"
    if given["rounds"] < 0:
        parser.error(f"--rounds must be 0 or more, got {given['rounds']}")
    if given["json"] and mode not in ("eval", "cost"):
        parser.error("--json belongs to --eval and --cost")
    if given["weights"] and mode not in ("eval", "predict"):
        parser.error("--weights belongs to --eval and --predict; training starts from --pretrained")
    if given["pretrained"] and mode != "train":
        parser.error("--pretrained starts a run; name the weights for --eval and --predict by --weights")
    if given.get("tta") and mode not in ("eval", "predict"):
        parser.error("--tta belongs to --eval and --predict")
    for name in ("label_maps", "threshold"):
        if given.get(name) is not None and mode != "predict":
            parser.error(f"--{name.replace('_', '-')} belongs to --predict")
    if bool(given["predict"]) != bool(given["output"]):
        parser.error("--predict needs -o FOLDER, and nothing else takes it")
    missing = [name for name in kind.needs if importlib.util.find_spec(name) is None]
    if missing:
        extra = "detection" if "pycocotools" in missing else "backbone"
        raise UserError(f"vheatir {kind.command} needs {', '.join(missing)}; run: pip install 'vheatir[{extra}]'")
    return given


def run(
    kind: type[DenseSession],
    parser: argparse.ArgumentParser,
    argv: list[str],
    drawing: Sequence[str] = (),
) -> int:
    """A command, from its arguments to its status.

    Args:
        kind: the command's session.
        parser: of `parser_for`, with the command's own arguments added; `--tta` is handed to `evaluate`.
        argv: the arguments of the command line.
        drawing: those of them that `predict` takes by keyword.

    Returns:
        0, 1 where some of the images of `--predict` could not be drawn, 130 where training was stopped by a signal.

    Raises:
        UserError: something that was given cannot be used.
    """
    given = _parse(kind, parser, argv)
    mode = given["mode"]
    path = find_options(given["opt"])
    options = load_table(path, given["set"], kind.sections)
    if given["pretrained"]:
        options["path"] = {**(options.get("path") or {}), "pretrained": given["pretrained"]}
    if given["json"]:
        run_metadata.prepare_output(given["json"])
    for folder in (given["output"], given.get("label_maps")):
        if mode == "predict" and folder:
            run_metadata.prepare_folder(folder)
    weights = given["weights"]
    if weights is None and mode in ("eval", "predict"):
        with as_user_error(str(path)):
            weights = best_weights(kind.read(options))
    with started(given["launcher"], given["timeout"]) as processes:
        session = kind(path, options, mode, weights, processes)
        if mode == "train":
            return train(session, argv, given["resume"])
        if mode == "predict":
            output = given["output"]
            options = {name: given[name] for name in drawing if given[name] is not None}
            drawn, failed = predict(session, given["predict"], output, say=_say, **options)
            ended = f", {failed} failed" if failed else ""
            sys.stdout.write(f"{drawn} images drawn into {output}{ended}, figures in {output / 'found.json'}\n")
            return 1 if failed else 0
        if mode == "eval":
            result = {"weights": weights, **session.evaluate(given.get("tta", False))}
        else:
            result = measure_cost(session, given["sizes"], given["rounds"])
        if processes.writes:
            _report(session, result, given["json"], argv)
        return 0


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")


def _report(session: DenseSession, result: dict[str, Any], file: Path | None, argv: list[str]) -> None:
    sys.stdout.writelines(f"{line}\n" for line in _lines(result))
    if file:
        metadata = run_metadata.run_metadata(["vheatir", session.command, *argv])
        run_metadata.write_json(file, {"metadata": metadata, "backbone": session.recipe.backbone, **result})
