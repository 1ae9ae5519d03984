"""Data of classification: readers agree, batches are a function of the step, what is wrong is named."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import nn

pytest.importorskip("timm", reason="training backbones needs the extra `backbone`")

from torchvision.transforms.functional import to_tensor

from tests.backbone.classification import small
from vheatir.backbone.classification.dataset import Samples
from vheatir.backbone.classification.optimizer import make_lr_schedule, make_optimizer, scaled_lr
from vheatir.backbone.classification.readers import make_reader, read_labels
from vheatir.backbone.classification.recipe import ClassificationData, ClassificationTrain, read_recipe
from vheatir.backbone.classification.subset import Subset
from vheatir.backbone.classification.task import scored
from vheatir.backbone.errors import DataError
from vheatir.backbone.models.create import create_model
from vheatir.backbone.training.batches import EpochPlan, StepSampler
from vheatir.backbone.training.processes import Processes
from vheatir.backbone.training.update import Update
from vheatir.errors import UserError
from vheatir.pretrain import PretrainSession, main


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    root = small.make_images(tmp_path_factory.mktemp("images"), train=5, val=2)
    small.make_lists(root)
    return root


@pytest.mark.parametrize(
    "reader, cache", [("list", "none"), ("tar", "none"), ("zip", "none"), ("zip", "full"), ("zip", "part")]
)
def test_readers_give_what_the_folder_gives(images, reader, cache):
    folder = Samples(make_reader(ClassificationData(str(images)), "train"), to_tensor, 3)
    other = Samples(
        make_reader(ClassificationData(str(images), reader, cache=cache), "train", rank=1, world=2), to_tensor, 3
    )
    assert len(other) == len(folder) == 15
    for index in range(len(folder)):
        (image, target), (image_of_other, target_of_other) = folder[index], other[index]
        assert torch.equal(image, image_of_other) and target == target_of_other


def test_a_zip_keeps_in_memory_what_it_is_told_to(images):
    part = make_reader(ClassificationData(str(images), "zip", cache="part"), "train", rank=1, world=2)
    assert sorted(part._kept) == list(range(1, 15, 2))
    (images / "train.zip").rename(images / "gone.zip")
    try:
        part._opened.clear()
        assert part[3][0].read() == (images / "train" / part.samples[3][0]).read_bytes()
        with pytest.raises(ValueError, match="not a whole ZIP archive"):
            part[2]
    finally:
        (images / "gone.zip").rename(images / "train.zip")


def test_a_process_keeps_of_the_evaluation_set_what_it_evaluates(images, tmp_path):
    """All of it in each of eight processes would fill the memory that `part` is to spare."""
    recipe = small.make_recipe(tmp_path, images, data={"reader": "zip", "cache": "part"})
    task = PretrainSession(recipe, yaml.safe_load(recipe.read_text()), Processes(1, 2)).scoring()
    assert sorted(task.samples.reader._kept) == [1, 3, 5]
    seen = [target for _, targets in task.loader() for target in targets.tolist()]
    assert seen == [task.samples.reader.samples[index][1] for index in (1, 3, 5)]


@pytest.mark.parametrize("cache", ["none", "full"])
@pytest.mark.parametrize(
    "place, byte, said",
    [  # of the first member's local header, whose name has 10 characters: its bytes begin at 40
        (40, 0xFF, "damaged in the archive: .*invalid block type"),
        (60, 0xFF, "damaged in the archive: "),
        (6, 0x01, "cannot be unpacked: .*password"),
    ],
)
def test_a_damaged_or_locked_member_of_a_zip_is_named(tmp_path, cache, place, byte, said):
    root = small.make_images(tmp_path / "set", train=3, val=1)
    small.make_lists(root)
    with zipfile.ZipFile(root / "train.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("red/00.png", np.random.default_rng(0).bytes(2000))
    (root / "train_map.txt").write_text("red/00.png\t0\n")
    content = bytearray((root / "train.zip").read_bytes())
    content[place] = byte
    if place == 6:  # which the list at the end says again
        content[content.index(b"PK\x01\x02") + 8] = byte
    (root / "train.zip").write_bytes(content)
    with pytest.raises(ValueError, match=rf"train\.zip@/red/00\.png: .*{said}"):
        sample = Samples(make_reader(ClassificationData(str(root), "zip", cache=cache), "train"), to_tensor, 3)[0]
        assert isinstance(sample, DataError)
        raise sample


def test_lists_may_be_json_and_names_may_hold_spaces(tmp_path):
    (tmp_path / "a.json").write_text('[["x y.png", 3], ["z.png", 0]]')
    (tmp_path / "a.txt").write_text("x y.png 3\n\nz.png\t0\n")
    assert read_labels(tmp_path / "a.json") == read_labels(tmp_path / "a.txt") == [("x y.png", 3), ("z.png", 0)]


def test_folders_read_by_torchvision_have_the_same_classes(tmp_path):
    root = small.make_images(tmp_path / "set", train=2, val=1)
    recipe = small.make_recipe(tmp_path, root, data={"reader": "torch/image_folder"})
    session = PretrainSession(recipe, yaml.safe_load(recipe.read_text()), Processes())
    assert len(session.scoring().samples) == 3
    (root / "val" / "blue" / "00.png").unlink()
    (root / "val" / "blue").rmdir()  # green would be class 0
    with pytest.raises(UserError, match=r"val has other classes than train.*take data\.reader folder"):
        session.scoring()


def drawn(plan: EpochPlan, start: int, stop: int) -> list[list[tuple[int, int]]]:
    return list(StepSampler(plan, start, stop))


def test_an_epoch_draws_each_image_once_in_an_order_of_its_own():
    plan = EpochPlan(12, 2, accumulate=2)
    first, second = ([i for batch in drawn(plan, e * 3, e * 3 + 3) for i, _ in batch] for e in (0, 1))
    assert sorted(first) == sorted(second) == list(range(12)) and first != second
    seeds = [seed for batch in drawn(plan, 0, 6) for _, seed in batch]
    assert len(set(seeds)) == 24


def test_a_later_start_draws_the_same_batches():
    plan = EpochPlan(13, 2, accumulate=2)
    assert drawn(plan, 4, 8) == drawn(plan, 0, 8)[8:]


def test_processes_share_the_batches_of_one():
    one = drawn(EpochPlan(20, 4), 0, 5)
    halves = [drawn(EpochPlan(20, 2, rank=rank, world=2), 0, 5) for rank in (0, 1)]
    for batch, left, right in zip(one, *halves, strict=True):
        assert sorted(batch) == sorted(left + right)


def test_parted_processes_draw_their_own_images_alone():
    for rank in range(3):
        mine = [i for batch in drawn(EpochPlan(20, 2, rank=rank, world=3, parted=True), 0, 6) for i, _ in batch]
        assert {i % 3 for i in mine} == {rank} and len(set(mine[:6])) == 6


def test_repeated_augmentation_gives_copies_in_a_row_with_other_seeds():
    batch = [sample for part in drawn(EpochPlan(12, 6, repeats=3), 0, 1) for sample in part]
    indices = [index for index, _ in batch]
    assert indices[0] == indices[1] == indices[2] != indices[3] and len({seed for _, seed in batch}) == 6


def test_rates_scale_with_the_batch_where_the_recipe_says_so():
    assert scaled_lr(ClassificationTrain(lr_for_batch=512), 2048) == {"base": 2e-3, "final": 2e-5, "warmup_start": 2e-6}
    assert scaled_lr(ClassificationTrain(lr=1e-3), 2048)["base"] == 1e-3


@pytest.mark.parametrize(
    "name, decayed, spared",
    [
        (
            "vheat_small",
            ["freq_embed.0", "layers.0.0.op.to_k.0.weight"],
            ["layers.0.0.gamma1", "layers.0.0.op.to_k.0.bias"],
        ),
        ("unified_swin_micro", ["stages.0.0.attn.qkv.weight"], ["stages.0.0.attn.relative_position_bias_table"]),
    ],
)
def test_decay_spares_what_the_published_recipes_spare(name, decayed, spared):
    with torch.device("meta"):
        model = create_model(name)
    optimizer = make_optimizer(ClassificationTrain(weight_decay=0.08), model, 512)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    named = dict(model.named_parameters())
    assert {decay[id(named[key])] for key in decayed} == {0.08} and {decay[id(named[key])] for key in spared} == {0.0}


def test_scores_count_ranks_and_losses():
    scores, targets = torch.randn(50, 9), torch.randint(0, 9, (50,))
    top1, top5, loss, count = scored(scores, targets).tolist()
    order = scores.argsort(1, descending=True)
    assert top1 == (order[:, 0] == targets).sum() and top5 == (order[:, :5] == targets[:, None]).sum() and count == 50
    assert loss == pytest.approx(torch.nn.functional.cross_entropy(scores, targets, reduction="sum").item(), rel=1e-5)


@pytest.mark.parametrize("only", [True, False])
def test_a_subset_accepts_the_classes_of_its_mapping(images, tmp_path, only):
    (tmp_path / "map.txt").write_text("red 7\ngreen 2,5\nblue 0\nunused 1\n")
    subset = Subset.read(str(tmp_path / "map.txt"), make_reader(ClassificationData(str(images)), "val"))
    assert subset.accepted == [(0,), (2, 5), (7,)]
    scores, targets = torch.randn(40, 9), torch.randint(0, 3, (40,))
    kept = [0, 2, 5, 7] if only else list(range(9))
    p = scores[:, kept].softmax(1).numpy()
    right = np.array([[k in subset.accepted[t] for k in kept] for t in targets])
    rank = np.take_along_axis(right, (-p).argsort(1), 1)
    want = [rank[:, 0].sum(), rank[:, :5].any(1).sum(), -np.log((p * right).sum(1)).sum(), 40]
    got = scored(scores, targets, subset.to(torch.device("cpu"), 9, only)).tolist()
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_a_mapping_may_have_a_byte_order_mark_and_json_has_the_same_rules(images, tmp_path):
    reader = make_reader(ClassificationData(str(images)), "val")
    (tmp_path / "map.txt").write_text("blue 0\ngreen 2,5\nred 7\n", "utf-8-sig")
    assert Subset.read(str(tmp_path / "map.txt"), reader).accepted == [(0,), (2, 5), (7,)]
    for red, message in (("-1", "classes are counted from 0"), ("[]", "with a class for each folder")):
        (tmp_path / "map.json").write_text(f'{{"red": {red}, "green": 2, "blue": 1}}')
        with pytest.raises(ValueError, match=message):
            Subset.read(str(tmp_path / "map.json"), reader)


@pytest.mark.parametrize(
    "content, message",
    [
        ("red 7\n", r"no entry for 2 folders of the set, such as 'blue'"),
        ("red seven\ngreen 2\nblue 1\n", r"expected lines `folder class"),
        ("red 70\ngreen 2\nblue 1\n", r"names class 70, but the model has 3"),
        (None, r"no such file; expected lines"),
    ],
)
def test_a_wrong_mapping_is_named(images, tmp_path, content, message):
    if content is not None:
        (tmp_path / "map.txt").write_text(content)
    recipe = small.make_recipe(tmp_path, images, val={"subset": str(tmp_path / "map.txt")})
    with pytest.raises(UserError, match=message):
        main(["-opt", str(recipe), "--eval", "--set", "model.pretrained=false", "--weights", str(_weights(tmp_path))])


def test_a_mapping_to_classes_that_the_model_lacks_shows_before_the_run(images, tmp_path):
    """Not at the first evaluation, after an epoch."""
    (tmp_path / "map.txt").write_text("red 70\ngreen 2\nblue 1\n")
    recipe = small.make_recipe(tmp_path, images, val={"subset": str(tmp_path / "map.txt")})
    with pytest.raises(UserError, match="names class 70, but the model has 3"):
        main(["-opt", str(recipe), "--set", "data.batch_size=2"])
    assert not (tmp_path / "runs").exists()


def _weights(folder: Path) -> Path:
    from safetensors.torch import save_file

    arguments = {key: value for key, value in small.SMALL.items() if key != "name"}
    save_file(create_model("vheat_tiny", **arguments).state_dict(), folder / "w.safetensors")
    return folder / "w.safetensors"


@pytest.mark.parametrize(
    "override, message",
    [
        ("train.epoch=3", r"recipe\.yml: unknown key train\.epoch; did you mean epochs\?"),
        ("dat.root=x", r"there is no section 'dat'"),
        ("data.batch_size=many", r"data\.batch_size must be a whole number, got 'many'"),
        ("data.batch_size=3", r"data\.batch_size must be even for mixup and cutmix"),
        ("data.batch_size=64", r"15 training images are fewer than the 128 of a step"),
        ("data.batch_size=0", r"data\.batch_size must be above 0"),
        ("data.reader=tape", r"data\.reader must be one of folder, list, zip, tar"),
        ("name=sweep/first", r"name must be that of the run's folder, without / and not \.\.; .*, got 'sweep/first'"),
        ("name=..", r"name must be that of the run's folder"),
        ("data={reader: torch/cifar10, root: x, train: trian}", r"torch/cifar10 has no split 'trian'; known: train, "),
        ("data={reader: torch/cifar10, root: x, class_map: m}", r"torch/cifar10 numbers its classes itself"),
        ("data.cache=full", r"data\.cache full keeps a ZIP's bytes in memory, but data\.reader is folder"),
        ("data.root=nowhere", r"data\.root nowhere: no such folder"),
        ("data.train=training", r"has no folder 'training'; folders there: meta, train, val"),
        ("augment.erase=2", r"augment\.erase must lie between 0 and 1"),
        ("augment.crop=square", r"augment\.crop must be one of random_resized, padded"),
        ("augment.scale=[0.5]", r"augment\.scale must be 2 numbers"),
        ("augment.scale=[1.0, 0.5]", r"augment\.scale must be two numbers above 0, the smaller one first"),
        ("augment.auto_augment=rand-x5", r"augment\.auto_augment rand-x5: .*; expected a policy"),
        ("augment.auto_augment=none", r"augment\.auto_augment none: .*; expected a policy of timm, .* or ~ for none"),
        ("augment.erase_mode=noise", r"augment\.erase_mode must be one of pixel, rand, const"),
        ("augment.interpolation=cubic", r"augment\.interpolation must be one of bicubic, bilinear"),
        ("augment.cutmix_minmax=[2, 3]", r"augment\.cutmix_minmax must be two shares"),
        ("val.interpolation=random", r"val\.interpolation must be one of bicubic, bilinear"),
        ("val.crop_mode=middle", r"val\.crop_mode must be one of center, squash, border"),
        ("train.lr=1e-7", r"train\.min_lr is 5e-06, above train\.lr, 1e-07"),
        ("train.amp=fp16", r"train\.amp fp16 needs a CUDA device"),
        ("train.ema_decay=1.0", r"train\.ema_decay must be below 1"),
        ("train.optimizer=adamm", r"train\.optimizer adamm"),
        ("train.optimizer=adahessian", r"train\.optimizer adahessian needs second derivatives"),
        ("train.optimizer_args={nesterow: true}", r"train\.optimizer adamw with .*nesterow"),
        ("train.scheduler=plateau", r"train\.scheduler plateau"),
        ("train.scheduler=cosin", r"train\.scheduler"),
        ("train.warmup_epochs=9", r"train\.warmup_epochs is 9, more than train\.epochs"),
        ("model.name=vheat_huge", r"model: vheat_huge cannot be built"),
        ("model.dimz=8", r"model: vheat_tiny cannot be built .*dimz"),
        (
            "model.resize=best",
            r"model: vheat_tiny cannot be built .*unknown resize mode 'best'; known: exact, published",
        ),
        (
            "model={name: unified_swin_micro, num_classes: 3, mixer_args: {num_heads: [1, 2]}}",
            r"model: unified_swin_micro cannot be built .*mixer_args\.num_heads needs a value for each of 4 stages",
        ),
        ("model={name: vgg11, num_classes: 3, grad_checkpointing: true}", r"vgg11 cannot be built .*not supported"),
        ("model={name: resnet18, num_classes: 3, act_layer: relux}", r"resnet18 cannot be built .*unknown 'relux'"),
        ("model.num_classes=2", r"train: 3 classes, but the model has 2; set model\.num_classes .*red"),
        ("path.finetune=none.pth", r"no checkpoint none\.pth"),
    ],
)
def test_wrong_options_are_named_before_a_folder_is_made(images, tmp_path, override, message):
    recipe = small.make_recipe(tmp_path, images)
    with pytest.raises(UserError, match=message):
        main(["-opt", str(recipe), "--set", override])
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "reader, file, content, message",
    [
        ("list", "meta/train.txt", "red/00.png\n", r"train\.txt: entry 1: expected `relative/path class`"),
        ("list", "meta/train.txt", "", r"train\.txt: the list is empty"),
        ("list", "meta/train.txt", "red/00.png 2\nred/99.png 2\n", r"train lacks 1 files .*train\.txt names, .*99"),
        ("list", "meta/val.txt", "pink/00.png 2\n", r"val lacks 1 files that .*val\.txt names, .* 'pink/00\.png'"),
        ("list", "meta/train.txt", "red/00.png 3\n", r"4 classes, but the model has 3.*red/00\.png"),
        ("zip", "train_map.txt", "red/99.png\t2\n", r"train\.zip lacks 1 files .* the first is 'red/99\.png'"),
        ("zip", "train.zip", "no archive", r"train\.zip: not a whole ZIP archive"),
        ("folder", "train/red/00.png", "no image", r"red/00\.png: cannot be read as an image: cannot identify"),
    ],
)
def test_bad_data_are_named(tmp_path, reader, file, content, message):
    root = small.make_images(tmp_path / "set", train=3, val=1)
    small.make_lists(root)
    (root / file).write_text(content)
    recipe = small.make_recipe(tmp_path, root, data={"reader": reader})
    with pytest.raises(UserError, match=message):
        main(["-opt", str(recipe)])


@pytest.mark.parametrize("scheduler", ["vheat", "cosine"])
def test_rates_that_scale_with_the_batch_go_on_with_another_one(scheduler):
    train = ClassificationTrain(epochs=3, warmup_epochs=1, scheduler=scheduler, lr_for_batch=8)
    updates = []
    for images in (8, 16):
        model = nn.Linear(3, 3)
        optimizer = make_optimizer(train, model, images)
        set_lr = make_lr_schedule(train, optimizer, 5, images)
        updates.append(Update(model, optimizer))
    updates[1].load_state(updates[0].state())
    set_lr(5)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(2 * train.lr, rel=0.3)


@pytest.mark.parametrize("args", [{"cooldown_epochs": 1}, {"cycle_limit": 2}, {"warmup_prefix": True}], ids=str)
def test_a_schedule_longer_than_the_run_is_refused(args):
    """The run would end amid it, without the cooldown, the further cycle or the last rates."""
    train = ClassificationTrain(epochs=4, warmup_epochs=2, scheduler="cosine", lr=1e-2, min_lr=1e-4)
    optimizer = make_optimizer(train, nn.Linear(3, 3), 8)
    train.scheduler_args = args
    with pytest.raises(ValueError, match=r"takes \d epochs, .* but train\.epochs is 4; .*num_epochs"):
        make_lr_schedule(train, optimizer, 5, 8)
    train.scheduler_args = {**args, "num_epochs": 2}
    set_lr = make_lr_schedule(train, optimizer, 5, 8)
    set_lr(19)
    assert optimizer.param_groups[0]["lr"] < 2e-3


@pytest.mark.parametrize("scheduler", ["vheat", "unified"])
def test_arguments_that_a_published_schedule_does_not_take_are_refused(scheduler):
    """They changed nothing, without a word."""
    train = {"scheduler": scheduler, "scheduler_args": {"num_epochs": 2}}
    recipe = {"name": "x", "model": {"name": "vheat_tiny"}, "data": {"root": "."}, "train": train}
    with pytest.raises(ValueError, match=f"train.scheduler_args belongs to timm's schedules; {scheduler} goes by"):
        read_recipe(recipe)
    assert read_recipe({**recipe, "train": {**train, "scheduler": "cosine"}}).train.scheduler_args == {"num_epochs": 2}


def test_a_recipe_needs_its_sections():
    with pytest.raises(ValueError, match=r"^data is missing"):
        read_recipe({"name": "x", "model": {"name": "vheat_tiny"}})
    with pytest.raises(ValueError, match=r"data\.root is missing"):
        read_recipe({"name": "x", "model": {"name": "vheat_tiny"}, "data": {}})
