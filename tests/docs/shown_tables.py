"""How the commands and blocks of the pages are run in tests: what is appended, what they leave, what is excused."""

from pathlib import Path

import numpy as np
import skimage.data
import torch

from tests.docs import shown_place

GPU, CLUSTER = "needs a machine with eight GPUs", "needs several machines"
SLURM, INSTALLS = "needs SLURM", "installs packages"
SERVER = "fetches from the network; tests/vheatir/prepare/test_prepare_command.py does it with a server of its own"
MENTION = "names an option, not a whole command"

# Beginnings of the commands that are not run, and why. Each has to be on a page.
EXCUSED = {
    "make ": INSTALLS + "; make itself is asked below what it would do",
    "pip ": INSTALLS + "; the extras are checked below",
    "python3 -m venv ": INSTALLS,
    "python3.12 -m pip wheel ": INSTALLS,
    ".venv/bin/python -m pytest ": "runs other tests",
    "vheatir prepare BSD432 --download": SERVER,
    "vheatir prepare DFWB --download": SERVER,
    "vheatir prepare PD12M --list ": SERVER,
    "vheatir serve --open": "serves until it is stopped; tests/vheatir/test_serve.py starts it",
    "vheatir restore s3://": "needs a bucket; tests/vheatir/restore/test_restore_urls.py takes other file systems",
    "vheatir restore clip.mp4 ": "needs a clip; tests/vheatir/restore/video/test_clips.py makes some",
    "python benchmarks/video.py ": "needs BSD432 itself",
    "vheatir restore /shared/scans ": "needs Ray and a shared disk; restore/test_ray_workers.py has no cluster",
    "torchrun --nproc-per-node 8 -m vheatir pretrain ": GPU + "; classification/test_classify.py takes two processes",
    "torchrun --nnodes=2 ": CLUSTER,
    "srun ": SLURM,
    "python -m vheatir.basicsr ": "train/test_in_basicsr.py runs it",
    "torchrun --nproc_per_node=2 -m vheatir.basicsr ": "train/test_in_basicsr.py has two processes",
    "vheatir export experiments/smoke/": "needs a run of BasicSR's loop; train/test_stock_files.py has one",
    "vheatir restore photo.png -o clean.png --task denoise --weights experiments/": "needs that run too",
    "vheatir export denoise_color_blind --to pth": "train/test_stock_files.py goes both ways",
    "python -m basicsr.train": "the page says why it fails",
    "apt-get download ": INSTALLS,
    "vheatir prepare FreePhotos ": "needs those packages; prepare/test_debian_packages.py makes some",
    "vheatir train -opt photo_light --set name=photo_free ": "needs that set; train/test_recipes.py takes the recipe",
    "vheatir train -opt options/photo_light.yml --set threads=1 --set name=photo_free ": "likewise",
    "python benchmarks/heat_forms.py --splitting": "runs for minutes",
    "python benchmarks/side_by_side.py ": "runs for minutes",
    "python benchmarks/training_steps.py ": "needs two versions of the project",
    "python benchmarks/noise_crops.py ": "needs CBSD68 and Set12 themselves",
    "python benchmarks/speed_networks.py ": "needs the weights that were shipped before",
    "python benchmarks/plot_speed.py ": "needs the file of that",
    "python benchmarks/precision.py ": "runs for minutes; restore/test_precision.py has the choice",
    "python benchmarks/waiting.py ": "needs images of at least 164 pixels",
    "accelerate launch --cpu": "the page says not to",
    "vheatir restore --weights": MENTION,
    "vheatir restore --engine ray": MENTION,
    "vheatir evaluate --metrics": MENTION,
    "vheatir train -opt FILE": MENTION,
    "vheatir prepare --download": MENTION,
    "vheatir export WEIGHTS -o FILE": MENTION,
}


def sets(*changes: str) -> list[str]:
    return [part for change in changes for part in ("--set", change)]


SMALL_IMAGES = ["data.batch_size=2", "data.workers=0", "logger.use_tb_logger=false", "device=cpu"]
SMALL_MIXER = ["dims=8", "depths=[1, 1, 1, 1]"]
DETECTION = ["detector.channels=16", "detector.short_side=56", "detector.long_side=96", "augment.short_sides=[56]"]
DETECTION += [
    "augment.long_side=96",
    "detector.proposals=[40, 20]",
    "detector.box_samples=16",
    "detector.detections=10",
]
DETECTION += ["train.epochs=1", "train.milestones=[1]", "train.warmup_steps=1", "val.every=1"]
SEGMENTATION = ["head.channels=8", "head.aux_channels=8", "augment.scale=[72, 56]", "augment.crop=48", "val.crop=48"]
SEGMENTATION += ["val.scale=[72, 56]", "val.stride=32", "val.ratios=[1.0]", "train.steps=2", "train.warmup_steps=1"]
SEGMENTATION += ["val.every=2"]

TRAINING = r"^vheatir train -opt|-m vheatir\.train"

# What is appended to the commands that match; all that do, in this order.
MORE = (
    (TRAINING, sets("datasets.train.gt_size=16", "datasets.train.batch_size_per_gpu=2")),
    (TRAINING, sets("datasets.train.progressive=null")),
    (TRAINING, sets("train.warmup_iter=-1", "val.val_freq=2", "num_gpu=0")),
    (TRAINING, sets("logger.save_checkpoint_freq=2", "logger.use_tb_logger=false")),
    (TRAINING, sets("datasets.train.num_worker_per_gpu=0", "train.total_iter=2")),
    ("^vheatir train .*resume", sets("train.total_iter=4")),
    (r"(^vheatir train|^torchrun) .*options/denoise\.yml", sets("network_g.dim=8", "network_g.depths=[1]")),
    ("train --compare", ["--minutes", "0.01", "--validate-every", "0.005", *sets("datasets.train.gt_size=16")]),
    ("train --compare", sets("datasets.train.batch_size_per_gpu=1", "num_gpu=0")),
    ("designs.py", ["--minutes", "0.005", "--only", "heat", "no_attention", *sets("datasets.train.gt_size=16")]),
    ("designs.py", sets("datasets.train.batch_size_per_gpu=1", "num_gpu=0")),
    ("text_crops.py", ["--qualities", "30"]),
    ("vheatir preview", ["--measure", "4", "--count", "2", *sets("datasets.train.gt_size=16")]),
    ("vheatir preview", sets("datasets.train.progressive=null")),
    ("vheatir pretrain", sets(*SMALL_IMAGES, "train.epochs=1", "train.warmup_epochs=0", "val.every=1")),
    ("pretrain .*--throughput", sets("model.dims=8", "model.depths=[1, 1, 1, 1]", "model.img_size=32")),
    ("pretrain .*--throughput", sets("data.val_batch_size=1")),
    ("cifar_mixers.py", ["--epochs", "1", "--networks", "vheat", "--skip-speed"]),
    ("cifar_mixers.py", sets("data.batch_size=4", "train.warmup_epochs=0")),
    ("vheatir detect", sets(*SMALL_IMAGES, *DETECTION)),
    ("mask_rcnn_vheat_tiny_1x", sets(*(f"backbone.{text}" for text in [*SMALL_MIXER, "img_size=64"]))),
    ("mask_rcnn_vheat_tiny_1x", sets("data.num_classes=2")),
    ("detect .*--cost", ["--sizes", "64", "64x96", "--rounds", "0"]),
    ("vheatir segment", sets(*SMALL_IMAGES, *SEGMENTATION)),
    ("upernet_vheat_tiny_ade20k", sets(*(f"backbone.{text}" for text in [*SMALL_MIXER, "img_size=64"]))),
    ("camvid_instances.py", ["--least-area", "1"]),
    ("analyze cost", ["--model", "vheat_tiny", "--img-size", "64", "--rounds", "1"]),
    ("analyze cost", sets("dims=24", "depths=[1, 1, 1, 1]")),
    ("analyze invariance", ["--limit", "2", "--kinds", "translation"]),
    ("analyze receptive-field", ["--limit", "2"]),
    ("vheatir bench", ["--rounds", "1"]),
    ("bench hco", ["--shape", "1x32x32x16", "1x48x48x16"]),
    ("bench block", ["--shape", "1x8x8x4"]),
    ("bench model", ["--side", "32"]),
    ("bench restore", ["--image", "16x16", "--dim", "12", "--depths", "1"]),
    ("beyond_crop.py", ["--crop", "16"]),
    ("large_images.py", ["--megapixels", "0.01", "--format", "tif"]),
    ("seams.py", ["--size", "72", "160", "--tile", "64", "--overlap", "16"]),
    ("decays.py", ["--shape", "1x16x16x4", "--rounds", "1"]),
    ("reading.py", ["--rounds", "1", "--seconds", "0.05", "--crop", "16", "--workers", "0"]),
    ("deformable.py", ["--rounds", "1"]),
    ("network_forms.py", ["--rounds", "1", "--size", "64", "48"]),
)

# What a command leaves besides the files that its options name.
PROMISED = (
    ("vheatir demo", ["results/demo/denoise.png", "results/demo/jpeg.png"]),
    ("restore photo.png -o restored", ["restored/photo.png"]),
    ("restore scans/ more", ["restored/a.png", "restored/b.jpg"]),
    ("publish_weights", ["mine.safetensors", "mine.md"]),
    ("prepare my_photos", ["datasets/my_photos.manifest.json", "datasets/my_photos_sub"]),
    ("train -opt (options/)?denoise_light(.yml)?$", ["experiments/denoise_light/models/latest.safetensors"]),
    ("denoise_light.yml --(auto-)?resume", ["experiments/denoise_light/checkpoints/iter_00000004.pt"]),
    ("name=mine", ["experiments/mine/models/best.safetensors"]),
    ("name=tuned", ["experiments/tuned/models/best.safetensors"]),
    ("salt.yml", ["experiments/salt/models/best.safetensors"]),
    ("options/denoise.yml", ["experiments/denoise_color_15/models/latest.safetensors"]),
    ("train -opt (options/)?video_light", ["experiments/video_light/models/latest.safetensors"]),
    ("preview/samples.png", ["preview/samples.png"]),
    ("preview/beside.png", ["preview/beside.png", "preview/noise.json"]),
    (
        "experiments/comparison$",
        ["experiments/comparison/comparison.json", "experiments/comparison/psnr_over_time.png"],
    ),
    ("experiments/comparison_60$", ["experiments/comparison_60/comparison.json"]),
    (
        "pretrain -opt classification/cifar10_subset( --.*root.*| --resume| --set.*every=4|)$",
        ["experiments/cifar10_subset/models"],
    ),
    ("mask_rcnn_vheat_tiny_1x --(pretrained|resume)", ["experiments/mask_rcnn_vheat_tiny_1x/models/best.safetensors"]),
    ("ade20k --pretrained", ["experiments/upernet_vheat_tiny_ade20k/models/best.safetensors"]),
    ("name=mean", ["experiments/mean/models/best.safetensors"]),
    ("name=swin", ["experiments/swin/models/best.safetensors"]),
    ("name=cifar10_resnet18", ["experiments/cifar10_resnet18/models/best_ema.safetensors"]),
    ("camvid_vheat", ["experiments/camvid_vheat/models/best.safetensors"]),
    ("camvid_resnet18", ["experiments/camvid_resnet18/models/best.safetensors"]),
    ("bccd_vheat", ["experiments/bccd_vheat/models/best.safetensors"]),
    ("bccd_resnet18", ["experiments/bccd_resnet18/models/best.safetensors"]),
    ("camvid_instances_vheat", ["experiments/camvid_instances_vheat/models/best.safetensors"]),
    ("camvid_instances_resnet18", ["experiments/camvid_instances_resnet18/models/best.safetensors"]),
    ("camvid_instances.py", ["datasets/camvid_subset/instances_train.json"]),
    ("resize_checkpoint", ["vheat_tiny_512.safetensors"]),
    ("label_names", ["FILE"]),
    ("cifar_mixers", ["experiments/cifar_mixers/vheat/models/latest_ema.safetensors"]),
    ("plot_performance", ["results/performance_hco.png"]),
    ("analyze cost", ["analysis/cost.json", "analysis/cost.svg"]),
    ("analyze heat", ["analysis/heat.json", "analysis/heat_points.png", "analysis/heat_decay.png"]),
    ("analyze receptive-field", ["analysis/receptive_field.json"]),
    ("analyze invariance", ["analysis/invariance.json"]),
)
# What a command says, where it writes nothing or says more.
SAID = (
    ("^vheatir prepare$", "BSD432"),
    ("^vheatir prepare my_photos", "ready"),
    ("^vheatir info", "torch"),
    ("evaluate|compute_metrics", "PSNR"),
    ("^vheatir test", "psnr"),
    ("--throughput", "images/s"),
    ("--cost", "GMACs"),
    ("detect .*--eval", "box_ap"),
    ("segment .*--eval", "miou"),
    ("^vheatir demo", "PSNR"),
    ("--set threads=1$", "best psnr"),
)
WRITES = ("-o", "--out", "--json", "--figure", "--manifest", "--save-images", "--hub", "--label-maps", "--lmdb")

# What a page needs: packages, and more than the images that every work place has.
CLASSES = (("timm",), (shown_place.make_classes,))
NEEDS = {
    "README.md": (("basicsr",), (shown_place.make_lmdb,)),
    "datasets/README.md": (("basicsr",), (shown_place.make_lmdb,)),
    "benchmarks/README.md": (("lmdb",), ()),
    "docs/analysis.md": (("timm",), (shown_place.make_classes, shown_place.make_classifiers)),
    "docs/architecture.md": (("basicsr", "matplotlib"), ()),
    "docs/backbone.md": (("timm",), (shown_place.make_full_classifier,)),
    "docs/classification.md": CLASSES,
    "docs/dense.md": (
        ("timm", "pycocotools"),
        (shown_place.make_classes, shown_place.make_classifiers, shown_place.make_dense),
    ),
    "docs/export.md": (("onnxruntime", "onnxscript", "huggingface_hub"), (shown_place.make_small_denoiser,)),
    "docs/figures.md": (("matplotlib",), (shown_place.make_weights,)),
    "docs/howto.md": (("basicsr", "timm"), (shown_place.make_classes, shown_place.make_mixer)),
    "docs/integrations.md": (("spandrel", "deepinv"), ()),
    "docs/performance.md": (("basicsr", "matplotlib"), ()),
    "docs/restoration.md": ((), (shown_place.make_checkpoint,)),
    "docs/training.md": (("basicsr", "matplotlib"), ()),
    "docs/weights.md": (("matplotlib",), ()),
}


# What would take long and is not what the page is about: name and stand-in.
SMALLER = {
    "README.md": [
        ("skimage.data.chelsea", lambda photo=skimage.data.chelsea: photo()[:96, :96]),
        ("skimage.data.coffee", lambda photo=skimage.data.coffee: photo()[:96, :96]),
    ],
    **{key: [("vheatir.train.contestant._IMAGE", (33, 49))] for key in ("docs/architecture.md", "docs/training.md")},
}


def network_input(channels: int = 3) -> torch.Tensor:
    return torch.rand(1, channels, 32, 32)


def blurred() -> dict:
    """What the solver of docs/integrations.md is given."""
    import deepinv

    blur = deepinv.physics.functional.blur.gaussian_blur(sigma=(1.0, 1.0))
    physics = deepinv.physics.BlurFFT((3, 32, 32), filter=blur, noise_model=deepinv.physics.GaussianNoise(0.03))
    return {"image": network_input(), "measured": physics(network_input()), "physics": physics}


def agrees_in_onnx(network: torch.nn.Module, file: str) -> bool:
    """Whether onnxruntime gives what the network does, at a size that it was not exported at."""
    import onnxruntime

    image = torch.rand(1, 3, 19, 40)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"image": image.numpy()})
    return torch.allclose(torch.from_numpy(found), network(image), atol=1e-5)


# Names that the blocks of a page take as given.
GIVEN = {
    "README.md": lambda: {"noisy": np.full((20, 24, 3), 0.5, np.float32)},
    "docs/integrations.md": blurred,
}

# What the names of a block hold after it. Blocks with an `assert` of their own need no line.
HOLDS = {
    ("README.md", 0): lambda names: names["restored"].shape == names["noisy"].shape,
    ("README.md", 1): lambda names: names["y"].shape == names["x"].shape,
    ("docs/architecture.md", 0): lambda names: names["y"].shape == (2, 20, 30, 32),
    ("docs/backbone.md", 0): lambda names: [x.shape[1:] for x in names["maps"]] == [(64, 13, 19), (256, 4, 5)],
    ("docs/backbone.md", 1): lambda names: names["model"].num_classes == 1000,
    ("docs/backbone.md", 2): lambda names: names["model"].num_classes == 10,
    ("docs/backbone.md", 3): lambda names: (
        names["scores"].shape == (1, 10) and names["kept_info"](names["model"])[1:] == (0, 0)
    ),
    ("docs/backbone.md", 4): lambda names: names["maps"][0].shape == (1, 96, 20, 28),
    ("docs/backbone.md", 5): lambda names: names["mean_small"]().num_classes == 1000,
    ("docs/backbone.md", 6): lambda names: names["scores"].shape == (2, 10),
    ("docs/dense.md", 0): lambda names: names["scores"].shape == (1, 5, 60, 80) and "masks" in names["found"],
    ("docs/evaluation.md", 0): lambda names: (
        names["results"][0]["input"]["psnr"] < names["results"][0]["restored"]["psnr"]
    ),
    ("docs/export.md", 0): lambda names: names["restored"].shape == (1, 3, 120, 161),
    ("docs/export.md", 1): lambda names: names["restored"].shape == (1, 3, 120, 161),
    ("docs/export.md", 2): lambda names: names["network"](network_input()).shape == (1, 3, 32, 32),
    ("docs/export.md", 3): lambda names: agrees_in_onnx(names["network"], "own.onnx"),
    ("docs/howto.md", 0): lambda names: "share" in names["SaltAndPepper"].OPTIONS,
    ("docs/integrations.md", 0): lambda names: names["restored"].shape == (1, 3, 32, 32),
    ("docs/integrations.md", 1): lambda names: names["restored"].isfinite().all(),
    ("docs/operator.md", 0): lambda names: names["y"].shape == names["x"].shape,
    ("docs/operator.md", 1): lambda names: names["z"].shape == names["x"].shape,
    ("docs/operator.md", 2): lambda names: callable(names["compiled"]),
    ("docs/operator_forms.md", 0): lambda names: names["clip"].shape == (1, 5, 40, 60, 16),
    ("docs/operator_forms.md", 1): lambda names: names["exact"].shape == names["x"].shape,
    ("docs/operator_forms.md", 2): lambda names: names["moved"].shape == names["clip"].shape,
    ("docs/operator_forms.md", 3): lambda names: names["decays"].grad.isfinite().all(),
    ("docs/restoration.md", 0): lambda names: names["restored"].shape == names["noisy"].shape,
    ("docs/restoration.md", 1): lambda names: Path("photo_restored.png").is_file(),
}
