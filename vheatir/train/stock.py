"""Files written for BasicSR and for projects built on it: what of them `vheatir train` takes over, what it refuses.

Names with the same meaning here are replaced by ours, so that a run's resolved.yml says what was trained. A key that
has no meaning here is refused by name, with what to write instead.
"""

from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from vheatir.errors import UserError

_OWN_LOOP = "BasicSR's own loop still takes this file: python -m vheatir.basicsr train -opt FILE"
_GAN = f"there is no adversarial training here; train on pixel_opt alone, or: {_OWN_LOOP}"
_TWO_STAGES = (
    "the two-stage degradations of Real-ESRGAN do not exist here; degradations belong to datasets.train.type: "
    "GaussianNoiseDataset, JPEGDataset, CameraNoiseDataset, or one of your own (docs/howto.md)"
)
_ONE_NETWORK = f"videos and faces are not restored here; {_OWN_LOOP}"
_PROGRESSIVE = "write datasets.train.progressive: [{start_iter: 92000, gt_size: 160, batch_size_per_gpu: 5}, ...]"
_RAW_PLANES = "networks here take RGB in [0, 1]; leave it out"

_DATASETS = {"PairedImageDataset": "PairedDataset"}
_MODELS = {
    "ImageCleanModel": "write model_type: VHeatIRModel",
    "ImageRestorationModel": "write model_type: VHeatIRModel",
    "HATModel": "write model_type: VHeatIRModel; val.tile sets the tiles",
    "RealESRNetModel": _TWO_STAGES,
    "RealESRGANModel": _TWO_STAGES,
    "*GAN*": _GAN,
    "EDVRModel": _ONE_NETWORK,
    "Video*": _ONE_NETWORK,
}
_DATASETS_INSTEAD = {
    "SingleImageDataset": "it has no targets to compare with; restore it: vheatir restore IN -o OUT --weights FILE",
    "RealESRGANDataset": _TWO_STAGES,
    "RealESRGANPairedDataset": "write PairedDataset, with meta_info_file or without",
    "Dataset_PairedImage": "write PairedDataset",
    "Dataset_GaussianDenoising": "write GaussianNoiseDataset with sigma: 25, [15, 25, 50] or {min: 0, max: 50}",
    "FFHQDataset": _ONE_NETWORK,
    "*REDS*": _ONE_NETWORK,
    "*Vimeo*": _ONE_NETWORK,
    "Video*": _ONE_NETWORK,
}
_OF_TWO_STAGES = [
    "resize_prob*",
    "resize_range*",
    "gaussian_noise_prob*",
    "noise_range*",
    "poisson_scale_range*",
    "gray_noise_prob*",
    "jpeg_range*",
    "second_blur_prob",
    "gt_usm",
    "*_gt_usm",
    "queue_size",
    "high_order_degradation",
    "gt_size",
    "datasets.*.blur_kernel_size*",
    "datasets.*.kernel_list*",
    "datasets.*.kernel_prob*",
    "datasets.*.sinc_prob*",
    "datasets.*.gt_usm",
    "datasets.*.final_sinc_prob",
    "datasets.*.blur_sigma*",
    "datasets.*.betag_range*",
    "datasets.*.betap_range*",
]
# Patterns of keys, and what to write instead.
_KEYS = {
    **dict.fromkeys(_OF_TWO_STAGES, _TWO_STAGES),
    "network_d": _GAN,
    "path.pretrain_network_d": _GAN,
    "path.*_d": _GAN,
    "path.resume_state": "`vheatir train --resume` goes on from the run's newest checkpoint; with a .state file of "
    "BasicSR's loop it is: python -m vheatir.basicsr train -opt FILE --auto_resume",
    "path.ignore_resume_networks": "there is one network; leave it out",
    "path.pretrain_model_g": "write path.pretrain_network_g",
    "path.strict_load": "write path.strict_load_g",
    "train.optim_d": _GAN,
    "train.gan_opt": _GAN,
    "train.net_d_*": _GAN,
    "train.perceptual_opt": f"losses here are pixel_opt and consistency_opt; leave it out, or: {_OWN_LOOP}",
    "train.use_grad_clip": "write train.grad_clip: 0.01, the largest norm of the gradient",
    "train.mixing_augs": "write train.mixup: {beta: 1.2, probability: 0.5}",
    "datasets.*.prefetch_mode": "leave it ~: loader processes fetch ahead, and pinned memory is automatic",
    "datasets.*.num_prefetch_queue": "leave it out: loader processes fetch ahead",
    "datasets.*.color": "write network_g.in_chans: 1 for gray images (OpenCV's full-range gray, not Y of YCbCr)",
    "datasets.*.mean": _RAW_PLANES,
    "datasets.*.std": _RAW_PLANES,
    "datasets.*.meta_info": "write meta_info_file",
    "datasets.*.use_flip": "write use_hflip",
    "datasets.*.geometric_augs": "write augment",
    "datasets.*.iters": _PROGRESSIVE,
    "datasets.*.gt_sizes": _PROGRESSIVE,
    "datasets.*.mini_batch_sizes": _PROGRESSIVE,
    "datasets.*.sigma_*": "write sigma: 25, [15, 25, 50] or {min: 0, max: 50}",
    "val.window_size": "networks pad by themselves; leave it out",
    "val.use_image": "metrics are those of 8-bit images; leave it out",
    "val.rgb2bgr": "leave it out",
    "val.max_minibatch": "write val.tile",
    "tile": "write val.tile, the side of the tiles in pixels",
}
_SCHEDULERS = {
    "CosineAnnealingRestartCyclicLR": "write CosineAnnealingRestartLR, whose eta_min is one number for all periods",
    "TrueCosineAnnealingLR": "write CosineAnnealingLR",
}


def adopt(path: Path, options: dict[str, Any]) -> None:
    """Replace BasicSR's names by ours, in place.

    Args:
        path: the file, for messages.
        options: its table; sections of a wrong kind are left to who reads them.

    Raises:
        UserError: keys and types without a meaning here, all of them, with what to write instead.
    """
    _drop_what_holds_anyway(options)
    problems = [f"{path}: {key}: {instead}" for key, instead in _problems(options)]
    if problems:
        raise UserError("\n".join(problems))
    if options.get("model_type") in ("SRModel", "SwinIRModel"):
        options["model_type"] = "VHeatIRModel"
    _adopt_swinir(options.get("network_g"))
    for dataset in _tables(options.get("datasets")).values():
        kind = dataset.get("type")
        if isinstance(kind, str):
            dataset["type"] = _DATASETS.get(kind, kind)


def _adopt_swinir(network: Any) -> None:
    """SwinIR at the size of its input becomes the one that pads to its windows by itself; weights fit both."""
    if not isinstance(network, dict) or network.get("type") != "SwinIR" or network.get("upsampler"):
        return
    if network.get("upscale", 1) == 1:
        network["type"] = "AnySizeSwinIR"
        for key in ("upscale", "upsampler"):
            network.pop(key, None)


def _tables(section: Any) -> dict[str, dict]:
    """The tables in a section, by name."""
    items = section.items() if isinstance(section, Mapping) else ()
    return {str(name): table for name, table in items if isinstance(table, dict)}


def _drop_what_holds_anyway(options: dict[str, Any]) -> None:
    """Keys whose value says what `vheatir train` does in any case."""
    for phase, dataset in _tables(options.get("datasets")).items():
        for key, value in list(dataset.items()):
            holds = value is True and key in ("use_shuffle", "persistent_workers")
            if holds or (value is None and _lookup(_KEYS, f"datasets.{phase}.{key}")):
                del dataset[key]
    logger = options.get("logger")
    if isinstance(logger, dict):
        wandb = logger.get("wandb")
        if isinstance(wandb, Mapping) and wandb.get("project") is None:
            del logger["wandb"]


def _problems(options: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Keys without a meaning here, and what to write instead."""
    scale = options.get("scale")
    if isinstance(scale, int) and scale != 1:
        yield "scale", f"images are restored at their own size, so scale is 1, got {scale}; {_OWN_LOOP}"
    if instead := _lookup(_MODELS, options.get("model_type")):
        yield f"model_type {options['model_type']}", instead
    for name, table in _tables(options.get("datasets")).items():
        if instead := _lookup(_DATASETS_INSTEAD, table.get("type")):
            yield f"datasets.{name}.type {table['type']}", instead
        for key in ("use_shuffle", "persistent_workers"):
            if table.get(key) is not None:
                yield f"datasets.{name}.{key}", "leave it out: samples are shuffled, loader processes stay"
    train = options.get("train")
    scheduler = train.get("scheduler") if isinstance(train, Mapping) else None
    if isinstance(scheduler, Mapping) and (instead := _lookup(_SCHEDULERS, scheduler.get("type"))):
        yield f"train.scheduler.type {scheduler['type']}", instead
    logger = options.get("logger")
    if isinstance(logger, Mapping) and logger.get("wandb") is not None:
        yield "logger.wandb", "curves go to curves.jsonl and TensorBoard; write wandb: {project: ~}"
    yield from ((key, instead) for key in _keys(options) if (instead := _lookup(_KEYS, key)))


def _keys(options: Mapping[str, Any]) -> Iterator[str]:
    """Full names of all keys that have a value, those of sections and of datasets one by one."""
    for key, value in options.items():
        if key == "datasets":
            yield from (f"datasets.{phase}.{name}" for phase, table in _tables(value).items() for name in _given(table))
        elif key in ("path", "train", "val") and isinstance(value, Mapping):
            yield from (f"{key}.{name}" for name in _given(value))
        elif value is not None:
            yield str(key)


def _given(table: Mapping[str, Any]) -> list[str]:
    return [str(name) for name, value in table.items() if value is not None]


def _lookup(table: Mapping[str, str], name: Any) -> str | None:
    """What to write instead of a name; None where nothing is wrong with it."""
    return next((instead for pattern, instead in table.items() if fnmatchcase(str(name), pattern)), None)
