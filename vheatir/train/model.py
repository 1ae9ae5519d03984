"""BasicSR's SRModel with what training on today's stack needs: mixed precision, clipping, accumulation, safetensors."""

import inspect
import warnings
from collections import OrderedDict
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from basicsr.losses import build_loss
from basicsr.metrics import calculate_metric
from basicsr.models.sr_model import SRModel
from basicsr.utils.registry import METRIC_REGISTRY
from torch import nn

from vheatir import weights
from vheatir.archs.networks import config_from_state_dict, gray_from_color, name_of
from vheatir.backbone.layers.freezing import frozen
from vheatir.backbone.training.precision import autocast_dtype
from vheatir.backbone.training.processes import Processes
from vheatir.data.batch_degradations import finish_batch, mixup
from vheatir.errors import UserError
from vheatir.metrics.batched import batch_psnr_ssim
from vheatir.metrics.fidelity import WINDOW
from vheatir.restore.tiling import check_tile
from vheatir.train.validation import validate

_MOVING = {"last_epoch", "_step_count", "_last_lr", "_get_lr_called_within_step", "_is_initial", "_initial_step"}
_MOVING |= {"T_cur", "T_i", "_schedulers"}  # what schedules change as they go; the rest comes from the options
_OUR_METRICS, _METRIC_ARGUMENTS = ("psnr", "ssim", "psnrb"), ("border", "luma")


class VHeatIRModel(SRModel):
    """Training and validation of a restoration network under BasicSR's options.

    Beyond SRModel: `train.amp` auto | none | bf16 | fp16, `train.grad_clip` (norm), `train.accumulate` (parts of a
    batch), `train.compile`, any optimiser of `torch.optim`, any scheduler of `torch.optim.lr_scheduler`, EMA of buffers
    too, a `level` input, fine-tuning from safetensors, `train.mixup`, `train.consistency_opt` (JPEG consistency loss),
    steps that the training set leaves to the device, and a loss that is not finite ends the run.
    """

    def __init__(self, opt: dict[str, Any]):
        self.processes = Processes()
        super().__init__(opt)
        self.metrics = {
            name: partial(_metric, dict(arguments)) for name, arguments in (opt["val"].get("metrics") or {}).items()
        }
        try:
            check_tile(opt["val"].get("tile") or 0, 0)
        except ValueError as error:
            raise UserError(f"val.tile: {error}") from error
        picture = np.zeros((32, 32), np.uint8)
        for name, metric in self.metrics.items():
            _check_metric(f"val.metrics.{name}", opt["val"]["metrics"][name])
            try:
                metric(picture, picture)
            except (KeyError, TypeError, ValueError) as error:
                raise UserError(f"val.metrics.{name}: {error}") from error

    def model_to_device(self, net: nn.Module) -> nn.Module:
        if self.opt["dist"] and self.device.type == "cuda":  # there is none for CPUs
            net = nn.SyncBatchNorm.convert_sync_batchnorm(net)
        return net.to(self.device)

    def print_network(self, net: nn.Module) -> None:
        """Nothing: the training command logs size and configuration in one line."""

    def load_network(self, net: nn.Module, load_path: str, strict: bool = True, param_key: str = "params") -> None:
        """Load safetensors (path or shipped name) or a BasicSR checkpoint, never running code from it.

        A gray network of ours also starts from the weights of a colour one (`gray_from_color`).
        """
        if Path(load_path).suffix in (".pth", ".pt"):
            state, _ = weights.load_checkpoint(load_path, self.opt["path"].get("param_key_g"))
        else:
            state, _ = weights.read(load_path)
        net = self.get_bare_model(net)
        try:
            gray = name_of(net) is not None and net.config["in_chans"] == 1
            if gray and config_from_state_dict(state)[1]["in_chans"] == 3:
                state = gray_from_color(state)
            net.load_state_dict(state, strict=strict)
        except (RuntimeError, ValueError) as error:
            raise UserError(f"path.pretrain_network_g: {load_path} does not fit network_g: {error}") from error

    def init_training_settings(self) -> None:
        options = self.opt["train"]
        self.amp_dtype = autocast_dtype(options.get("amp") or "none", self.device)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.amp_dtype is torch.float16)
        self.grad_clip, self.accumulate = options.get("grad_clip") or 0.0, options.get("accumulate") or 1
        if options["pixel_opt"].get("reduction", "mean") not in ("mean", "sum"):
            raise UserError(f"train.pixel_opt.reduction must be mean or sum, got {options['pixel_opt']['reduction']!r}")
        super().init_training_settings()
        self.mixup, consistency = options.get("mixup"), options.get("consistency_opt")
        self.cri_consistency = build_loss(consistency) if consistency else None
        self._compile()

    def _compile(self) -> None:
        self.forward_g = torch.compile(self.net_g) if self.opt["train"].get("compile") else self.net_g

    def distribute(self, processes: Processes) -> None:
        """Train together with other processes: gradients are averaged, and all start with the first one's network."""
        if processes.world == 1:
            return
        self.processes = processes
        # Those of depthwise kernels, of which one axis has length 1 and so any stride.
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        wrapper, on_gpu = nn.parallel.DistributedDataParallel, self.device.type == "cuda"
        is_new = "forward_sync_buffers" in inspect.signature(wrapper).parameters  # torch 2.15
        self.net_g = wrapper(
            self.net_g,
            device_ids=[torch.cuda.current_device()] if on_gpu else None,
            # Statistics are averaged after the step instead, before anything reads them.
            **{"forward_sync_buffers" if is_new else "broadcast_buffers": False},
            find_unused_parameters=self.opt.get("find_unused_parameters", False),
        )
        self._compile()

    def get_optimizer(self, optim_type: str, params: list, lr: float, **kwargs: Any) -> torch.optim.Optimizer:
        kind = getattr(torch.optim, optim_type, None)
        if not (isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)):
            raise UserError(f"train.optim_g.type: torch.optim has no optimiser {optim_type!r}; for example Adam, AdamW")
        if isinstance(lr, bool) or not isinstance(lr, int | float):
            raise UserError(f"train.optim_g.lr must be a number such as 2e-4, got {lr!r}")
        try:
            return kind(params, lr=lr, **kwargs)
        except (TypeError, ValueError) as error:
            raise UserError(f"train.optim_g: {error}") from error

    def setup_schedulers(self) -> None:
        options = self.opt["train"]["scheduler"]
        if options["type"] in ("MultiStepLR", "MultiStepRestartLR", "CosineAnnealingRestartLR"):
            periods, total = sum(options.get("periods") or ()), self.opt["train"]["total_iter"]
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

    def update_learning_rate(self, current_iter: int, warmup_iter: int = -1) -> None:
        """As BasicSR's, but schedules that go on from the last rate do not take warm-up's for theirs."""
        if 1 < current_iter <= warmup_iter:
            self._set_lr([scheduler.get_last_lr() for scheduler in self.schedulers])
        super().update_learning_rate(current_iter, warmup_iter)

    def feed_data(self, data: dict[str, Any]) -> None:
        data = finish_batch(data, self.device)
        super().feed_data(data)
        self.level, self.passes, self.paths = data.get("level"), data.get("jpeg"), data.get("lq_path")

    def inputs(self, part: slice) -> tuple[torch.Tensor, ...]:
        """What the network takes of a part of the batch."""
        return (self.lq[part],) if self.level is None else (self.lq[part], self.level[part])

    def losses(self, output: torch.Tensor, part: slice) -> dict[str, torch.Tensor]:
        """The losses of a part of the batch, by their names in the log; over all parts they add up to the batch's."""
        share = len(output) / len(self.lq)
        is_mean = self.opt["train"]["pixel_opt"].get("reduction", "mean") == "mean"
        losses = {"l_pix": self.cri_pix(output, self.gt[part]) * (share if is_mean else self.processes.world)}
        if self.cri_consistency is not None:
            losses["l_consistency"] = self.cri_consistency(output, self.lq[part], self.passes[part]) * share
        return losses

    def optimize_parameters(self, current_iter: int) -> None:
        self.optimizer_g.zero_grad(set_to_none=True)
        if self.mixup:
            self.lq, self.gt = mixup([self.lq, self.gt], self.opt["manual_seed"], current_iter, **self.mixup)
        step = -(-len(self.lq) // self.accumulate)
        logged: dict[str, torch.Tensor] = {}
        for start in range(0, len(self.lq), step):
            part = slice(start, start + step)
            is_last = start + step >= len(self.lq)  # gradients are exchanged once
            with nullcontext() if is_last or self.processes.world == 1 else self.net_g.no_sync():
                with torch.autocast(self.device.type, dtype=self.amp_dtype, enabled=self.amp_dtype is not None):
                    output = self.forward_g(*self.inputs(part))
                # The loss in float32: 16 bits would round differences of 1e-3 away.
                losses = self.losses(output.float(), part)
                self.output, self.output_gt = output.detach().float(), self.gt[part]
                self.scaler.scale(sum(losses.values())).backward()
            for name, loss in losses.items():
                logged[name] = logged.get(name, 0) + loss.detach()
        means = self.processes.mean_(torch.stack(list(logged.values())))
        self.log_dict = OrderedDict(zip(logged, means, strict=True))
        total = means.sum()
        if not torch.isfinite(total):
            raise FloatingPointError(f"the loss is {float(total)} at iteration {current_iter}")
        self.scaler.unscale_(self.optimizer_g)
        gradients = [parameter.grad for parameter in self.net_g.parameters() if parameter.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        # Such a step would write NaN into the weights; the scaler of fp16 skips it by itself.
        if not torch.isfinite(norm) and not self.scaler.is_enabled():
            raise FloatingPointError(f"the gradient's norm is {float(norm)} at iteration {current_iter}")
        if self.grad_clip:
            nn.utils.clip_grads_with_norm_(self.net_g.parameters(), self.grad_clip, norm)
        self.log_dict["grad_norm"] = norm
        self.scaler.step(self.optimizer_g)
        self.scaler.update()
        self.processes.share_statistics(self.get_bare_model(self.net_g))
        if self.ema_decay > 0:
            # A young average follows quickly: at iteration 100 a decay of 0.999 would still be the untrained start.
            self.model_ema(decay=min(self.ema_decay, (1 + current_iter) / (10 + current_iter)))

    def batch_scores(self) -> dict[str, float]:
        """Mean PSNR and SSIM of the network in training on its last batch (its last part), computed on the device."""
        if min(self.output.shape[2:]) < WINDOW:
            return {}
        psnr, ssim = batch_psnr_ssim(self.output, self.output_gt)
        return {"batch_psnr": float(psnr.mean()), "batch_ssim": float(ssim.mean())}

    def model_ema(self, decay: float = 0.999) -> None:
        """Exponential moving average of parameters; buffers are copied (stock BasicSR leaves them at their start)."""
        net = self.get_bare_model(self.net_g)
        averaged = [parameter.data for parameter in self.net_g_ema.parameters()]
        torch._foreach_lerp_(averaged, [parameter.data for parameter in net.parameters()], 1 - decay)
        for kept, buffer in zip(self.net_g_ema.buffers(), net.buffers(), strict=True):
            kept.copy_(buffer)

    def network_for_test(self) -> nn.Module:
        """The network that is validated and published: the average where there is one."""
        return getattr(self, "net_g_ema", self.get_bare_model(self.net_g))

    def validate(self, dataset, save_dir: Path | None = None, on_image=None) -> dict[str, Any]:
        """Scores of the network on a dataset, as `vheatir.train.validation.validate` returns them."""
        options = self.opt["val"]
        with frozen(self.network_for_test()) as network:
            return validate(
                network,
                dataset,
                self.metrics,
                device=self.device,
                tile=options.get("tile"),
                ensemble=options.get("self_ensemble", False),
                max_images=options.get("max_images"),
                save_dir=save_dir,
                on_image=on_image,
                processes=self.processes,
            )

    def state(self) -> dict[str, Any]:
        """Everything a resumed run needs of the model."""
        state = {
            "network": self.get_bare_model(self.net_g).state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "schedulers": [dict(scheduler.state_dict()) for scheduler in self.schedulers],
            "scaler": self.scaler.state_dict(),
        }
        if self.ema_decay > 0:
            state["network_ema"] = self.net_g_ema.state_dict()
        return state

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        self.get_bare_model(self.net_g).load_state_dict(state["network"])
        if self.ema_decay > 0:
            self.net_g_ema.load_state_dict(state.get("network_ema", state["network"]))
        cycled = any(saved.get("cycle_momentum") for saved in state["schedulers"])
        moving = {"lr", "betas", "momentum"} if cycled else {"lr"}
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            # torch would load the state of another optimiser without complaint, and stumble over it later
            if saved["param_groups"][0].keys() != optimizer.state_dict()["param_groups"][0].keys():
                raise ValueError("it was written with another optim_g.type or scheduler.type")
            _refuse_changes("optim_g", saved["param_groups"][0], optimizer.state_dict()["param_groups"][0], moving)
            optimizer.load_state_dict(saved)
        for scheduler, saved in zip(self.schedulers, state["schedulers"], strict=True):
            if saved.keys() != scheduler.state_dict().keys():
                raise ValueError("it was written with another scheduler.type")
            _refuse_changes("scheduler", saved, scheduler.state_dict(), _MOVING)
            scheduler.load_state_dict(saved)
        self.scaler.load_state_dict(state["scaler"])


def _refuse_changes(section: str, saved: dict[str, Any], built: dict[str, Any], moving: set[str]) -> None:
    """Raise ValueError where options differ from those of the checkpoint, which would silently win."""
    for key, value in saved.items():
        if key not in moving and isinstance(value, int | float | list | tuple | dict) and value != built[key]:
            raise ValueError(f"train.{section}: {key} was {value}, is now {built[key]}")


def _check_metric(where: str, table: dict[str, Any]) -> None:
    """Refuse an unknown type, or for our metrics an argument that they do not take."""
    kind = table.get("type")
    if kind not in METRIC_REGISTRY:
        ours = ", ".join(f"vheatir_{name}" for name in _OUR_METRICS)
        raise UserError(f"{where}: unknown type {kind!r}; ours: {ours}")
    unknown = sorted(set(table) - {"type", *_METRIC_ARGUMENTS}) if str(kind).startswith("vheatir_") else []
    if unknown:
        raise UserError(f"{where}: unknown key {unknown[0]}; known: {', '.join(_METRIC_ARGUMENTS)}")


def _metric(arguments: dict[str, Any], restored, target) -> float:
    return calculate_metric({"img": restored, "img2": target}, dict(arguments))
