"""Files written for BasicSR and for projects built on it, under `vheatir train`: they run, or are refused by name."""

import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml

from vheatir.errors import UserError

pytest.importorskip("basicsr", reason="training needs BasicSR")

from vheatir import basicsr, weights
from vheatir.archs.vheatir_arch import VHeatIR
from vheatir.cli import main as vheatir
from vheatir.data.datasets import PairedDataset
from vheatir.data.sources import close_environments
from vheatir.prepare.patches import make_lmdb
from vheatir.restore.restorer import Restorer
from vheatir.train.command import main
from vheatir.train.options import meeting_port, read_options

STOCK = """
name: stock
model_type: SRModel
scale: 1
num_gpu: 0
manual_seed: 10
datasets:
  train:
    name: Pairs
    type: PairedImageDataset
    dataroot_gt: ROOT/gt
    dataroot_lq: ROOT/lq
    meta_info_file: ROOT/meta.txt
    filename_tmpl: '{}_noisy'
    io_backend:
      type: disk
    gt_size: 16
    use_hflip: true
    use_rot: true
    use_shuffle: true
    num_worker_per_gpu: 0
    batch_size_per_gpu: 2
    dataset_enlarge_ratio: 100
    prefetch_mode: ~
    pin_memory: true
    persistent_workers: WORKERS
  val:
    name: Few
    type: PairedImageDataset
    dataroot_gt: ROOT/gt
    dataroot_lq: ROOT/lq
    filename_tmpl: '{}_noisy'
    io_backend:
      type: disk
network_g:
  type: SwinIR
  in_chans: 3
  upscale: 1
  img_size: 16
  window_size: 8
  img_range: 1.
  depths: [1]
  embed_dim: 8
  num_heads: [2]
  mlp_ratio: 2
  upsampler: ''
  resi_connection: 1conv
path:
  pretrain_network_g: ~
  param_key_g: params
  strict_load_g: true
  resume_state: ~
train:
  ema_decay: 0.999
  optim_g:
    type: Adam
    lr: !!float 1e-4
    weight_decay: 0
    betas: [0.9, 0.99]
  scheduler:
    type: MultiStepLR
    milestones: [4]
    gamma: 0.5
  total_iter: 6
  warmup_iter: -1
  pixel_opt:
    type: L1Loss
    loss_weight: 1.0
    reduction: mean
val:
  val_freq: !!float 6
  save_img: true
  pbar: false
  suffix: ~
  metrics:
    psnr:
      type: calculate_psnr
      crop_border: 1
      test_y_channel: true
      better: higher
    ssim:
      type: calculate_ssim
      crop_border: 1
      test_y_channel: false
logger:
  print_freq: 2
  save_checkpoint_freq: !!float 6e0
  use_tb_logger: false
  wandb:
    project: ~
    resume_id: ~
dist_params:
  backend: nccl
  port: 29511
"""


@pytest.fixture
def pairs(tmp_path):
    """gt/ and lq/ with names that a template ties together, and a list without the last of them."""
    import skimage.data

    photo = skimage.data.astronaut()
    rng = np.random.default_rng(0)
    names = []
    for name in ("gt", "lq"):
        (tmp_path / name).mkdir()
    for number in range(4):
        clean = np.ascontiguousarray(photo[60 * number :, 90 * number :][:36, :41, ::-1])
        noisy = np.clip(clean + rng.normal(0, 20, clean.shape), 0, 255).astype(np.uint8)
        assert cv2.imwrite(str(tmp_path / "gt" / f"p{number}.png"), clean)
        assert cv2.imwrite(str(tmp_path / "lq" / f"p{number}_noisy.png"), noisy)
        names.append(f"p{number}.png (36,41,3)")
    (tmp_path / "meta.txt").write_text("\n".join(names[:3]) + "\n")
    yield tmp_path
    close_environments()


def stock(pairs: Path, *replaced: tuple[str, str]) -> Path:
    text = STOCK.replace("ROOT", str(pairs)).replace("WORKERS", "true")
    for old, new in replaced:
        assert old in text
        text = text.replace(old, new)
    path = pairs / "stock.yml"
    path.write_text(text)
    return path


def points(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "curves.jsonl").read_text().splitlines()]


def test_a_stock_file_of_pairs_trains_and_is_scored_as_basicsr_does(pairs, monkeypatch):
    """The same file through both: stock metrics agree on the same weights, Y of YCbCr included."""
    monkeypatch.chdir(pairs)
    path = stock(pairs)
    assert main(["-opt", str(path)]) == 0
    folder = pairs / "experiments" / "stock"
    resolved = yaml.safe_load((folder / "resolved.yml").read_text())
    assert (resolved["model_type"], resolved["datasets"]["train"]["type"]) == ("VHeatIRModel", "PairedDataset")
    assert resolved["val"]["val_freq"] == 6 and resolved["train"]["optim_g"]["lr"] == 1e-4
    rates = {point["iteration"]: point["train/lr"] for point in points(folder) if "train/lr" in point}
    assert rates == pytest.approx({2: 1e-4, 4: 1e-4, 6: 5e-5})
    (scores,) = [point for point in points(folder) if "val/psnr" in point]
    assert len(list((folder / "images").rglob("*.png"))) == 4

    changes = [("type: SwinIR\n", "type: AnySizeSwinIR\n"), ("  upscale: 1\n", ""), ("  upsampler: ''\n", "")]
    changes.append(("pretrain_network_g: ~", f"pretrain_network_g: {folder}/models/latest.pth"))
    text = stock(pairs, *changes).read_text()
    tested = yaml.safe_load(text.replace("!!float ", ""))
    tested["datasets"] = {"test_1": tested["datasets"]["val"]}
    del tested["train"]
    (pairs / "test.yml").write_text(yaml.safe_dump(tested))
    basicsr.test(["-opt", str(pairs / "test.yml")], pairs)
    log = next((pairs / "results" / "stock").glob("test_*.log")).read_text()
    for metric in ("psnr", "ssim"):
        assert f"# {metric}: {scores[f'val/{metric}']:.4f}" in log
    assert vheatir(["test", "-opt", str(pairs / "test.yml"), "-o", "ours", "--set", "val.suffix=x"]) == 0
    (result,) = json.loads((pairs / "ours" / "stock" / "results.json").read_text())["results"]
    assert result["restored"]["psnr"] == pytest.approx(scores["val/psnr"], abs=1e-6)
    assert sorted(path.name for path in (pairs / "ours" / "stock" / "Few").iterdir())[0] == "p0_noisy_x.png"


def test_a_stock_file_of_lmdbs_trains(pairs, monkeypatch):
    monkeypatch.chdir(pairs)
    (pairs / "plain").mkdir()
    for path in (pairs / "lq").iterdir():
        path.rename(pairs / "plain" / path.name.replace("_noisy", ""))
    for name, folder in (("gt", "gt"), ("lq", "plain")):
        make_lmdb(pairs / folder, pairs / f"{name}.lmdb")
    changes = [(f"{pairs}/{name}\n", f"{pairs}/{name}.lmdb\n") for name in ("gt", "lq")] + [
        ("type: disk", "type: lmdb")
    ]
    assert main(["-opt", str(stock(pairs, *changes)), "--set", "logger.print_freq=1"]) == 0
    losses = [point["train/l_pix"] for point in points(pairs / "experiments" / "stock") if "train/l_pix" in point]
    assert len(losses) == 6 and np.isfinite(losses).all()


def test_list_and_template_choose_the_pairs(pairs):
    common = {"phase": "val", "dataroot_gt": str(pairs / "gt"), "dataroot_lq": str(pairs / "lq")}
    template = {"filename_tmpl": "{}_noisy"}
    listed = PairedDataset({**common, **template, "meta_info_file": str(pairs / "meta.txt")})
    listed.check()
    assert listed.keys == ["p0.png", "p1.png", "p2.png"]
    assert listed[2]["lq_path"].endswith("p2_noisy.png") and listed[2]["gt_path"].endswith("p2.png")
    assert len(PairedDataset({**common, **template})) == 4
    for options, message in (
        ({}, "8 images have no partner"),
        ({"filename_tmpl": "noisy"}, "filename_tmpl: expected a name with {}"),
        ({**template, "meta_info_file": "none.txt"}, "meta_info_file: none.txt: cannot be read"),
        ({**template, "meta_info_file": ["a.txt"]}, r"meta_info_file: expected the name of a file, got \['a.txt'\]"),
        ({**template, "meta_info_file": os.devnull}, "meta_info_file: .*: lists no image"),
    ):
        with pytest.raises(UserError, match=message):
            PairedDataset({**common, **options})
    (pairs / "meta.txt").write_text("p0.png (36,41,3)\np9.png (36,41,3)\n")
    with pytest.raises(UserError, match=r"meta.txt: not in .*gt: p9.png"):
        PairedDataset({**common, **template, "meta_info_file": str(pairs / "meta.txt")})


def test_a_list_may_name_files_with_spaces(pairs):
    for folder, name in (("gt", "p0.png"), ("lq", "p0_noisy.png")):
        (pairs / folder / name).rename(pairs / folder / f"my {name}")
    options = {"phase": "val", "dataroot_gt": str(pairs / "gt"), "dataroot_lq": str(pairs / "lq")}
    options |= {"filename_tmpl": "{}_noisy", "meta_info_file": str(pairs / "meta.txt")}
    (pairs / "meta.txt").write_text("my p0.png (36,41,3)\np1.png and more\np2.png\n")
    assert PairedDataset(options).keys == ["my p0.png", "p1.png", "p2.png"]
    (pairs / "meta.txt").write_text("my p0.png (36,41,3)\nmy p9.png (36,41,3)\n")
    with pytest.raises(UserError, match=r"meta.txt: not in .*gt: my p9\.png$"):
        PairedDataset(options)


@pytest.mark.parametrize(
    ("patterns", "chosen"),
    [
        ({"include": ["p1.png", "p3.png"]}, [1, 3]),
        ({"exclude": ["p1.*"]}, [0, 2, 3]),
        ({"include": ["p[12]*"], "exclude": ["p2.png"]}, [1]),
    ],
    ids=str,
)
@pytest.mark.parametrize("where", ["two folders", "one folder"])
def test_patterns_choose_clean_images_whose_partners_have_other_names(pairs, patterns, chosen, where):
    """A template gives degraded images other names, and they may be of another format."""
    noisy = pairs / "lq"
    for path in sorted(noisy.iterdir()):
        path.rename(path.with_suffix(".bmp"))
    if where == "one folder":
        noisy = pairs / "gt"
        for path in sorted((pairs / "lq").iterdir()):
            path.rename(noisy / path.name)
        patterns = {**patterns, "exclude": [*patterns.get("exclude", []), "*_noisy.bmp"]}
    options = {"phase": "val", "dataroot_gt": str(pairs / "gt"), "dataroot_lq": str(noisy)}
    dataset = PairedDataset({**options, "filename_tmpl": "{}_noisy", **patterns})
    assert dataset.keys == [f"p{number}.png" for number in chosen]
    assert [Path(one["lq_path"]).name for one in dataset] == [f"p{number}_noisy.bmp" for number in chosen]


def test_a_degraded_image_without_a_clean_one_is_named_unless_patterns_leave_it_out(pairs):
    (pairs / "lq" / "p0_noisy.png").rename(pairs / "lq" / "other_noisy.png")
    (pairs / "gt" / "p0.png").unlink()
    options = {"phase": "val", "dataroot_gt": str(pairs / "gt"), "dataroot_lq": str(pairs / "lq")}
    with pytest.raises(UserError, match="1 images have no partner in the other; add or remove them: other_noisy"):
        PairedDataset({**options, "filename_tmpl": "{}_noisy"})
    assert len(PairedDataset({**options, "filename_tmpl": "{}_noisy", "exclude": ["other*"]})) == 3


REFUSED = [
    ("scale=4", "scale: images are restored at their own size, so scale is 1, got 4; .*vheatir.basicsr train"),
    ("model_type=RealESRGANModel", "model_type RealESRGANModel: the two-stage degradations"),
    ("model_type=SRGANModel", "model_type SRGANModel: there is no adversarial training"),
    ("model_type=ImageCleanModel", "model_type ImageCleanModel: write model_type: VHeatIRModel"),
    ("model_type=VideoRecurrentModel", "model_type VideoRecurrentModel: videos"),
    ("resize_prob2=[0.3, 0.4, 0.3]", "resize_prob2: the two-stage degradations"),
    ("second_blur_prob=0.8", "second_blur_prob: the two-stage"),
    ("l1_gt_usm=true", "l1_gt_usm: the two-stage"),
    ("datasets.train.blur_kernel_size2=21", "datasets.train.blur_kernel_size2: the two-stage"),
    ("datasets.train.type=RealESRGANDataset", "datasets.train.type RealESRGANDataset: the two-stage"),
    ("datasets.val.type=SingleImageDataset", "datasets.val.type SingleImageDataset: .*vheatir restore IN -o OUT"),
    ("datasets.train.type=Dataset_GaussianDenoising", "Dataset_GaussianDenoising: write GaussianNoiseDataset"),
    ("datasets.train.gt_sizes=[128, 160]", "datasets.train.gt_sizes: write datasets.train.progressive"),
    ("datasets.train.prefetch_mode=cuda", "datasets.train.prefetch_mode: leave it ~"),
    ("datasets.train.use_shuffle=false", "datasets.train.use_shuffle: leave it out: samples are shuffled"),
    ("datasets.train.color=y", "datasets.train.color: write network_g.in_chans: 1"),
    ("datasets.train.mean=[0.5, 0.5, 0.5]", r"datasets.train.mean: networks here take RGB in \[0, 1\]"),
    ("network_d={type: VGGStyleDiscriminator}", "network_d: there is no adversarial training"),
    ("path.pretrain_network_d=x.pth", "path.pretrain_network_d: there is no adversarial"),
    ("path.resume_state=9.state", "path.resume_state: `vheatir train --resume`"),
    ("train.gan_opt={type: GANLoss}", "train.gan_opt: there is no adversarial"),
    ("train.perceptual_opt={type: PerceptualLoss}", "train.perceptual_opt: losses here are pixel_opt"),
    ("train.use_grad_clip=true", "train.use_grad_clip: write train.grad_clip"),
    ("train.scheduler.type=TrueCosineAnnealingLR", "TrueCosineAnnealingLR: write CosineAnnealingLR"),
    ("logger.wandb={project: mine}", "logger.wandb: curves go to curves.jsonl and TensorBoard"),
    ("dist_params={backend: mpi}", "dist_params.backend must be one of nccl, gloo, got 'mpi'"),
]


@pytest.mark.parametrize("change, message", REFUSED, ids=[change for change, _ in REFUSED])
def test_what_has_no_meaning_here_is_refused_with_key_file_and_what_to_write(recipe, change, message):
    with pytest.raises(UserError, match=message) as caught:
        read_options(recipe, [change])
    assert str(caught.value).startswith(f"{recipe}: ")


def test_all_refused_keys_are_listed_at_once(recipe):
    with pytest.raises(UserError) as caught:
        read_options(recipe, ["gt_usm=true", "jpeg_range=[30, 95]", "train.optim_d={type: Adam}"])
    lines = str(caught.value).splitlines()
    assert len(lines) == 3 and all(line.startswith(f"{recipe}: ") for line in lines)


def test_the_port_of_a_stock_file_is_where_processes_under_slurm_meet(pairs, recipe, monkeypatch):
    assert meeting_port(stock(pairs)) == 29511 and meeting_port(recipe) is None
    for name in ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MASTER_PORT", "1")
    with pytest.raises(UserError, match="SLURM_PROCID"):
        main(["-opt", str(stock(pairs)), "--launcher", "slurm"])
    import os

    assert os.environ["MASTER_PORT"] == "29511"


def test_the_best_weights_may_be_those_of_the_lowest_metric(train):
    """NIQE falls as images get better; BasicSR says so by `better: lower`."""
    folder = train(
        "val.metrics={niqe: {type: vheatir_fewer, better: lower}}" if registered() else "",
        "val.val_freq=4",
    )
    best = json.loads(json.dumps([point["val/niqe"] for point in points(folder) if "val/niqe" in point]))
    assert f"best niqe {min(best):.4f}" in (folder / "train.log").read_text()


def registered() -> bool:
    """A metric that rises with training and counts as better when lower, so that the first score is the best."""
    from basicsr.utils.registry import METRIC_REGISTRY

    from vheatir.train.registry import register_all

    register_all()
    if "vheatir_fewer" not in METRIC_REGISTRY:

        def vheatir_fewer(img, img2, better):
            return -float(np.mean((img.astype(float) - img2) ** 2))

        METRIC_REGISTRY.register(vheatir_fewer)
    return True


def test_niqe_of_basicsr_scores_validation_images(train, small_photos, tmp_path):
    import skimage.data

    (tmp_path / "large").mkdir()
    cv2.imwrite(str(tmp_path / "large" / "a.png"), skimage.data.astronaut()[:200, :200, ::-1].copy())
    folder = train(
        "val.metrics={niqe: {type: calculate_niqe, crop_border: 0, better: lower}}",
        f"datasets.val.dataroot_gt={tmp_path / 'large'}",
        "train.total_iter=2",
        "val.val_freq=2",
    )
    assert any(point.get("val/niqe", 0) > 0 for point in points(folder))


# Weights in both directions


def test_weights_of_basicsrs_loop_restore_after_one_line(recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    basicsr.train(["-opt", str(recipe)], tmp_path)
    file = tmp_path / "experiments" / "tiny" / "models" / "net_g_latest.pth"
    with pytest.raises(UserError, match=r"vheatir export .*net_g_latest\.pth --to safetensors"):
        Restorer("denoise", weights=file)
    assert vheatir(["export", str(file), "--to", "safetensors"]) == 0
    assert "under params_ema" in capsys.readouterr().out
    restorer = Restorer("denoise", weights=file.with_suffix(".safetensors"), device="cpu")
    state = torch.load(file, weights_only=True)["params_ema"]
    for name, value in restorer.network.state_dict().items():
        assert torch.equal(value, state[name].half().float()), name
    assert json.loads(restorer.metadata["config"])["reach"] == [0.5, 4.0]  # which no shape tells
    assert restorer.metadata["levels"] == "25"
    image = np.random.default_rng(0).random((20, 24, 3), np.float32)
    assert not np.array_equal(restorer.restore(image), image)


def tiny(tmp_path: Path) -> tuple[VHeatIR, dict]:
    torch.manual_seed(5)
    network = VHeatIR(dim=8, depths=[1], embed_size=8)
    torch.nn.init.normal_(network.conv_last.weight, std=0.01)
    return network, {name: value.half().float() for name, value in network.state_dict().items()}


@pytest.mark.parametrize("form", ["params", "params_ema", "bare", "module."])
def test_every_form_of_pth_is_turned_into_safetensors_and_back(tmp_path, form):
    _, values = tiny(tmp_path)
    inside = {f"module.{name}": value for name, value in values.items()} if form == "module." else values
    content = inside if form in ("bare", "module.") else {form: inside}
    torch.save(content, tmp_path / "a.pth")
    assert vheatir(["export", str(tmp_path / "a.pth"), "-o", str(tmp_path / "b.safetensors"), "--task", "jpeg"]) == 0
    loaded, metadata = weights.load(tmp_path / "b.safetensors")
    assert metadata["task"] == "jpeg" and metadata["color"] == "color"
    assert vheatir(["export", str(tmp_path / "b.safetensors"), "--to", "pth"]) == 0
    back = torch.load(tmp_path / "b.pth", weights_only=True)["params"]
    for name, value in values.items():
        assert torch.equal(back[name], value) and torch.equal(loaded.state_dict()[name], value)


def test_a_checkpoint_is_not_replaced_by_what_was_made_of_it(tmp_path, capsys):
    """It held the averaged and the last weights, in float32; the way back has one of them, in float16."""
    _, values = tiny(tmp_path)
    checkpoint = tmp_path / "net_g_latest.pth"
    torch.save({"params": values, "params_ema": values}, checkpoint)
    before = checkpoint.read_bytes()
    assert vheatir(["export", str(checkpoint), "--to", "safetensors", "--task", "jpeg"]) == 0
    assert vheatir(["export", str(checkpoint.with_suffix(".safetensors")), "--to", "pth"]) == 2
    assert "a checkpoint of a training holds more" in capsys.readouterr().err and checkpoint.read_bytes() == before
    checkpoint.unlink()
    for _ in range(2):  # its own file is written again
        assert vheatir(["export", str(checkpoint.with_suffix(".safetensors")), "--to", "pth"]) == 0


def test_the_way_to_pth_and_back_loses_nothing(tmp_path, monkeypatch, capsys):
    """The tensors tell neither the padding of these weights nor their task, license and data."""
    monkeypatch.chdir(tmp_path)
    assert vheatir(["export", "jpeg_color_blind", "--to", "pth"]) == 0
    assert vheatir(["export", "jpeg_color_blind.pth", "--to", "safetensors"]) == 0
    assert Path("jpeg_color_blind.safetensors").read_bytes() == weights.find("jpeg_color_blind").read_bytes()
    assert "taken by default" not in capsys.readouterr().out

    bare = torch.load("jpeg_color_blind.pth", weights_only=True)["params"]
    torch.save(bare, "bare.pth")
    assert vheatir(["export", "bare.pth", "--to", "safetensors", "--task", "jpeg"]) == 0
    assert "taken by default, as tensors do not tell it: padding: reflect; --opt" in capsys.readouterr().out
    assert weights.read("bare.safetensors")[1]["levels"] == '"not stated"'

    network, _ = tiny(tmp_path)
    told = {"task": "photo", "color": "color", "levels": "some", "license": "mine", "config": json.dumps({"dim": 9e9})}
    told |= {"arch": "VHeatIR", "vheatir_format": weights.FORMAT}
    torch.save({"params": network.state_dict(), weights.METADATA: told}, "huge.pth")
    assert vheatir(["export", "huge.pth", "--to", "safetensors"]) == 2
    assert "beyond any real network" in capsys.readouterr().err
    torch.save({"params": network.state_dict(), weights.METADATA: {"task": 3}}, "foreign.pth")
    assert vheatir(["export", "foreign.pth", "--to", "safetensors", "--task", "photo"]) == 0


@pytest.mark.parametrize("content", ["- hosts: all\n", "a: [1", "a: 1,5\n"])
def test_a_foreign_yaml_file_near_the_weights_is_passed_over(tmp_path, content):
    """Two folders above a file there may be anything, such as a home folder."""
    (tmp_path / "models").mkdir()
    torch.save(tiny(tmp_path)[1], tmp_path / "models" / "a.pth")
    (tmp_path / "foreign.yml").write_text(content)
    assert vheatir(["export", str(tmp_path / "models" / "a.pth"), "--to", "safetensors", "--task", "jpeg"]) == 0
    assert weights.load(tmp_path / "models" / "a.safetensors")[1]["task"] == "jpeg"


def test_weights_of_ours_start_basicsrs_own_model(recipe, tmp_path):
    """Through BasicSR's load_network, which knows .pth alone."""
    network, values = tiny(tmp_path)
    about = {"task": "denoise", "color": "color", "levels": "none", "license": "none"}
    weights.save(tmp_path / "a.safetensors", values, {**about, "config": json.dumps(network.config)})
    assert vheatir(["export", str(tmp_path / "a.safetensors"), "--to", "pth"]) == 0
    text = recipe.read_text().replace("model_type: VHeatIRModel", "model_type: SRModel").replace("lr: 2e-3", "lr: 0.0")
    text = text.replace("val_freq: 6", "val_freq: 6\n  save_img: false")
    recipe.write_text(text.replace("path: {", f"path: {{pretrain_network_g: {tmp_path / 'a.pth'}, "))
    basicsr.train(["-opt", str(recipe)], tmp_path)
    trained = torch.load(tmp_path / "experiments" / "tiny" / "models" / "net_g_latest.pth", weights_only=True)
    for name, value in values.items():
        torch.testing.assert_close(trained["params"][name], value, rtol=0, atol=0)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["net.pth", "--to", "safetensors"], "no options file lies in the run's folder.*--task denoise, jpeg"),
        (["net.pth", "--to", "pth"], "files are made of safetensors files|made of"),
        (["other.pth", "--to", "safetensors", "--task", "denoise"], "belong to none of.*vheatir test"),
        (["hostile.pth", "--to", "safetensors", "--task", "denoise"], "without running code"),
        (["net.pth", "--to", "safetensors", "--opt", "none.yml"], "no such options file"),
        (["denoise_color_blind", "--to", "safetensors"], "are made of .pth files"),
        (["denoise_color_blind", "--to", "onnx", "--task", "denoise"], "a task and options are for converting"),
        (["denoise_color_blind", "--to", "pth", "--task", "jpeg"], "a task and options are for converting"),
        (["denoise_color_blind", "--to", "pth", "--time", "9", "--set", "a=1"], "--time, --set: only for .onnx and"),
        (["denoise_color_blind", "--hub", "new", "--time", "9"], "--time: only for .onnx and .pt2"),
        (["net.pth", "--to", "safetensors", "--model", "vheat_tiny"], "--model: only for"),
        (["denoise_color_blind", "-o", "net.pth/a.pth"], "net.pth: nothing can be written there"),
        (["denoise_color_blind", "-o", "folder.pth"], "folder.pth: is a folder"),
    ],
)
def test_what_cannot_be_turned_is_refused_and_leaves_nothing(tmp_path, monkeypatch, capsys, arguments, message):
    import re

    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    torch.save(tiny(tmp_path)[1], "net.pth")
    torch.save({"conv.weight": torch.ones(3)}, "other.pth")
    torch.save({"params": Hostile(str(tmp_path / "trace"))}, "hostile.pth")
    Path("folder.pth").mkdir()
    before = sorted(path.name for path in Path().iterdir())
    assert vheatir(["export", *arguments]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert sorted(path.name for path in Path().iterdir()) == before and not (tmp_path / "trace").exists()


class Hostile:
    """Unpickling it would create the file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_a_missing_average_is_replaced_by_the_weights_as_in_basicsr(train, tmp_path):
    _, values = tiny(tmp_path)
    torch.save({"params": values}, tmp_path / "start.pth")
    start = (f"path.pretrain_network_g={tmp_path / 'start.pth'}", "path.param_key_g=params_ema", "train.optim_g.lr=0")
    for name, value in train.state(train(*start))["network"].items():
        torch.testing.assert_close(value, values[name], rtol=1e-5, atol=1e-7)
