"""BasicSR's SRModel with what training on today's stack needs: mixed precision, clipping, accumulation, safetensors."""

import logging
from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from basicsr.losses import build_loss
from basicsr.metrics import calculate_metric
from basicsr.models.sr_model import SRModel
from basicsr.utils.registry import METRIC_REGISTRY
from torch import Tensor, distributed, nn
from tqdm import tqdm

from vheatir import weights
from vheatir.archs.base import RestorationNetwork
from vheatir.archs.networks import adapted
from vheatir.backbone.layers.freezing import frozen
from vheatir.backbone.training.average import Average
from vheatir.backbone.training.batches import mixed, seed_all
from vheatir.backbone.training.precision import autocast_dtype
from vheatir.backbone.training.processes import Processes
from vheatir.backbone.training.update import Update
from vheatir.data.batch_degradations import finish_batch, mixup
from vheatir.errors import UserError
from vheatir.metrics.batched import batch_psnr_ssim
from vheatir.metrics.fidelity import WINDOW
from vheatir.restore.tiling import check_tile
from vheatir.train.options import known_arguments
from vheatir.train.validation import bgr_or_gray, of_inputs, restore_planes, validate
from vheatir.utils.files import atomic_open

_OUR_METRICS = ("psnr", "ssim", "psnrb")
_UNFIT = {
    "LBFGS": "asks for the loss again within a step, which batches are not kept for",
    "SparseAdam": "is for sparse gradients, which no network here has",
}
_logger = logging.getLogger("vheatir")


class VHeatIRModel(SRModel):
    """A restoration network under BasicSR's options, with its losses, optimizer, schedules and metrics.

    The training loop of `vheatir train` takes its parts (see `RestorationTask`). BasicSR's own loop can drive it too,
    through `feed_data`, `update_learning_rate`, `optimize_parameters`, `validation`, `save` and `resume_training`; both
    ways each step is the same `Update`.

    Beyond SRModel: `train.amp` auto | none | bf16 | fp16, `train.grad_clip` (norm), `train.accumulate` (parts of a
    batch), `train.compile`, any optimizer of `torch.optim`, any scheduler of `torch.optim.lr_scheduler`, EMA of buffers
    too, a `level` input, fine-tuning from safetensors, `train.mixup`, `train.consistency_opt` (JPEG consistency loss),
    steps that the training set leaves to the device, and a loss that is not finite ends the run.
    """

    def __init__(self, opt: dict[str, Any]):
        self.processes = Processes()
        if opt.get("scale", 1) != 1:
            raise UserError(
                f"scale: VHeatIRModel restores images at their own size, got {opt['scale']}; write scale: 1"
            )
        if not opt["is_train"]:
            opt["network_g"] = weights.configured(opt["network_g"], opt["path"].get("pretrain_network_g"))
        super().__init__(opt)
        if opt.get("dist") and distributed.is_initialized():  # BasicSR's own loop says no more than that
            self.join(Processes(distributed.get_rank(), distributed.get_world_size()))
            self._start_alike()
        self.metrics = {
            name: partial(_metric, dict(arguments)) for name, arguments in (opt["val"].get("metrics") or {}).items()
        }
        try:
            check_tile(opt["val"].get("tile") or 0, 0)
        except ValueError as error:
            raise UserError(f"val.tile: {error}") from error
        image = np.random.default_rng(0).integers(0, 256, (192, 192), np.uint8)  # NIQE needs two blocks of 96
        for name, metric in self.metrics.items():
            _check_metric(f"val.metrics.{name}", opt["val"]["metrics"][name])
            try:
                metric(image, image)
            except (KeyError, TypeError, ValueError) as error:
                raise UserError(f"val.metrics.{name}: {error}") from error

    def join(self, processes: Processes) -> None:
        """Train and validate together with other processes: gradients are averaged, images are shared out."""
        self.processes = processes
        if self.is_train:
            self.update.processes = processes

    def _start_alike(self) -> None:
        """BasicSR seeds each process differently: all start with the first one's network, and so with its average."""
        for network in (self.get_bare_model(self.net_g), getattr(self, "net_g_ema", None)):
            for tensor in () if network is None else network.state_dict().values():
                distributed.broadcast(tensor, 0)

    def model_to_device(self, net: nn.Module) -> nn.Module:
        """The network on its device, norms shared between processes on GPUs; `Update` wraps it for several."""
        world = self.opt.get("world_size", 1) if self.opt["dist"] else 1
        return Processes(world=world).with_shared_norms(net, self.device).to(self.device)

    def print_network(self, net: nn.Module) -> None:
        """Nothing: the training command logs size and configuration in one line."""

    def load_network(self, net: nn.Module, load_path: str, strict: bool = True, param_key: str = "params") -> None:
        """Load safetensors (path or shipped name) or a BasicSR checkpoint, never running code from it.

        A gray network of ours also starts from the weights of a color one, a video network from those of an image
        network.

        Args:
            net: the network, perhaps wrapped.
            load_path: file or shipped name.
            strict: keys must be the same.
            param_key: of a BasicSR checkpoint.
        """
        if Path(load_path).suffix in (".pth", ".pt"):
            is_resumed = self.opt["path"].get("resume_state")  # by BasicSR's loop: the network and its average differ
            key = param_key or "params" if is_resumed else self.opt["path"].get("param_key_g")
            state = self._stored(load_path, key)
        else:
            state, _ = weights.read(load_path)
        net = self.get_bare_model(net)
        try:
            if isinstance(net, RestorationNetwork):
                state = adapted(net, state)
            own = set(net.state_dict())
            if not own & state.keys():  # without `strict`, PyTorch would load nothing and say nothing
                raise ValueError(f"it has {min(state)} and {len(state) - 1} more, the network none of them")
            net.load_state_dict(state, strict=strict)
        except (RuntimeError, ValueError) as error:
            raise UserError(f"path.pretrain_network_g: {load_path} does not fit network_g: {error}") from error
        for what, names in (("not in the file, as they were", own - state.keys()), ("left out", state.keys() - own)):
            if names:
                text = "path.pretrain_network_g: %s: %d tensors %s (%s)"
                _logger.warning(text, load_path, len(names), what, ", ".join(sorted(names)[:5]))

    @staticmethod
    def _stored(path: str, key: str | None) -> dict[str, Tensor]:
        """The weights of a .pth file; without an average, as BasicSR has it, the weights themselves."""
        try:
            return weights.load_checkpoint(path, key)[0]
        except UserError:
            if key != "params_ema":
                raise
        state, _ = weights.load_checkpoint(path, "params")
        _logger.warning("%s holds nothing under params_ema: params taken", path)
        return state

    def init_training_settings(self) -> None:
        options = self.opt["train"]
        self.amp_dtype = autocast_dtype(options.get("amp") or "none", self.device)
        self.accumulate = options.get("accumulate") or 1
        if options["pixel_opt"].get("reduction", "mean") not in ("mean", "sum"):
            raise UserError(f"train.pixel_opt.reduction must be mean or sum, got {options['pixel_opt']['reduction']!r}")
        super().init_training_settings()
        self.mixup = options.get("mixup")
        consistency = options.get("consistency_opt")
        self.cri_consistency = build_loss(consistency) if consistency else None
        average = None
        if self.ema_decay > 0:
            average = Average(self.net_g, self.ema_decay, network_average=self.net_g_ema)
        self.update = Update(
            self.net_g,
            self.optimizer_g,
            dtype=self.amp_dtype,
            grad_clip=options.get("grad_clip"),
            average=average,
            compile_network=bool(options.get("compile")),
            check_each=True,
            mean_statistics=True,
            unit="iteration",
            find_unused=bool(self.opt.get("find_unused_parameters")),
            section="train.optim_g",
            schedulers=self.schedulers,
        )

    def get_optimizer(self, optim_type: str, params: list, lr: float, **kwargs: Any) -> torch.optim.Optimizer:
        kind = getattr(torch.optim, optim_type, None)
        if not (isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)):
            raise UserError(f"train.optim_g.type: torch.optim has no optimizer {optim_type!r}; for example Adam, AdamW")
        if optim_type in _UNFIT:
            raise UserError(f"train.optim_g.type: {optim_type} {_UNFIT[optim_type]}; take another, for example AdamW")
        if isinstance(lr, bool) or not isinstance(lr, int | float):
            raise UserError(f"train.optim_g.lr must be a number such as 2e-4, got {lr!r}")
        if kind in (torch.optim.Adam, torch.optim.AdamW) and "foreach" not in kwargs and self.device.type == "cpu":
            kwargs.setdefault("fused", True)  # else every parameter is updated in ten passes, 4 % of a light step
        try:
            return kind(params, lr=lr, **kwargs)
        except (TypeError, ValueError, IndexError) as error:
            raise UserError(f"train.optim_g: {error}") from error

    def setup_schedulers(self) -> None:
        options = self.opt["train"]["scheduler"]
        if options["type"] in ("MultiStepLR", "MultiStepRestartLR", "CosineAnnealingRestartLR"):
            periods = sum(options.get("periods") or ())
            total = self.opt["train"]["total_iter"]
            if options["type"] == "CosineAnnealingRestartLR" and periods < total:
                raise UserError(f"train.scheduler.periods add up to {periods}, train.total_iter is {total}; raise them")
            super().setup_schedulers()
            return
        arguments = {key: value for key, value in options.items() if key != "type"}
        kind = getattr(torch.optim.lr_scheduler, options["type"], None)
        known = isinstance(kind, type) and issubclass(kind, torch.optim.lr_scheduler.LRScheduler)
        if not known or kind is torch.optim.lr_scheduler.ReduceLROnPlateau:
            raise UserError(
                f"train.scheduler.type: torch.optim.lr_scheduler has no schedule over iterations {options['type']!r}; "
                "for example CosineAnnealingRestartLR, MultiStepLR, OneCycleLR"
            )
        try:
            self.schedulers = [kind(optimizer, **arguments) for optimizer in self.optimizers]
        except (TypeError, ValueError) as error:
            raise UserError(f"train.scheduler: {error}") from error
        total = self.opt["train"]["total_iter"]
        for scheduler in self.schedulers:  # OneCycleLR refuses steps beyond its last one, amid the training
            steps = getattr(scheduler, "total_steps", total)
            if steps < total:
                raise UserError(f"train.scheduler ends after {steps} iterations, train.total_iter is {total}; raise it")

    def update_learning_rate(self, current_iter: int, warmup_iter: int = -1) -> None:
        """As BasicSR's, but schedules that go on from the last rate do not take warm-up's for theirs."""
        if 1 < current_iter <= warmup_iter:
            self._set_lr([scheduler.get_last_lr() for scheduler in self.schedulers])
        super().update_learning_rate(current_iter, warmup_iter)

    def feed_data(self, data: dict[str, Any]) -> None:
        data = finish_batch(data, self.device)
        super().feed_data(data)
        self.level = data.get("level")
        self.passes = data.get("jpeg")
        self.paths = data.get("lq_path")

    def inputs(self, part: slice) -> tuple[torch.Tensor, ...]:
        """What the network takes of a part of the batch."""
        return (self.lq[part],) if self.level is None else (self.lq[part], self.level[part])

    def losses(self, output: Tensor, part: slice) -> dict[str, Tensor]:
        """The losses of a part of the batch, by their names in the log; over all parts they add up to the batch's."""
        share = len(output) / len(self.lq)
        is_mean = self.opt["train"]["pixel_opt"].get("reduction", "mean") == "mean"
        losses = {"l_pix": self.cri_pix(output, self.gt[part]) * (share if is_mean else self.processes.world)}
        if self.cri_consistency is not None:
            losses["l_consistency"] = self.cri_consistency(output, self.lq[part], self.passes[part]) * share
        return losses

    def parts(self, iteration: int) -> Sequence[slice]:
        """The batch that was fed, mixed where options say so, in the parts of one forward pass each."""
        if self.mixup:
            self.lq, self.gt = mixup([self.lq, self.gt], self.opt["manual_seed"], iteration, **self.mixup)
        step = -(-len(self.lq) // self.accumulate)
        return [slice(start, start + step) for start in range(0, len(self.lq), step)]

    def part_loss(self, network: nn.Module, part: slice) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of the losses of a part of the batch, and each of them."""
        output = network(*self.inputs(part))
        # The loss in float32: 16 bits would round differences of 1e-3 away.
        with torch.autocast(self.device.type, enabled=False):
            losses = self.losses(output.float(), part)
        self.output = output.detach().float()
        self.output_gt = self.gt[part]
        return sum(losses.values()), losses

    def optimize_parameters(self, current_iter: int) -> None:
        """One step on the batch that was fed, as BasicSR's own loop asks for it.

        Raises:
            UserError: loss or gradient is not finite; the weights are as they were.
        """
        self.update.bare.train()
        # As in our loop: what the step draws is a function of seed, iteration and process.
        seed = mixed(self.opt["manual_seed"], current_iter - 1, 0, self.processes.rank)
        seed_all(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)
        parts = self.parts(current_iter)
        marked = ((part, part is parts[-1]) for part in parts)
        try:
            values = self.update.step(marked, self.part_loss, current_iter)
        except FloatingPointError as error:
            paths = ", ".join(self.paths or ())
            raise UserError(
                f"{error}, images {paths}; a lower learning rate, train.grad_clip or train.amp: none may help"
            ) from error
        self.log_dict = OrderedDict((name, float(value)) for name, (value,) in values.items() if name != "loss")

    def batch_scores(self) -> dict[str, float]:
        """Mean PSNR and SSIM of the network in training on its last batch (its last part), computed on the device."""
        if min(self.output.shape[2:]) < WINDOW:
            return {}
        psnr, ssim = batch_psnr_ssim(self.output, self.output_gt)
        return {"batch_psnr": float(psnr.mean()), "batch_ssim": float(ssim.mean())}

    def model_ema(self, decay: float = 0.999) -> None:
        """Take the network into its average with this decay; BasicSR copies it so before training."""
        Average(self.net_g, decay, young=None, network_average=self.net_g_ema).update(self.net_g, 2)

    def network_for_test(self) -> nn.Module:
        """The network that is validated and published: the average where there is one."""
        return getattr(self, "net_g_ema", self.get_bare_model(self.net_g))

    def validate(
        self, dataset, save_dir: Path | None = None, on_image=None, save_as: str = "{name}.png"
    ) -> dict[str, Any]:
        """Scores of the network on a dataset, see `vheatir.train.validation.validate`; a bar with `val.pbar`.

        Args:
            dataset: in its val or test phase.
            save_dir: write restored images there.
            on_image: called with (images done, images in all).
            save_as: path of a restored image below `save_dir`, with {name} for that of the input.
        """
        options = self.opt["val"]
        silent = not options.get("pbar") or on_image is not None or not self.processes.writes
        with frozen(self.network_for_test()) as network, tqdm(unit="image", disable=silent or None) as bar:

            def advance(done: int, total: int) -> None:
                bar.total = total
                bar.update()

            return validate(
                network,
                dataset,
                self.metrics,
                device=self.device,
                tile=options.get("tile"),
                ensemble=options.get("self_ensemble", False),
                max_images=options.get("max_images"),
                save_dir=save_dir,
                save_as=save_as,
                on_image=on_image or advance,
                processes=self.processes,
                inputs=of_inputs(options.get("metrics") or {}),
            )

    def test(self) -> None:
        """Restore the images that were fed, in the way of `val`, into `output`."""
        options = self.opt["val"]
        with frozen(self.network_for_test()) as network:
            tile = options.get("tile")
            ensemble = options.get("self_ensemble", False)
            self.output = restore_planes(network, self.lq, self.level, tile, ensemble)

    def nondist_validation(self, dataloader, current_iter: int | str, tb_logger, save_img: bool) -> None:
        """Scores of a validation set, kept, logged and named as BasicSR does, by the protocol of `validate`.

        Its test pipeline gives the run's name for the iteration.

        Args:
            dataloader: of the set.
            current_iter: iteration, or the run's name.
            tb_logger: TensorBoard writer, or None.
            save_img: write the restored images.
        """
        dataset = dataloader.dataset
        name = dataset.opt.get("name", "val")
        folder = Path(self.opt["path"]["visualization"]) if save_img else None
        place = f"{{name}}/{{name}}_{current_iter}.png"
        if not self.is_train:
            place = f"{name}/{{name}}_{self.opt['val'].get('suffix') or self.opt['name']}.png"
        result = self.validate(dataset, folder, save_as=place)
        if self.opt["val"].get("metrics") is None or not self.processes.writes:
            return
        self._initialize_best_metric_results(name)
        self.metric_results = result["restored"]
        for metric, value in self.metric_results.items():
            self._update_best_metric_result(name, metric, value, current_iter)
        self._log_validation_metric_values(current_iter, name, tb_logger)

    def dist_validation(self, dataloader, current_iter: int, tb_logger, save_img: bool) -> None:
        """As in one process; the images are shared out.

        Args:
            dataloader: as in `nondist_validation`, as are the others.
            current_iter: likewise.
            tb_logger: likewise.
            save_img: likewise.
        """
        self.nondist_validation(dataloader, current_iter, tb_logger, save_img)

    def save_network(self, net, net_label: str, current_iter: int, param_key: str | list[str] = "params") -> None:
        """BasicSR's file of weights, which takes its name when it is whole.

        Args:
            net: network, or a list of them.
            net_label: beginning of the file's name.
            current_iter: iteration in it; -1 stands for the latest.
            param_key: key of the weights in the file, or one for each network.
        """
        if not self.processes.writes:
            return
        nets = net if isinstance(net, list) else [net]
        keys = param_key if isinstance(param_key, list) else [param_key]
        states = {key: self.get_bare_model(one).state_dict() for key, one in zip(keys, nets, strict=True)}
        content = {key: {name: value.cpu() for name, value in state.items()} for key, state in states.items()}
        which = "latest" if current_iter == -1 else current_iter
        with atomic_open(Path(self.opt["path"]["models"]) / f"{net_label}_{which}.pth") as file:
            torch.save(content, file)

    def save_training_state(self, epoch: int, current_iter: int) -> None:
        """BasicSR's file of optimizer and schedules, with the scale of fp16; -1, the end of a run, writes none."""
        if current_iter == -1 or not self.processes.writes:
            return
        state = {"epoch": epoch, "iter": current_iter, "scaler": self.update.scaler.state_dict()}
        state["optimizers"] = [optimizer.state_dict() for optimizer in self.optimizers]
        state["schedulers"] = [dict(scheduler.state_dict()) for scheduler in self.schedulers]
        with atomic_open(Path(self.opt["path"]["training_states"]) / f"{current_iter}.state") as file:
            torch.save(state, file)

    def resume_training(self, resume_state: dict[str, Any]) -> None:
        """Go on from BasicSR's file of optimizer and schedules; the weights come by `path.pretrain_network_g`."""
        super().resume_training(resume_state)
        if scaler := resume_state.get("scaler"):  # none, or empty, where the run had no fp16 until now
            self.update.scaler.load_state_dict(scaler)


def _check_metric(where: str, table: dict[str, Any]) -> None:
    """Refuse an unknown type, or arguments that it does not read."""
    kind = table.get("type")
    if kind not in METRIC_REGISTRY:
        ours = ", ".join(f"vheatir_{name}" for name in _OUR_METRICS)
        raise UserError(f"{where}: unknown type {kind!r}; ours: {ours}")
    known = known_arguments(METRIC_REGISTRY.get(kind))
    if known is None:
        return
    known = sorted({*known, "better"} - {"img", "img2"})
    if unknown := sorted(set(table) - {"type", *known}):
        raise UserError(f"{where}: unknown key {unknown[0]}; known: {', '.join(known)}")


def _metric(arguments: dict[str, Any], restored: np.ndarray, target: np.ndarray) -> float:
    """A registered metric, which takes BGR; restored, target: uint8 HWC RGB or HW."""
    images = {"img": bgr_or_gray(restored), "img2": bgr_or_gray(target)}
    return calculate_metric(images, dict(arguments))
