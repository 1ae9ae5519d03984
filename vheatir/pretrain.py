"""`vheatir pretrain`: training and evaluation of classifiers, from a YAML file.

Reads the recipe, keeps the run's folder and prints; the work is done by `vheatir.backbone.training.loop` and
`vheatir.backbone.classification.task`.
Several processes train together under torchrun; the first one writes.
"""

import argparse
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vheatir.backbone.errors import as_user_error
from vheatir.backbone.training.processes import Processes, add_arguments, started
from vheatir.errors import UserError
from vheatir.tasks.session import TaskSession, best_file, best_weights, refuse_folded, train
from vheatir.utils import run_metadata
from vheatir.utils.plugins import import_plugin
from vheatir.utils.recipes import find_options, load_table

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from vheatir.backbone.training.batches import EpochPlan
    from vheatir.backbone.training.until import Epochs

_NEEDED = ("timm", "torchvision")
SECTIONS = ("model", "data", "augment", "train", "val", "path", "logger")


class PretrainSession(TaskSession):
    """What training, evaluation and measuring of a classification recipe share.

    Args:
        path: the recipe's file.
        options: its table.
        processes: those that work together.
    """

    command = "pretrain"
    task_name = "classification"

    def __init__(self, path: Path, options: dict[str, Any], processes: Processes):
        import torch

        from vheatir.backbone.classification import task as classify
        from vheatir.backbone.classification.recipe import read_recipe

        self.options = options
        self.classify = classify
        with as_user_error(str(path)):
            super().__init__(path, read_recipe(options), processes)
        torch.manual_seed(self.recipe.manual_seed)
        with as_user_error(str(path)):
            self.model = classify.build_classifier(self.recipe)
        self.network = self.recipe.model

    @property
    def size(self) -> tuple[int, int]:
        return self.classify.model_data(self.recipe, self.model)["size"]

    def load(self, file: str, whole: bool) -> str:
        """Load weights; returns the report. With `whole`, weights without their head are refused."""
        paths = self.recipe.path
        with as_user_error(str(self.path)):
            report = self.classify.load_weights(self.model, file, paths.finetune_weights, paths.finetune_embeddings)
        if whole and report.dropped:
            raise UserError(f"{file}: {report}; set model.num_classes to what the file was trained for")
        return str(report)

    def compare_classes(self, file: str, samples: Any) -> None:
        """Refuse an evaluation set whose classes have other numbers than those that the weights were trained on."""
        from vheatir.backbone.models.checkpoint_files import stored_classes
        from vheatir.backbone.training.dataset_task import check_same_classes

        stored = stored_classes(file)
        found = getattr(samples, "classes", None)
        if not stored or not found or self.recipe.val.subset:
            return
        try:
            check_same_classes(stored, found, file)
        except ValueError as error:
            raise UserError(
                f"{error}; list the classes in the order of the weights in data.class_map, or map folders to classes "
                "by val.subset"
            ) from error

    def pretrained(self) -> str | None:
        file = self.recipe.path.finetune
        if not file:
            return None
        report = self.load(file, False)
        refuse_folded(self.model, file)
        return report

    def samples(self):
        return self.classify.make_samples(self.recipe, self.model, True, *self.place)

    def plan(self, size: int) -> "EpochPlan":
        return self.classify.make_plan(self.recipe, size, *self.place)

    def until(self, plan: "EpochPlan") -> "Epochs":
        return self.classify.make_until(self.recipe, plan)

    def optimizer(self, plan: "EpochPlan") -> "Optimizer":
        from vheatir.backbone.classification.optimizer import make_optimizer

        return make_optimizer(self.recipe.train, self.model, plan.images_per_step)

    def lr_schedule(self, optimizer: "Optimizer", plan: "EpochPlan") -> Callable[[int], None]:
        from vheatir.backbone.classification.optimizer import make_lr_schedule

        return make_lr_schedule(self.recipe.train, optimizer, plan.steps_per_epoch, plan.images_per_step)

    def scoring(self):
        """The task with the evaluation set."""
        with as_user_error(str(self.path)):
            samples = self.classify.make_samples(self.recipe, self.model, False, *self.place)
            return self.classify.Classification(
                self.recipe, self.model.num_classes, samples, self.processes, self.device
            )

    def task(self):
        """The same for training: every image of the set is decoded once, before the first step."""
        task = self.scoring()
        with as_user_error(str(self.path)):
            self.classify.check_images(task.samples, *self.place)
        return task


def _weights_to_evaluate(session: PretrainSession, given: str | None) -> str | None:
    """The weights that are given, or the best of the run; None for released ones, where there is no run."""
    if given is None and session.recipe.model.get("pretrained") and not best_file(session.recipe).is_file():
        return None
    return given or best_weights(session.recipe, ", or --set model.pretrained=true")


def evaluate_weights(session: PretrainSession, weights: str | None) -> dict[str, Any]:
    """Scores, parameters and multiply-accumulates of trained weights."""
    from vheatir.backbone.classification.cost import describe

    weights = _weights_to_evaluate(session, weights)
    if weights is not None:
        session.load(weights, True)
    model = session.model.to(session.device)
    task = session.scoring()
    if weights is not None:
        session.compare_classes(weights, task.samples)
    with as_user_error(str(session.path)):
        scores = task.evaluate(model)
    return {"weights": weights, "scores": scores, "cost": describe(model, session.size)}


def measure_throughput(session: PretrainSession) -> dict[str, Any]:
    """Images per second of the folded form on the first batch of the evaluation set."""
    from vheatir.backbone.classification.cost import describe, throughput
    from vheatir.backbone.training.batches import checked

    val = session.recipe.val
    task = session.scoring()
    with as_user_error(str(session.path)):
        images = next(checked(task.loader()))[0].to(session.device)
    passes = (val.throughput_warmup, val.throughput_passes)
    return {
        "throughput": throughput(session.model, images, *passes),
        "cost": describe(session.model, session.size),
    }


def _lines(name: str, size: tuple[int, int], result: dict[str, Any]) -> Iterator[str]:
    yield f"{name} at {size[0]}x{size[1]}"
    if "scores" in result:
        yield f"weights: {result['weights'] or 'those released'}"
        yield "top-1 {top1:.3f} %, top-5 {top5:.3f} %, loss {loss:.4f} on {images:.0f} images".format(
            **result["scores"]
        )
    if "throughput" in result:
        speed = result["throughput"]
        memory = f", peak {speed['peak_mib']:.0f} MiB" if "peak_mib" in speed else ""
        yield f"{speed['images_per_s']:.1f} images/s, {speed['passes']} passes of {speed['batch']} images{memory}"
    for form, cost in result["cost"].items():
        counts = cost["parameters"]
        macs = "" if cost["macs"] is None else f", {cost['macs']['total'] / 1e9:.4g} GMACs"
        conducted = (cost["macs"] or {}).get("heat_conduction")
        share = f", of which {conducted / 1e9:.3g} in cosine transforms" if conducted else ""
        yield f"{form} form: {counts['total']:,} parameters, {counts['trainable']:,} trainable{macs}{share}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "vheatir pretrain",
        description="Train a backbone on labeled images, evaluate it, or measure its speed, from a YAML file. "
        "For several processes: torchrun --nproc-per-node N -m vheatir pretrain -opt FILE",
    )
    parser.add_argument("-opt", "--opt", required=True, metavar="FILE", help="options file, or name of a recipe")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=VALUE", help="change one option; repeatable")
    parser.add_argument("--plugin", action="append", default=[], metavar="FILE", help="Python file with own networks")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--resume", action="store_true", help="go on from the run's newest whole checkpoint")
    mode.add_argument("--eval", action="store_true", help="evaluate --weights, or the best of the run")
    mode.add_argument("--throughput", action="store_true", help="measure the merged form on a batch of data.val")
    parser.add_argument("--finetune", metavar="FILE", help="weights to start from; another head or size is fitted")
    parser.add_argument("--weights", metavar="FILE", help="weights to evaluate")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what --eval or --throughput found")
    add_arguments(parser)
    return parser


def main(argv: list[str]) -> int:
    parser = _parser()
    arguments = parser.parse_args(argv)
    measuring = arguments.eval or arguments.throughput
    if (arguments.json and not measuring) or (arguments.weights and not arguments.eval):
        parser.error("--json belongs to --eval and --throughput, --weights to --eval; training starts from --finetune")
    if arguments.finetune and measuring:
        parser.error("--finetune starts a run; name the weights to evaluate by --weights, with --eval")
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"vheatir pretrain needs {', '.join(missing)}; run: pip install 'vheatir[backbone]'")
    for plugin in arguments.plugin:
        import_plugin(plugin)
    path = find_options(arguments.opt)
    options = load_table(path, arguments.set, SECTIONS)
    if arguments.finetune:
        options["path"] = {**(options.get("path") or {}), "finetune": arguments.finetune}
    if arguments.json:
        run_metadata.prepare_output(arguments.json)
    with started(arguments.launcher, arguments.timeout) as processes:
        session = PretrainSession(path, options, processes)
        if not measuring:
            return train(session, argv, arguments.resume)
        result = evaluate_weights(session, arguments.weights) if arguments.eval else measure_throughput(session)
        if processes.writes:
            _report(session, result, arguments.json, argv)
        return 0


def _report(session: PretrainSession, result: dict[str, Any], file: Path | None, argv: list[str]) -> None:
    sys.stdout.writelines(f"{line}\n" for line in _lines(session.recipe.model["name"], session.size, result))
    if file:
        metadata = run_metadata.run_metadata(["vheatir", "pretrain", *argv])
        run_metadata.write_json(file, {"metadata": metadata, "model": session.recipe.model, **result})
