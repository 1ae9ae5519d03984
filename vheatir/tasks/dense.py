"""What `vheatir detect` and `vheatir segment` have in common: arguments, modes, costs, the files of a folder."""

import argparse
import importlib.util
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from vheatir.backbone.errors import as_user_error
from vheatir.backbone.training.processes import Processes, add_arguments, started
from vheatir.errors import UserError
from vheatir.tasks.session import TaskSession, best_weights, train
from vheatir.utils import run_metadata
from vheatir.utils.files import atomic_open
from vheatir.utils.recipes import find_options, load_table
from vheatir.utils.timing import interleave, peak_mib

_SIZES = ("224", "512", "800x1280")


class DenseSession(TaskSession):
    """What the modes of a command share: recipe, processes and network.

    Subclasses set `command`, `task_name`, `sections`, `needs`, and give `read`, `build`, `samples`, `task`,
    `at_size`, `draw`.
    """

    sections: tuple[str, ...]
    needs = ("timm", "torchvision")

    def __init__(
        self,
        path: Path,
        options: dict[str, Any],
        mode: str,
        weights: str | None = None,
        processes: Processes | None = None,
    ):
        """Read the recipe and build the network.

        Args:
            path: the recipe's file.
            options: its table.
            mode: "train", "eval", "predict" or "cost".
            weights: a file to load.
            processes: those that work together; by default this one alone.
        """
        import torch

        from vheatir.backbone.models.feature_maps import build_features

        self.mode = mode
        with as_user_error(str(path)):
            super().__init__(path, self.read(options), processes or Processes())
        torch.manual_seed(self.recipe.manual_seed)
        with as_user_error(str(path)):
            self.body = build_features(self.recipe.backbone)
            self.model = self.build(weights)
        if weights is not None:
            self._load(weights)

    @staticmethod
    def read(options: dict[str, Any]) -> Any:
        """The recipe of a table."""
        raise NotImplementedError

    def build(self, weights: str | None) -> Any:
        """The network around `self.body`; `weights` is the file that it will be given."""
        raise NotImplementedError

    def _load(self, weights: str) -> None:
        from vheatir.backbone.models.checkpoint import read_state, without_prefix

        with as_user_error(str(self.path)):
            state, report = read_state(weights)
            state = without_prefix(state, self.model.state_dict(), report)
            try:
                self.model.load_state_dict(state)
            except RuntimeError as error:
                raise ValueError(f"{weights} does not fit the recipe: {error}") from error

    def pretrained(self) -> str | None:
        from vheatir.backbone.models.feature_maps import load_features

        paths = self.recipe.path
        if paths.pretrained is None:
            return None
        with as_user_error(str(self.path)):
            report = load_features(self.body, paths.pretrained, paths.pretrained_weights, paths.pretrained_embeddings)
        return f"{paths.pretrained}: {report}"

    def plan(self, size: int):
        from vheatir.backbone.dense.recipe import make_plan

        return make_plan(self.recipe, size, *self.place)

    def until(self, plan):
        from vheatir.backbone.dense.recipe import make_until

        return make_until(self.recipe, plan)

    def optimizer(self, plan):
        from vheatir.backbone.dense.recipe import make_optimizer

        return make_optimizer(self.recipe.train, self.model)

    def rates(self, optimizer, plan):
        from vheatir.backbone.dense.recipe import make_rates

        return make_rates(self.recipe.train, optimizer, self.until(plan).total, plan.steps_per_epoch)

    def evaluate(self, tta: bool) -> dict[str, Any]:
        """Scores on the evaluation set."""
        model = self.model.to(self.device)
        with as_user_error(str(self.path)):
            return {"scores": self.task().evaluate(model)}

    def at_size(self, size: tuple[int, int]):
        """A function of no arguments that runs the network on a random image of that size."""
        raise NotImplementedError

    def read_picture(self, file: Path):
        """An image, (3, H, W) uint8 RGB."""
        from vheatir.backbone.dense.image_files import read_rgb
        from vheatir.backbone.errors import DataError

        image = read_rgb(file)
        if isinstance(image, DataError):
            raise UserError(str(image))
        return image

    def draw(self, file: Path, arguments: argparse.Namespace) -> tuple[Any, dict]:
        """Image (3, H, W) uint8 with what was found in a file, and the findings as a table."""
        raise NotImplementedError


def write_png(path: Path, image) -> None:
    """Write a (3, H, W) or (1, H, W) uint8 tensor."""
    from torchvision.transforms.v2.functional import to_pil_image

    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_open(path) as file:
        to_pil_image(image.cpu()).save(file, "PNG")


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    if match is None or 0 in (sides := [int(side) for side in match.groups(match[1])]):
        raise UserError(f"--sizes {text}: expected a side, as 512, or HEIGHTxWIDTH, as 800x1280")
    return sides[0], sides[1]


def cost(session: DenseSession, sizes: Iterable[str], rounds: int) -> dict[str, Any]:
    """Parameters, multiply-accumulates, and with `rounds` seconds and memory of a pass, by size of the image."""
    import torch

    from vheatir.backbone.dense.cost import cost_at
    from vheatir.backbone.layers.freezing import freeze

    device = session.device
    table = {}
    model = freeze(session.model.to(device))
    for size in map(_size, sizes):
        entry = table[f"{size[0]}x{size[1]}"] = cost_at(model, size)
        if rounds:
            run = session.at_size(size)
            with torch.no_grad():
                timing = interleave({"pass": run}, device, rounds=rounds, warmup=1)["pass"]
                entry["pass"] = {"median_s": timing.median_us / 1e6, "peak_mib": peak_mib(run, device)}
    return {"device": str(device), "threads": torch.get_num_threads(), "cost": table}


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


def _name(file: Path, source: Path) -> Path:
    return file.relative_to(source) if source.is_dir() else Path(file.name)


def png_below(folder: Path, file: Path, source: Path) -> Path:
    """Where in `folder` what is made of `file` goes: as it lies below `source`, an image or a folder of them."""
    return folder / _name(file, source).with_suffix(".png")


def _refuse_overwriting(files: list[Path], source: Path, folders: list[Path | None]) -> None:
    """Raise UserError where one of the images, or what is made of another one, would be overwritten."""
    pictures = {file.resolve() for file in files}
    taken = {}
    for folder, file in ((folder, file) for folder in folders if folder is not None for file in files):
        path = png_below(folder, file, source)
        if path.resolve() in pictures:
            raise UserError(f"{path} would be overwritten; give another folder with -o")
        if former := taken.get(path.resolve()):
            raise UserError(
                f"what is made of {former} and of {file} would both be {path}; rename one or part the folders"
            )
        taken[path.resolve()] = file


def predict(session: DenseSession, arguments: argparse.Namespace) -> int:
    """Draw what is found in the images of a folder."""
    from vheatir.backbone.data.pixels import SUFFIXES
    from vheatir.backbone.layers.freezing import freeze

    source = arguments.predict
    target = arguments.output
    files = [source] if source.is_file() else sorted(p for p in source.rglob("*") if p.suffix.lower() in SUFFIXES)
    if not files:
        raise UserError(f"--predict {source}: no images there; expected an image or a folder of them")
    _refuse_overwriting(files, source, [target, getattr(arguments, "label_maps", None)])
    freeze(session.model.to(session.device))
    found = {}
    for file in files:
        path = png_below(target, file, source)
        drawn, found[_name(file, source).as_posix()] = session.draw(file, arguments)
        write_png(path, drawn)
    run_metadata.write_json(target / "found.json", found)
    sys.stdout.write(f"{len(files)} images drawn into {target}, figures in {target / 'found.json'}\n")
    return 0


def parser_for(command: str, what: str) -> argparse.ArgumentParser:
    """Arguments of both commands."""
    parser = argparse.ArgumentParser(
        f"vheatir {command}",
        description=f"{what} For several processes: torchrun --nproc-per-node N -m vheatir {command} -opt FILE",
    )
    parser.add_argument("-opt", "--opt", required=True, metavar="FILE", help="options file, or name of a recipe")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=VALUE", help="change one option; repeatable")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--resume", action="store_true", help="go on from the run's newest whole checkpoint")
    mode.add_argument("--eval", action="store_true", help="evaluate --weights, or the best of the run, on data.val")
    mode.add_argument("--predict", type=Path, metavar="PATH", help="draw what is found in an image or a folder")
    mode.add_argument("--cost", action="store_true", help="parameters, multiply-accumulates, speed, memory by --sizes")
    parser.add_argument("--pretrained", metavar="FILE", help="the backbone's weights to start from")
    parser.add_argument("--weights", metavar="FILE", help="weights for --eval and --predict")
    parser.add_argument("-o", "--output", type=Path, metavar="FOLDER", help="where --predict writes")
    parser.add_argument("--sizes", nargs="+", default=_SIZES, metavar="HxW", help="sizes of images for --cost")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="timed passes for --cost; 0: count only")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what --eval or --cost found")
    add_arguments(parser)
    return parser


def run(kind: type[DenseSession], parser: argparse.ArgumentParser, argv: list[str]) -> int:
    """A command, from its arguments to its status."""
    arguments = parser.parse_args(argv)
    judging = arguments.eval or arguments.cost
    if arguments.json and not judging:
        parser.error("--json belongs to --eval and --cost")
    if arguments.weights and not (arguments.eval or arguments.predict):
        parser.error("--weights belongs to --eval and --predict; training starts from --pretrained")
    if bool(arguments.predict) != bool(arguments.output):
        parser.error("--predict needs -o FOLDER, and nothing else takes it")
    missing = [name for name in kind.needs if importlib.util.find_spec(name) is None]
    if missing:
        extra = "detection" if "pycocotools" in missing else "backbone"
        raise UserError(f"vheatir {kind.command} needs {', '.join(missing)}; run: pip install -e '.[{extra}]'")
    path = find_options(arguments.opt)
    options = load_table(path, arguments.set, kind.sections)
    if arguments.pretrained:
        options["path"] = {**(options.get("path") or {}), "pretrained": arguments.pretrained}
    if arguments.json:
        run_metadata.prepare_output(arguments.json)
    weights = arguments.weights
    if weights is None and (arguments.eval or arguments.predict):
        with as_user_error(str(path)):
            weights = best_weights(kind.read(options))
    mode = "predict" if arguments.predict else "eval" if arguments.eval else "cost" if arguments.cost else "train"
    with started(arguments.launcher, arguments.timeout) as processes:
        session = kind(path, options, mode, weights, processes)
        if arguments.predict:
            return predict(session, arguments)
        if not judging:
            return train(session, argv, arguments.resume)
        if arguments.eval:
            result = {"weights": weights, **session.evaluate(getattr(arguments, "tta", False))}
        else:
            result = cost(session, arguments.sizes, arguments.rounds)
        if processes.writes:
            _report(session, result, arguments.json, argv)
        return 0


def _report(session: DenseSession, result: dict[str, Any], file: Path | None, argv: list[str]) -> None:
    sys.stdout.writelines(f"{line}\n" for line in _lines(result))
    if file:
        metadata = run_metadata.run_metadata(["vheatir", session.command, *argv])
        run_metadata.write_json(file, {"metadata": metadata, "backbone": session.recipe.backbone, **result})
