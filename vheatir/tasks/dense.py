"""What `vheatir detect` and `vheatir segment` share: their session, costs, and the images of a folder."""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from vheatir.backbone.errors import as_user_error
from vheatir.backbone.training.processes import Processes
from vheatir.errors import UserError
from vheatir.image_io.formats import FORMATS
from vheatir.tasks.session import TaskSession, refuse_folded
from vheatir.utils import run_metadata
from vheatir.utils.files import atomic_open, files_below, printable, refuse_folder, skipped_note
from vheatir.utils.timing import interleave, peak_mib

_OF_IMAGE_IO = ("HEIF", "AVIF", "RAW")  # what the backbone's reader does not know

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

    from vheatir.backbone.training.batches import EpochPlan
    from vheatir.backbone.training.until import Epochs


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
        refuse_folded(self.body, paths.pretrained)
        return f"{paths.pretrained}: {report}"

    def plan(self, size: int) -> "EpochPlan":
        from vheatir.backbone.dense.recipe import make_plan

        return make_plan(self.recipe, size, *self.place)

    def until(self, plan: "EpochPlan") -> "Epochs":
        from vheatir.backbone.dense.recipe import make_until

        return make_until(self.recipe, plan)

    def optimizer(self, plan: "EpochPlan") -> "Optimizer":
        from vheatir.backbone.dense.recipe import make_optimizer

        return make_optimizer(self.recipe.train, self.model)

    def lr_schedule(self, optimizer: "Optimizer", plan: "EpochPlan") -> Callable[[int], None]:
        from vheatir.backbone.dense.recipe import make_lr_schedule

        return make_lr_schedule(self.recipe.train, optimizer, self.until(plan).total, plan.steps_per_epoch)

    def evaluate(self, tta: bool) -> dict[str, Any]:
        """Scores on the evaluation set."""
        model = self.model.to(self.device)
        with as_user_error(str(self.path)):
            return {"scores": self.task().evaluate(model)}

    def at_size(self, size: tuple[int, int]) -> Callable[[], Any]:
        """A function of no arguments that runs the network on a random image of that size."""
        raise NotImplementedError

    def read_image(self, file: Path):
        """An image, (3, H, W) uint8 RGB."""
        import torch

        from vheatir.backbone.dense.image_files import read_rgb
        from vheatir.backbone.errors import DataError
        from vheatir.image_io import open_image

        if FORMATS.get(file.suffix.lower()) in _OF_IMAGE_IO:
            stored = open_image(file)
            try:
                pixels = stored.eight_bits(str(file))
            finally:
                stored.close()
            pixels = np.array(np.broadcast_to(np.atleast_3d(pixels), (*pixels.shape[:2], 3)), order="C")
            return torch.from_numpy(pixels).permute(2, 0, 1)
        image = read_rgb(file)
        if isinstance(image, DataError):
            raise UserError(str(image))
        return image

    def draw(self, file: Path, **options: Any) -> tuple[Any, dict]:
        """Image (3, H, W) uint8 with what was found in a file, and the findings as a table.

        The options are the subclass's own, by keyword.
        """
        raise NotImplementedError


def save_drawing(path: Path, image: "Tensor") -> None:
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


def measure_cost(session: DenseSession, sizes: Iterable[str], rounds: int) -> dict[str, Any]:
    """Parameters, multiply-accumulates, and with `rounds` seconds and memory of a pass, by size of the image.

    Args:
        session: the network.
        sizes: sides, as "512", or "HEIGHTxWIDTH".
        rounds: timed passes; 0 counts only.
    """
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


def _name(file: Path, source: Path) -> Path:
    return file.relative_to(source) if source.is_dir() else Path(file.name)


def png_below(folder: Path, file: Path, source: Path) -> Path:
    """Where in `folder` what is made of `file` goes: as it lies below `source`, an image or a folder of them.

    Args:
        folder: where it goes.
        file: an image.
        source: the image itself, or a folder that it lies in.
    """
    return folder / _name(file, source).with_suffix(".png")


def _refuse_overwriting(files: list[Path], source: Path, folders: list[Path | None]) -> None:
    """Raise UserError where one of the images, or what is made of another one, would be overwritten."""
    images = {file.resolve() for file in files}
    taken = {}
    for folder, file in ((folder, file) for folder in folders if folder is not None for file in files):
        path = png_below(folder, file, source)
        if path.resolve() in images:
            raise UserError(f"{path} would be overwritten; give another folder with -o")
        if former := taken.get(path.resolve()):
            raise UserError(
                f"what is made of {former} and of {file} would both be {path}; rename one or part the folders"
            )
        taken[path.resolve()] = file


class Predicted(NamedTuple):
    """How many images were drawn, and how many could not be."""

    drawn: int
    failed: int


def predict(
    session: DenseSession,
    source: Path,
    output: Path,
    *,
    label_maps: Path | None = None,
    say: Callable[[str], None] = lambda text: None,
    **drawing: Any,
) -> Predicted:
    """Draw what is found in an image or in those of a folder, as PNG, with the findings in `found.json`.

    What is wrong with one image does not stop the others, and whatever ends the work, the findings until then are
    written.

    Args:
        session: the network, made for mode "predict".
        source: an image, or a folder that is searched with all below it; hidden names and the folders that are
            written are left out.
        output: a folder, made where there is none.
        label_maps: a folder for the classes' numbers, one PNG for each image; segmentation only.
        say: gets a line on each image that failed, and on files that were passed over.
        **drawing: further arguments of the session's `draw`.

    Raises:
        UserError: there are no images, a folder cannot be read, or a file to write is one of them or of two of them.
    """
    from vheatir.backbone.layers.freezing import freeze

    others = Counter()
    files = [source] if source.is_file() else _images_below(source, [output, label_maps], others)
    if others:
        say(f"note: {skipped_note(others)}")
    if not files:
        raise UserError(f"--predict {source}: no images there; expected an image or a folder of them")
    _refuse_overwriting(files, source, [output, label_maps])
    freeze(session.model.to(session.device))
    found = {}
    try:
        for file in files:
            if label_maps is not None:
                drawing["label_map"] = png_below(label_maps, file, source)
            try:
                drawn, entry = session.draw(file, **drawing)
                save_drawing(png_below(output, file, source), drawn)
            except Exception as error:  # whatever is wrong with one image, the others are still drawn
                text = (str(error) or type(error).__name__).splitlines()[0]
                say(printable(f"error: {text}" if str(file) in text else f"error: {file}: {text}"))
            else:
                found[_name(file, source).as_posix()] = entry
    finally:
        run_metadata.write_json(output / "found.json", found)
    return Predicted(len(found), len(files) - len(found))


def _images_below(source: Path, written: list[Path | None], others: "Counter[str]") -> list[Path]:
    from vheatir.backbone.data.pixels import SUFFIXES

    left_out = {os.path.realpath(folder) for folder in written if folder is not None}
    files = []

    def is_written(folder: Path) -> bool:
        return os.path.realpath(folder) in left_out

    for path in files_below(source, skip=is_written, onerror=refuse_folder):
        if path.suffix.lower() in (*SUFFIXES, *FORMATS):
            files.append(path)
        else:
            others[path.suffix.lower()] += 1
    return files
