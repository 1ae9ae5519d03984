"""What the options of training do: optimizers, schedules, clipping, accumulation, precision, starting weights."""

import json

import pytest
import torch

from vheatir import weights
from vheatir.archs.vheatir_arch import VHeatIR
from vheatir.backbone.training.precision import autocast_dtype
from vheatir.errors import UserError


@pytest.mark.parametrize(
    "optimizer",
    ["{type: AdamW, lr: 1e-3, weight_decay: 1e-2, betas: [0.9, 0.99]}", "{type: SGD, lr: 1e-2, momentum: 0.9}"],
)
def test_optimizers_of_torch(train, optimizer):
    moved = train.state(train(f"train.optim_g={optimizer}", name="a"))["network"]["freq_embed"]
    assert not torch.equal(moved, train.state(train(name="b"))["network"]["freq_embed"])


def rates(train, folder):
    return {point["iteration"]: point["train/lr"] for point in train.curves(folder) if "train/lr" in point}


@pytest.mark.parametrize(
    "scheduler, want",
    [
        ("{type: MultiStepLR, milestones: [6, 9], gamma: 0.5}", {2: 1, 6: 1, 8: 0.5, 10: 0.25}),
        ("{type: StepLR, step_size: 5, gamma: 0.1}", {4: 1, 6: 0.1, 12: 0.01}),
        ("{type: CosineAnnealingLR, T_max: 11}", {2: 0.9797, 12: 0.0}),
        ("{type: CosineAnnealingRestartLR, periods: [12]}", {2: 0.9830, 12: 0.0170}),
        ("{type: ConstantLR, factor: 1.0, total_iters: 1}", {2: 1, 12: 1}),
        ("{type: OneCycleLR, max_lr: 2e-3, total_steps: 13, pct_start: 0.5}", {6: 0.9806, 12: 0.0573}),
    ],
)
def test_schedules(train, scheduler, want):
    folder = train(f"train.scheduler={scheduler}", "train.warmup_iter=-1", "val.val_freq=12")
    assert {i: rates(train, folder)[i] / 2e-3 for i in want} == pytest.approx(want, abs=0.02)


@pytest.mark.parametrize("scheduler", ["{type: StepLR, step_size: 100}", "{type: MultiStepLR, milestones: [100]}"])
def test_rate_after_warm_up_is_the_whole_rate(train, scheduler):
    """Schedules that go on from the last rate would stay below it for ever."""
    folder = train(f"train.scheduler={scheduler}", "train.warmup_iter=4", "logger.print_freq=1")
    assert rates(train, folder) == pytest.approx({i: 2e-3 * min(i / 4, 1) for i in range(1, 13)})


@pytest.mark.parametrize("loss", ["{type: L1Loss}", "{type: L1Loss, reduction: sum, loss_weight: 1e-3}"])
def test_accumulation_equals_one_batch(train, loss):
    folders = [
        train(
            f"train.accumulate={parts}",
            "datasets.train.batch_size_per_gpu=5",
            f"train.pixel_opt={loss}",
            name=f"n{parts}",
        )
        for parts in (1, 2, 5)
    ]
    want = train.state(folders[0])["network"]
    for folder in folders[1:]:
        for key, value in train.state(folder)["network"].items():
            torch.testing.assert_close(value, want[key], rtol=1e-3, atol=1e-4)
        assert train.losses(folder) == pytest.approx(train.losses(folders[0]), rel=1e-3)


def test_gradients_are_clipped(train):
    descent = ("train.optim_g={type: SGD, lr: 0.1}", "train.scheduler.gamma=1")
    free, tight = (train(f"train.grad_clip={norm}", *descent, name=f"clip{norm}") for norm in (0, 0.001))
    start = train("train.optim_g.lr=0", name="start")
    first, *others = (
        torch.cat([value.flatten() for value in train.state(folder)["network"].values()])
        for folder in (start, free, tight)
    )
    moved_free, moved_tight = ((other - first).norm() for other in others)
    assert moved_tight <= 12 * 0.1 * 0.001 * 1.001 < moved_free
    assert all(point["train/grad_norm"] > 1e-3 for point in train.curves(tight) if "train/grad_norm" in point)


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_mixed_precision_trains_close_to_full(train, amp):
    full, mixed = train(name="full"), train(f"train.amp={amp}", name="mixed")
    a, b = (train.losses(folder) for folder in (full, mixed))
    assert a == pytest.approx(b, rel=0.02) and a != b
    assert all(value.dtype == torch.float32 for value in train.state(mixed)["network"].values())


@pytest.mark.parametrize("feature", ["avx512_bf16", "amx_bf16", None])
def test_auto_takes_bf16_where_the_processor_multiplies_it(feature, monkeypatch, caplog):
    present = {"avx2": True, "avx512_bf16": False, "amx_bf16": False} | ({feature: True} if feature else {})
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: present, raising=False)
    cpu = torch.device("cpu")
    assert autocast_dtype("auto", cpu) is (torch.bfloat16 if feature else None)
    assert autocast_dtype("none", cpu) is None
    assert autocast_dtype("fp16", cpu) is torch.float16
    assert not caplog.records
    assert autocast_dtype("bf16", cpu) is torch.bfloat16  # as asked
    assert ("many times slower" in caplog.text) is (feature is None)


def test_the_log_names_the_type_of_autocast(train):
    log = (train("train.amp=bf16", "train.total_iter=1", name="narrow") / "train.log").read_text(encoding="utf-8")
    assert "on cpu in bfloat16, " in log


def test_compiled_training_keeps_the_names_of_the_weights_and_trains_alike(train, monkeypatch):
    """Dynamo and AOTAutograd as ever; the code generator, which needs a compiler and a minute, is left out."""
    compiled, compile_network = [], torch.compile

    def compiling(network):
        compiled.append(compile_network(network, backend="aot_eager"))
        return compiled[-1]

    monkeypatch.setattr(torch, "compile", compiling)
    short = ("train.total_iter=4", "val.val_freq=4")
    folder, plain = train("train.compile=true", *short, name="compiled"), train(*short, name="plain")
    assert len(compiled) == 1 and hasattr(compiled[0], "_orig_mod")
    want = train.state(plain)["network"]
    for key, value in train.state(folder)["network"].items():
        torch.testing.assert_close(value, want[key], rtol=1e-3, atol=1e-5)
    network, _ = weights.load(folder / "models" / "latest.safetensors")
    assert network.state_dict().keys() == want.keys()
    train("train.compile=true", "train.total_iter=5", name="compiled", resume=True)


def test_level_map_and_gray_train(train):
    folder = train("network_g.level_map=true", "datasets.train.level_map=true", "datasets.val.level_map=true", name="a")
    assert weights.load(folder / "models" / "best.safetensors")[0].level_map
    gray = train("network_g.in_chans=1", "network_g.downscale=2", name="b")
    assert weights.load(gray / "models" / "best.safetensors")[1]["color"] == "gray"


def test_a_half_precision_step_that_overflows_is_skipped(train, monkeypatch):
    forward, count = VHeatIR.forward, []

    def overflowing(self, image, level=None):
        y = forward(self, image, level)
        count.extend([1] * self.training)
        if self.training and len(count) == 7:
            y.register_hook(lambda grad: grad * float("inf"))
        return y

    monkeypatch.setattr(VHeatIR, "forward", overflowing)
    saved = train.state(train("train.amp=fp16"))
    assert saved["scaler"]["scale"] == 2.0**15  # halved once from 2**16
    assert all(value.isfinite().all() for value in saved["network"].values())


@pytest.mark.parametrize("form", ["safetensors", "params_ema", "params", "bare", "module."])
def test_fine_tuning_starts_from_the_weights(train, tmp_path, form):
    torch.manual_seed(5)
    network = VHeatIR(dim=8, depths=[1], embed_size=8)
    torch.nn.init.normal_(network.conv_last.weight, std=0.01)
    values = {key: value.half().float() for key, value in network.state_dict().items()}
    path = tmp_path / ("start.safetensors" if form == "safetensors" else "start.pth")
    if form == "safetensors":
        about = {"task": "denoise", "color": "color", "levels": "none", "license": "none"}
        weights.save(path, values, {**about, "config": json.dumps(network.config)})
    elif form == "module.":
        torch.save({"params": {f"module.{key}": value for key, value in values.items()}}, path)
    else:
        torch.save(values if form == "bare" else {form: values}, path)
    saved = train.state(train(f"path.pretrain_network_g={path}", "train.optim_g.lr=0"))
    for part in ("network", "network_ema"):
        for key, value in saved[part].items():
            torch.testing.assert_close(value, values[key], rtol=1e-5, atol=1e-7)


def test_fine_tuning_takes_the_part_that_is_named(train, tmp_path):
    network = VHeatIR(dim=8, depths=[1], embed_size=8)
    values = network.state_dict()
    ones = {key: torch.ones_like(value) for key, value in values.items()}
    torch.save({"params": ones, "params_ema": values}, tmp_path / "start.pth")
    start = f"path.pretrain_network_g={tmp_path / 'start.pth'}"
    saved = train.state(train(start, "path.param_key_g=params", "train.optim_g.lr=0"))
    assert (saved["network"]["freq_embed"] == 1).all()
    with pytest.raises(UserError, match="holds nothing under 'ema', but params, params_ema"):
        train(start, "path.param_key_g=ema")


def test_weights_of_another_network_are_refused_and_leave_no_run(train, tmp_path):
    torch.save({"params": VHeatIR(dim=4, depths=[1], embed_size=8).state_dict()}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"path.pretrain_network_g: .*other.pth does not fit network_g"):
        train(f"path.pretrain_network_g={tmp_path / 'other.pth'}")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("moment", ["validation", "checkpoint"])
def test_a_run_that_diverges_ends_with_advice_and_whole_checkpoints(train, tmp_path, moment):
    """A finite loss may still throw the weights out of bounds."""
    steep = ("train.optim_g={type: SGD, lr: 1e9}", "train.grad_clip=0", "train.warmup_iter=-1", "train.ema_decay=0")
    often = {"validation": "val.val_freq=1", "checkpoint": "logger.save_checkpoint_freq=1"}[moment]
    with pytest.raises(UserError, match=r"a lower learning rate, train\.grad_clip"):
        train(*steep, often, "train.pixel_opt={type: MSELoss}")
    for path in (tmp_path / "runs" / "tiny" / "checkpoints").glob("*.pt"):
        saved = torch.load(path, weights_only=True)["model"]["network"]
        assert all(value.isfinite().all() for value in saved.values())


def test_samples_that_the_network_does_not_take_fail_before_a_former_run_is_moved(train):
    train()
    before = sorted(train.root.rglob("*"))
    with pytest.raises(UserError, match=r"does not fit datasets\.train.*in_chans"):
        train("datasets.train.in_chans=1")
    assert sorted(train.root.rglob("*")) == before


@pytest.mark.parametrize(
    "change", ["train.optim_g.lr=1e-5", "train.optim_g.betas=[0.5, 0.9]", "train.scheduler.gamma=0.1"]
)
def test_resume_refuses_options_that_the_checkpoint_would_override(train, change):
    schedule = "train.scheduler={type: StepLR, step_size: 2, gamma: 0.5}"
    train(schedule)
    with pytest.raises(UserError, match=r"does not fit these options.*was"):
        train(schedule, change, resume=True)


@pytest.mark.parametrize(
    "change, message",
    [
        (
            "network_g={type: SwinIR, upscale: 1, embed_dim: 12, depths: [2, 2], num_heads: [2]}",
            "the model cannot be built from network_g and train: list index out of range",
        ),
        ("train.optim_g.betas=[0.9]", r"train\.optim_g: (list|tuple) index out of range"),
        ("train.optim_g.type=LBFGS", r"train\.optim_g\.type: LBFGS asks for the loss again"),
        ("train.optim_g.type=SparseAdam", r"train\.optim_g\.type: SparseAdam is for sparse gradients"),
        ("train.optim_g.lr=abc", r"train\.optim_g\.lr must be a number such as 2e-4, got 'abc'"),
        ("val.metrics.psnr={type: foo}", r"val\.metrics\.psnr: unknown type 'foo'; ours: vheatir_psnr"),
        (
            "val.metrics.psnr={type: vheatir_psnr, bord: 3}",
            r"val\.metrics\.psnr: unknown key bord; known: better, border, luma",
        ),
    ],
)
def test_wrong_values_name_key_and_next_step(train, change, message):
    with pytest.raises(UserError, match=message):
        train(change)
    assert not train.root.exists() or not list(train.root.iterdir())


def test_weights_of_which_nothing_fits_are_refused_and_a_part_is_told(train, tmp_path, caplog):
    """Without `strict_load_g` PyTorch takes what it finds: nothing, of a network with other names."""
    network = VHeatIR(dim=8, depths=[1], embed_size=8)
    state = network.state_dict()
    parts = {"none": {f"net.{key}": value for key, value in state.items()}}
    parts["first"] = {"conv_first.weight": torch.ones_like(state["conv_first.weight"]), "more": torch.ones(1)}
    for name, part in parts.items():
        torch.save({"params": part}, tmp_path / f"{name}.pth")
    loose = "path.strict_load_g=false"
    with pytest.raises(UserError, match=r"none.pth does not fit network_g: it has net\."):
        train(loose, f"path.pretrain_network_g={tmp_path / 'none.pth'}")
    still = (
        "train.optim_g={type: SGD, lr: 0}",
        "train.total_iter=1",
        f"path.pretrain_network_g={tmp_path / 'first.pth'}",
    )
    folder = train(loose, *still)
    assert (train.state(folder)["network"]["conv_first.weight"] == 1).all()
    assert f"{len(state) - 1} tensors not in the file" in caplog.text and "1 tensors left out (more)" in caplog.text
