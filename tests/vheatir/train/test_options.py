"""Options: what is wrong is refused with file, key and next step, before anything is written."""

import pytest
import yaml

from vheatir.data.datasets import GaussianNoiseDataset
from vheatir.errors import UserError
from vheatir.train.build import complete_options, completed
from vheatir.train.options import read_options
from vheatir.utils.recipes import find_options, load_table


def test_numbers_with_exponents_are_numbers(recipe):
    options = read_options(recipe, ["train.optim_g.weight_decay=1e-4", "train.grad_clip=-0.5E+1"][:1])
    assert options["train"]["optim_g"] == {"type": "Adam", "lr": 0.002, "weight_decay": 0.0001}
    assert options["train"]["pixel_opt"]["eps"] == 1e-6
    assert yaml.safe_load("2e-3") == "2e-3", "YAML 1.1 has changed: the own reader is no longer needed"


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "1.5e3", "1e+3", "-2e5", "1_0e2", ".5", "3"])
def test_every_way_to_write_a_number(recipe, text):
    value = read_options(recipe, [f"train.optim_g.lr={text}"])["train"]["optim_g"]["lr"]
    assert value == float(text) and isinstance(value, int | float)


@pytest.mark.parametrize("text", ["e4", "1e", "x1e-4", "1e-4m", "12e5abc"])
def test_what_only_resembles_a_number_is_text(recipe, text):
    assert read_options(recipe, [f"train.optim_g.note={text}"])["train"]["optim_g"]["note"] == text


@pytest.mark.parametrize(
    "override, place, value",
    [
        ("train.total_iter=7", "train.total_iter", 7),
        ("datasets.train.sigma=[15, 25]", "datasets.train.sigma", [15, 25]),
        ("datasets.train.sigma={min: 0, max: 55}", "datasets.train.sigma", {"min": 0, "max": 55}),
        ("datasets.train.augment=false", "datasets.train.augment", False),
        ("datasets.train.new=a=b", "datasets.train.new", "a=b"),
        ("network_g.reach=null", "network_g.reach", None),
        ("network_g.reach=", "network_g.reach", None),
        ("path.strict_load_g=false", "path.strict_load_g", False),
        ("name='007'", "name", "007"),
        ("datasets.val={type: JPEGDataset, quality: 10}", "datasets.val", {"type": "JPEGDataset", "quality": 10}),
    ],
)
def test_overrides_are_yaml(recipe, override, place, value):
    options = read_options(recipe, [override])
    for key in place.split("."):
        options = options[key]
    assert options == value and type(options) is type(value)


def test_override_may_begin_a_section_that_the_file_lacks(recipe):
    recipe.write_text(recipe.read_text().replace("path:", "# path:"))
    assert read_options(recipe, ["path.experiments_root=here"])["path"] == {"experiments_root": "here"}


def test_overrides_apply_in_order(recipe):
    assert read_options(recipe, ["train.total_iter=7", "train.total_iter=8"])["train"]["total_iter"] == 8


def test_anchors_and_merge_keys_work(recipe):
    text = recipe.read_text().replace("network_g: {", "network_g: &net {")
    recipe.write_text(text.replace("  val: {type", "  val: &val {type") + "# end\n")
    extra = "\n  val_50: {<<: *val, sigma: 50}\nnetwork_g:"
    recipe.write_text(recipe.read_text().replace("\nnetwork_g:", extra))
    datasets = read_options(recipe)["datasets"]
    assert datasets["val_50"] == {**datasets["val"], "sigma": 50}


def test_the_consistency_loss_is_refused_with_other_subsampling_than_its_own(recipe):
    data = "datasets.train={type: JPEGDataset, dataroot_gt: photos, gt_size: 32, quality: 10}"
    loss = "train.consistency_opt={type: JPEGConsistencyLoss, loss_weight: 0.1}"
    read_options(recipe, [data, loss, "datasets.train.subsampling=['4:2:0']"])
    with pytest.raises(UserError, match=r"datasets\.train\.subsampling: the loss compresses in 4:2:0"):
        read_options(recipe, [data, loss, "datasets.train.subsampling=['4:2:0', '4:4:4']"])


def test_null_means_the_default(recipe):
    options = read_options(recipe, ["train.ema_decay=~", "val.tile=null"])
    assert "ema_decay" not in options["train"] and "tile" not in options["val"]
    keys = ("augment", "seed", "in_chans", "cache", "gray_probability", "level_map", "exclude", "io_backend")
    options = read_options(recipe, [f"datasets.train.{key}=null" for key in keys])
    table = {**options["datasets"]["train"], "phase": "train"}
    found, default = (
        GaussianNoiseDataset(completed(one, options | {"manual_seed": 7}))
        for one in (table, {key: value for key, value in table.items() if value is not None})
    )
    assert found.seed == default.seed == 7 and found.in_chans == default.in_chans == 3
    assert list(found._modes) == list(default._modes) == list(range(8))
    top = ("manual_seed", "threads", "num_gpu", "scale", "find_unused_parameters", "logger", "dist_params")
    options = read_options(recipe, [f"{key}=~" for key in top])
    filled = complete_options(recipe, options, is_train=True)
    assert filled["manual_seed"] == 0 and filled["scale"] == 1 and filled["logger"] == {}


def test_null_means_what_a_plugin_says_for_the_keys_that_it_adds():
    class Blurred(GaussianNoiseDataset):
        OPTIONS = GaussianNoiseDataset.OPTIONS | {"blur"}

    table = {"type": "Blurred", "blur": None, "cache": None, "num_worker_per_gpu": None}
    assert completed(table, {"manual_seed": 3, "network_g": {}}, Blurred) == {
        "type": "Blurred",
        "blur": None,
        "seed": 3,
        "in_chans": 3,
    }


@pytest.mark.parametrize(
    "override, message",
    [
        ("total_iter=5", "unknown key total_iter; known here: .*train"),
        ("train.totl_iter=5", "unknown key train.totl_iter; did you mean total_iter"),
        ("val.bar=true", "unknown key val.bar"),
        ("train.total_iter=1.5e0", "train.total_iter must be a whole number, got 1.5"),
        ("train.total_iter=true", "train.total_iter must be a whole number, got True"),
        ("train.total_iter=many", "train.total_iter must be a whole number, got 'many'"),
        ("train.total_iter=0", "train.total_iter must be above 0, got 0"),
        ("train.accumulate=-1", "train.accumulate must be above 0, got -1"),
        ("train.grad_clip=.nan", "train.grad_clip must be a number, got nan"),
        ("train.ema_decay=1.5", "train.ema_decay must be below 1"),
        ("train.ema_decay=fast", "train.ema_decay must be a number, got 'fast'"),
        ("train.amp=fp8", "train.amp must be one of auto, none, bf16, fp16, got 'fp8'"),
        ("train.optim_g={lr: 0.1}", "train.optim_g needs a type"),
        ("train.optim_g=Adam", "train.optim_g must be a table"),
        ("train.scheduler=~", "train.scheduler is missing"),
        ("val.val_freq=0", "val.val_freq must be above 0"),
        ("val.max_images=0", "val.max_images must be above 0"),
        ("val.metrics.psnr=vheatir_psnr", r"val.metrics.psnr: expected a table such as {type: vheatir_psnr}"),
        ("val.best=ssim", "val.best: no metric 'ssim' in val.metrics, which has psnr"),
        ("logger.print_freq=0", "logger.print_freq must be above 0"),
        ("name=~", "name is missing"),
        ("manual_seed=-1", "manual_seed must be at least 0, got -1"),
        ("manual_seed=18446744073709551616", "manual_seed must be below 9223372036854775808"),
        ("name=''", "name must be that of the run's folder"),
        ("name=..", "name must be that of the run's folder"),
        ("name=a/b", "name must be that of the run's folder"),
        ("model_type=~", "model_type is missing"),
        ("network_g={dim: 8}", "network_g needs a type"),
        ("datasets=~", "datasets is missing"),
        ("datasets.train=~", "datasets.train must be a table with a type"),
        ("datasets.valid={type: JPEGDataset}", "datasets.valid: expected train, val or test"),
        ("datasets.train_2={type: JPEGDataset}", "datasets.train_2: expected train, val or test"),
        ("datasets={val: {type: JPEGDataset}}", "datasets.train is missing"),
        ("datasets={1: {type: JPEGDataset}}", "datasets.1: expected"),
    ],
)
def test_wrong_options_name_file_and_key(recipe, override, message):
    with pytest.raises(UserError, match=message) as caught:
        read_options(recipe, [override])
    assert str(recipe) in str(caught.value)


@pytest.mark.parametrize(
    "override, message",
    [
        ("train.total_iter", "expected a.b=value"),
        ("trian.total_iter=5", "no section 'trian'; sections here: .*train"),
        ("train.optim.lr=1", "no section 'optim'; sections here: optim_g"),
        ("name.x=1", "no section 'name'"),
        ("train.total_iter=[1", "not valid YAML"),
        ("train.total_iter=!!python/object:os.system x", "not valid YAML"),
    ],
)
def test_wrong_overrides_are_quoted(recipe, override, message):
    with pytest.raises(UserError, match=message) as caught:
        read_options(recipe, [override])
    assert f"--set {override}" in str(caught.value)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"name: [1", "not valid YAML"),
        (b"name: x\nname: y\n", "key given twice: name"),
        (b"train: {lr: 1, lr: 2}\n", "key given twice: lr"),
        (b"- a\n- b\n", "expected a table of options, got list"),
        (b"", "expected a table of options, got NoneType"),
        (b"name: \xff\xfe\n", "not valid YAML"),
        (b"name: !!python/name:os.system ''\n", "not valid YAML"),
        (b"[a, b]: 1\n", "not valid YAML"),
        (b"3: 1\nname: x\n", "unknown key 3"),
    ],
)
def test_what_is_no_options_file_is_refused(tmp_path, content, message):
    path = tmp_path / "x.yml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_options(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["smoke", "smoke.yml", "options/smoke.yml", "options/smoke"])
def test_recipes_are_found_by_name_from_anywhere(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_options(name).name == "smoke.yml"


def test_a_file_beats_the_recipe_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smoke.yml").write_text("name: mine\n")
    assert find_options("smoke.yml").read_text() == "name: mine\n"


@pytest.mark.parametrize("name", ["", ".", "nothing", "elsewhere/smoke.yml", "smoke.v2", "smoke.json"])
def test_a_missing_file_is_told_with_the_recipes(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"no such options file; give a path or one of the recipes: .*smoke"):
        find_options(name)


# Wrong in what the options refer to: found when datasets and model are built.
BUILD_ERRORS = [
    ("model_type=NoModel", "model_type must be VHeatIRModel"),
    ("model_type=Nothing", "model_type must be VHeatIRModel"),
    ("num_gpu=2", "num_gpu is 2, but each process takes one GPU"),
    ("network_g.type=VHeatR", "network_g.type: unknown 'VHeatR'; did you mean VHeatIR"),
    ("network_g.dimm=8", "unknown key network_g.dimm for VHeatIR; known: .*dim"),
    ("network_g.dim=eight", "dim must be a whole number"),
    ("network_g.depths=6", "depths must be"),
    ("network_g.resize=nearest", "resize must be one of exact, published"),
    ("datasets.train.type=NoiseDataset", "datasets.train.type must be one of GaussianNoiseDataset"),
    ("datasets.train.type=PairedImages", "datasets.train.type must be one of .*a data set of your own needs --plugin"),
    ("datasets.train.sigmas=5", "unknown key datasets.train.sigmas for GaussianNoiseDataset; known: .*sigma"),
    ("datasets.val.batch_size_per_gpu=4", "datasets.val.batch_size_per_gpu"),
    ("datasets.train.batch_size_per_gpu=0", "datasets.train.batch_size_per_gpu must be above 0, got 0"),
    ("datasets.train.num_worker_per_gpu=-1", "datasets.train.num_worker_per_gpu must be at least 0"),
    ("datasets.train.sigma=loud", "datasets.train: sigma"),
    ("datasets.val.sigma=[15, 25]", "datasets.val: sigma: validation and test need one fixed value"),
    (
        "datasets.train.dataroot_gt=nowhere",
        "nowhere: no such folder, .*; for other .* --set datasets.train.data",
    ),
    ("datasets.val.dataroot_gt=none/BSD432", "prepare BSD432 --download` .* --set datasets.val.dataroot_gt=FOLDER"),
    ("datasets.val.include=['*.bmp']", "datasets.val: .* no image matches"),
    ("datasets.train.gt_size=41", "datasets.train: .*5 of 5 images cannot be used"),
    ("datasets.train.gt_size=~", "datasets.train: gt_size"),
    ("val.metrics.psnr.type=psnr", "val.metrics.psnr: .*psnr"),
    ("val.metrics.psnr.bordr=1", "val.metrics.psnr: .*bordr"),
    ("train.optim_g.type=Adamm", "train.optim_g.type: torch.optim has no optimizer 'Adamm'"),
    ("train.optim_g.type=Optimizer", "train.optim_g"),
    ("train.optim_g.momentum=1", "train.optim_g: .*momentum"),
    ("train.optim_g={type: Adam}", "lr"),
    ("train.optim_g.lr=-1", "train.optim_g: .*learning rate"),
    ("train.scheduler.type=Cosine", "train.scheduler.type: .*'Cosine'"),
    ("train.scheduler.type=Optimizer", "train.scheduler.type: .*'Optimizer'"),
    ("train.scheduler={type: ReduceLROnPlateau}", "no schedule over iterations"),
    ("train.scheduler={type: StepLR, stepsize: 3}", "train.scheduler: .*stepsize"),
    ("train.scheduler.gama=3", "gama"),
    ("train.scheduler={type: CosineAnnealingRestartLR, periods: [5, 5]}", "train.scheduler.periods add up to 10"),
    ("train.scheduler={type: CosineAnnealingRestartLR, periods: [6, 6]}", "same length"),
    ("train.pixel_opt.type=Charbonnier", "train.pixel_opt.type: unknown 'Charbonnier'; did you mean CharbonnierLoss"),
    ("train.pixel_opt.epsilon=1", "unknown key train.pixel_opt.epsilon for CharbonnierLoss; known: .*eps"),
    ("train.pixel_opt.reduction=none", "train.pixel_opt.reduction must be mean or sum"),
    ("network_g={type: SwinIR, embed_dims: 8}", "unknown key network_g.embed_dims for AnySizeSwinIR; .* embed_dim,"),
    ("val.metrics.psnr={type: calculate_psnr, crop_border: 0, test_y_chanel: true}", "test_y_chanel; .*test_y_channel"),
    (
        "val.metrics={niqe: {type: calculate_niqe, crop_border: 0}}",
        "val0.png: 32x32 pixels, calculate_niqe needs 96x192",
    ),
    ("train.scheduler={type: OneCycleLR, max_lr: 1e-3, total_steps: 5}", "ends after 5 iterations, .*total_iter is 12"),
    ("path.pretrain_network_g=nowhere.pth", "nowhere.pth: there is no such checkpoint"),
    ("path.pretrain_network_g=nowhere", "weights 'nowhere' are neither a file nor a shipped name"),
]


@pytest.mark.parametrize("override, message", BUILD_ERRORS, ids=[override for override, _ in BUILD_ERRORS])
def test_a_failed_start_leaves_the_former_run_alone(train, recipe, tmp_path, override, message):
    former = tmp_path / "runs" / "tiny"
    former.mkdir(parents=True)
    (former / "train.log").write_text("weeks of work")
    with pytest.raises(UserError, match=message) as caught:
        train(override)
    assert str(recipe) in str(caught.value)
    assert [path.relative_to(tmp_path / "runs").as_posix() for path in (tmp_path / "runs").rglob("*")] == [
        "tiny",
        "tiny/train.log",
    ]
    assert "Traceback" not in str(caught.value)


def test_every_unusable_image_is_listed_at_once(train, recipe, tmp_path, small_photos):
    (tmp_path / "mixed").mkdir()
    for name in ("cut.png", "empty.png"):
        data = (small_photos / "train" / "train0.png").read_bytes()
        (tmp_path / "mixed" / name).write_bytes(data[: len(data) // 2 if name == "cut.png" else 0])
    (tmp_path / "mixed" / "good.png").write_bytes(data)
    with pytest.raises(UserError, match=r"2 of 3 images cannot be used(.|\n)*cut.png(.|\n)*empty.png"):
        train(f"datasets.train.dataroot_gt={tmp_path / 'mixed'}")
    assert not (tmp_path / "runs").exists()


def test_an_experiments_root_that_cannot_be_made_is_named(train, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be made .*; set path.experiments_root"):
        train(f"path.experiments_root={tmp_path / 'file'}")


def test_error_reaches_the_user_without_a_traceback(recipe, capsys):
    pytest.importorskip("basicsr")
    from vheatir.cli import main

    assert main(["train", "-opt", str(recipe), "--set", "train.lr=1"]) == 2
    err = capsys.readouterr().err
    assert "unknown key train.lr" in err and "Traceback" not in err


def test_a_file_extends_another_one_key_by_key(tmp_path):
    (tmp_path / "base.yml").write_text("name: base\ntrain: {lr: 1e-3, steps: [1, 2]}\nval: {every: 5}\n")
    (tmp_path / "middle.yml").write_text("extends: base.yml\ntrain: {lr: 2e-3}\n")
    (tmp_path / "top.yml").write_text("extends: middle.yml\nname: top\ntrain: {steps: [3]}\n")
    table = load_table(tmp_path / "top.yml", ["val.every=6"])
    assert table == {"name": "top", "train": {"lr": 2e-3, "steps": [3]}, "val": {"every": 6}}


@pytest.mark.parametrize("base", ["none.yml", "self.yml", "loop.yml", "../base.yml", "sub/base.yml", ".", "''"])
def test_a_file_that_extends_nothing_or_itself_is_refused(base, tmp_path):
    (tmp_path / "self.yml").write_text(f"extends: {base}\n")
    (tmp_path / "loop.yml").write_text("extends: self.yml\n")
    with pytest.raises(UserError, match=r"extends .*: expected another options file beside it"):
        load_table(tmp_path / "self.yml")


@pytest.mark.parametrize("text", ["3e5", "3E5", "3e+5", "3.0e5", "30e4", "3.0e+5"])
def test_whole_numbers_with_exponents_are_whole(recipe, text):
    options = read_options(recipe, [f"train.total_iter={text}", f"logger.save_checkpoint_freq={text}"])
    for value in (options["train"]["total_iter"], options["logger"]["save_checkpoint_freq"]):
        assert value == 300_000 and type(value) is int
    recipe.write_text(recipe.read_text().replace("total_iter: ", f"total_iter: {text} # "))
    assert read_options(recipe)["train"]["total_iter"] == 300_000


@pytest.mark.parametrize("text", ["2,5e-3", "2,5", "-0,1", "[1e-3, 2,5e-3]"])
def test_a_decimal_comma_is_named(recipe, text):
    with pytest.raises(UserError, match=r"train\.optim_g.*comma|name is expected; numbers are written with a point"):
        read_options(recipe, [f"train.optim_g={{type: Adam, lr: {text.strip('[]')}}}"])
    if not text.startswith("["):
        with pytest.raises(UserError, match=r"train\.optim_g\.lr.*decimal comma.*point"):
            read_options(recipe, [f"train.optim_g.lr={text}"])
