"""Options of a training recipe that change what a step sees: stages, mixup, steps on the device, consistency."""

import signal

import pytest
import torch

from vheatir import weights
from vheatir.data.batch_degradations import mixup
from vheatir.errors import UserError

pytest.importorskip("basicsr", reason="training needs BasicSR")

STAGES = (
    "datasets.train.progressive=[{start_iter: 4, gt_size: 24, batch_size_per_gpu: 1}, {start_iter: 8, gt_size: 32}]"
)
MIXUP = "train.mixup={beta: 1.2, probability: 0.7}"
ON_DEVICE = "datasets.train.on_device=[noise, augment]"
JPEG = (
    "datasets.train={type: JPEGDataset, dataroot_gt: TRAIN, quality: {min: 10, max: 50}, gt_size: 24, "
    "batch_size_per_gpu: 2}"
)
CONSISTENCY = "train.consistency_opt={type: JPEGConsistencyLoss, loss_weight: 0.5}"


@pytest.fixture
def jpeg(small_photos):
    """Overrides for gray JPEG training with the consistency loss."""
    return (JPEG.replace("TRAIN", str(small_photos / "train")), CONSISTENCY, "network_g.in_chans=1")


@pytest.fixture
def fed(monkeypatch):
    """What the network gets in training: a list of (input shape, input and target of the batch) that grows."""
    from vheatir.train.model import VHeatIRModel

    seen, losses = [], VHeatIRModel.losses

    def spy(self, output, part):
        if torch.is_grad_enabled():
            seen.append((tuple(self.lq.shape), self.lq.clone(), self.gt.clone()))
        return losses(self, output, part)

    monkeypatch.setattr(VHeatIRModel, "losses", spy)
    return seen


def test_crops_grow_and_batches_shrink_at_the_stated_iterations(train, fed):
    train(STAGES)
    shapes = [shape for shape, *_ in fed]
    assert shapes == [(2, 3, 16, 16)] * 4 + [(1, 3, 24, 24)] * 4 + [(1, 3, 32, 32)] * 4


@pytest.mark.parametrize("stop, workers", [(4, 0), (3, 2), (9, 2)])
def test_resume_in_progressive_training_is_exact(train, monkeypatch, stop, workers):
    from vheatir.train.model import VHeatIRModel

    more = (STAGES, MIXUP, ON_DEVICE, f"datasets.train.num_worker_per_gpu={workers}", "datasets.train.sigma=[15, 50]")
    straight = train(*more, name="straight")
    with monkeypatch.context() as patch:
        parts = VHeatIRModel.parts
        patch.setattr(
            VHeatIRModel,
            "parts",
            lambda self, i: (signal.raise_signal(signal.SIGINT) if i == stop else None, parts(self, i))[1],
        )
        folder = train(*more, name="stopped", status=130)
    torch.manual_seed(99)
    train(*more, name="stopped", resume=True)
    train.assert_same(straight, folder)
    assert train.curves(folder) == train.curves(straight)


@pytest.mark.parametrize("on_device", ["[]", "[jpeg_approximate, augment]"])
def test_resume_with_the_consistency_loss_is_exact(train, jpeg, on_device):
    more = (*jpeg, f"datasets.train.on_device={on_device}")
    straight = train(*more, name="straight")
    train(*more, "train.total_iter=8", name="longer")
    train.assert_same(straight, train(*more, name="longer", resume=True))


def consistency(train, folder):
    return [point["train/l_consistency"] for point in train.curves(folder) if "train/l_consistency" in point]


def test_training_with_the_consistency_loss_lowers_it(train, jpeg):
    more = ("train.total_iter=30", "train.optim_g.lr=5e-3", "logger.print_freq=1", "val.val_freq=30")
    values = consistency(train, train(*jpeg, *more, "datasets.train.batch_size_per_gpu=3"))
    assert len(values) == 30 and sum(values[-10:]) < 0.9 * sum(values[:10])


def test_consistency_of_parts_adds_up_to_that_of_the_batch(train, jpeg):
    runs = [train(*jpeg, f"train.accumulate={parts}", "train.total_iter=4", name=f"n{parts}") for parts in (1, 2)]
    one, two = (consistency(train, folder) for folder in runs)
    assert len(one) == 2 and one == pytest.approx(two, rel=1e-3)


def test_mixup_mixes_neighbours_in_input_and_target_alike(train, fed):
    train("train.total_iter=6", "datasets.train.batch_size_per_gpu=3", name="plain")
    plain, fed[:] = list(fed), []
    train("train.total_iter=6", "datasets.train.batch_size_per_gpu=3", "train.mixup={beta: 1.2}", name="mixed")
    weights_seen = []
    for (_, lq, gt), (_, mixed_lq, mixed_gt) in zip(plain, fed, strict=True):
        difference = gt[1] - gt[0]
        weight = float(((mixed_gt[0] - gt[0]) * difference).sum() / difference.square().sum())
        weights_seen.append(weight)
        for clean, mixed in ((lq, mixed_lq), (gt, mixed_gt)):
            torch.testing.assert_close(mixed[0], clean[0].lerp(clean[1], weight), atol=1e-5, rtol=0)
            torch.testing.assert_close(mixed[1], clean[1].lerp(clean[0], weight), atol=1e-5, rtol=0)
            assert torch.equal(mixed[2], clean[2]), "an odd one out stays alone"
    assert len(set(weights_seen)) == 6 and all(0 < weight < 1 for weight in weights_seen)


def test_mixup_weights_follow_beta_and_its_share_of_iterations():
    images = [torch.tensor([0.0, 1.0])]
    drawn = [mixup(images, 0, iteration, 1.2, 0.5)[0][0].item() for iteration in range(2000)]
    mixed = torch.tensor([value for value in drawn if value > 0])
    assert abs(len(mixed) / 2000 - 0.5) < 0.06
    assert abs(mixed.mean() - 0.5) < 0.05 and abs(mixed.var() - 1 / (4 * (2 * 1.2 + 1))) < 0.008
    again = [mixup(images, 0, iteration, 1.2, 0.5)[0][0].item() for iteration in (7, 1999)]
    assert again == [drawn[7], drawn[1999]] and mixup(images, 1, 7, 1.2, 1.0)[0][0] != mixup(images, 0, 7, 1.2)[0][0]


def test_training_learns_with_all_of_them(train):
    more = ("train.total_iter=80", "network_g.dim=16", "train.optim_g.lr=5e-3", "datasets.train.batch_size_per_gpu=4")
    schedule = "train.scheduler={type: CosineAnnealingRestartLR, periods: [80]}"
    stages = "datasets.train.progressive=[{start_iter: 40, gt_size: 24, batch_size_per_gpu: 2}]"
    folder = train(stages, MIXUP, ON_DEVICE, *more, schedule, "val.val_freq=80")
    (last,) = [point for point in train.curves(folder) if "val/psnr" in point]
    assert last["val/psnr"] > last["val/input_psnr"] + 1
    assert weights.read(folder / "models" / "best.safetensors")[1]["levels"] == "25"


def test_images_need_not_hold_the_crops_of_a_stage_that_never_begins(train):
    folder = train("datasets.train.progressive=[{start_iter: 2, gt_size: 41}]", "train.total_iter=2", "val.val_freq=2")
    assert "the stage of iteration 2 never begins" in (folder / "train.log").read_text()


@pytest.mark.parametrize(
    "change, message",
    [
        ("datasets.train.progressive={start_iter: 3}", r"datasets\.train: progressive: expected a list of"),
        ("datasets.train.progressive=[{start_iter: 3}]", r"progressive\[0\]\.gt_size: expected an integer .*got None"),
        (
            "datasets.train.progressive=[{start_iter: 0, gt_size: 9}]",
            r"progressive\[0\]\.start_iter: expected .* 1, got",
        ),
        (
            "datasets.train.progressive=[{start_iter: 5, gt_size: 9}, {start_iter: 5, gt_size: 9}]",
            r"progressive\[1\]\.start_iter: expected more than 5, where the stage before begins, got 5",
        ),
        (
            "datasets.train.progressive=[{start: 5, gt_size: 9}]",
            r"progressive\[0\]: unknown key start; known: start_iter",
        ),
        (
            "datasets.train.progressive=[{start_iter: 5, gt_size: 41}]",
            r"train0\.png: 40x44 pixels, expected at least 41 on each side, the largest crop \(gt_size, progressive\)",
        ),
        ("datasets.train.on_device=[jpeg]", r"datasets\.train: on_device: expected a list of augment, noise"),
        ("datasets.val.on_device=[noise]", r"datasets\.val: on_device: is for training"),
        ("train.mixup={alpha: 1}", r"unknown key train\.mixup\.alpha; known here: beta, probability"),
        ("train.mixup={beta: 0}", r"train\.mixup\.beta must be above 0, got 0"),
        ("train.mixup={beta: 1, probability: 2}", r"train\.mixup\.probability must lie between 0 and 1, got 2"),
        (
            "train.consistency_opt={type: JPEGConsistencyLoss}",
            r"consistency_opt needs datasets\.train\.type JPEGDataset",
        ),
        ("train.consistency_opt={loss_weight: 1}", r"train\.consistency_opt needs a type"),
    ],
)
def test_wrong_values_name_their_key_and_leave_no_run(train, change, message):
    with pytest.raises(UserError, match=message):
        train(change)
    assert not train.root.exists()


@pytest.mark.parametrize(
    "change, message",
    [
        (MIXUP, "a mixture of JPEGs is no JPEG"),
        (
            "datasets.train.gt_size=15",
            r"a loss does not fit datasets\.train.*15 pixels may hold no whole block; 16 are",
        ),
        ("train.consistency_opt.wieght=1", r"unknown key train\.consistency_opt\.wieght"),
    ],
)
def test_what_does_not_go_with_consistency_is_refused(train, jpeg, change, message):
    with pytest.raises(UserError, match=message):
        train(*jpeg, change)
    assert not train.root.exists()


def test_mixup_does_not_go_with_a_level_map(train):
    with pytest.raises(UserError, match="a mixture has no level"):
        train(MIXUP, "datasets.train.level_map=true", "network_g.level_map=true")


def test_two_gloo_processes_see_of_stages_mixup_and_the_device_what_one_sees(train):
    def stages(batch):
        later = f"[{{start_iter: 3, gt_size: 24, batch_size_per_gpu: {batch}}}]"
        return f"datasets.train.progressive={later}", f"datasets.train.batch_size_per_gpu={2 * batch}"

    more = (MIXUP, ON_DEVICE, "datasets.train.sigma=[15, 50]", "train.total_iter=6", "val.val_freq=6")
    one = train(*more, *stages(4), name="one")
    assert [ended.status for ended in train.ranks(2, *more, *stages(2), name="two")] == [0, 0]
    two = train.root / "two"
    assert train.losses(two) == pytest.approx(train.losses(one), rel=1e-4)
    for key, value in train.state(one)["network"].items():
        torch.testing.assert_close(train.state(two)["network"][key], value, rtol=1e-4, atol=5e-6)
