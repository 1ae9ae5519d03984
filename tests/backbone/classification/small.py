"""A small labeled set and a small recipe, for the tests of classification."""

import tarfile
import zipfile
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

COLORS = {"blue": (30, 60, 220), "green": (40, 200, 60), "red": (220, 50, 40)}
SMALL = {"name": "vheat_tiny", "img_size": 32, "num_classes": 3, "dims": 8, "depths": [1, 1, 1, 1]}
SMALL["drop_path_rate"] = 0.2


def make_images(root: Path, train: int = 16, val: int = 6) -> Path:
    """Noisy images of one color each, in folders named after it: train/ and val/."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for name, color in COLORS.items():
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                noise = rng.normal(color, 40, (40, 36, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(noise).save(folder / f"{number:02d}.png")
    return root


def make_lists(root: Path) -> None:
    """The same set as lists, meta/<split>.txt, and as archives, <split>.zip and <split>_map.txt, <split>.tar."""
    (root / "meta").mkdir()
    for split in ("train", "val"):
        names = sorted(path.relative_to(root / split).as_posix() for path in (root / split).rglob("*.png"))
        labels = [sorted(COLORS).index(name.split("/")[0]) for name in names]
        pairs = list(zip(names, labels, strict=True))
        (root / "meta" / f"{split}.txt").write_text("".join(f"{name} {label}\n" for name, label in pairs))
        (root / f"{split}_map.txt").write_text("".join(f"{split}.zip@/{name}\t{label}\n" for name, label in pairs))
        with zipfile.ZipFile(root / f"{split}.zip", "w") as archive:
            for name in names:
                archive.write(root / split / name, name)
        with tarfile.open(root / f"{split}.tar", "w") as archive:
            for name in names:
                archive.add(root / split / name, name)


def make_recipe(folder: Path, root: Path, **sections) -> Path:
    """A recipe that uses all that is random: 48 images, 6 steps of 8 an epoch, 2 epochs. Sections are merged."""
    recipe = {
        "name": "small",
        "device": "cpu",
        "model": SMALL,
        "data": {"root": str(root), "batch_size": 4, "val_batch_size": 5, "workers": 0},
        "augment": {"auto_augment": "rand-m5-mstd0.5-inc1", "erase": 0.5},
        "train": {"epochs": 2, "warmup_epochs": 0, "lr": 2e-3, "accumulate": 2, "ema_decay": 0.9, "amp": "none"},
        "val": {"crop_pct": 1.0},
        "path": {"experiments_root": str(folder / "runs")},
        "logger": {"print_freq": 2, "save_freq": 2, "use_tb_logger": False},
    }
    for name, section in sections.items():
        recipe[name] = {**recipe[name], **section} if isinstance(section, dict) else section
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "recipe.yml"
    path.write_text(yaml.safe_dump(recipe))
    return path
