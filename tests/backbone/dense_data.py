"""Small sets of annotated images, and recipes to train on them, for the tests of detection and segmentation."""

import json
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from vheatir.backbone.models.unified import SIZES

COLORS = ((210, 40, 40), (40, 70, 220))  # of the two classes; the ground is green and noisy
WIDTH, HEIGHT = 72, 56
SMALL = {"name": "vheat_tiny", "img_size": 64, "dims": 8, "depths": [1, 1, 1, 1], "drop_path_rate": 0.1}


def draw_image(rng: np.random.Generator, objects: int = 2) -> tuple[np.ndarray, list[tuple[int, int, int, int, int]]]:
    """Pixels, and rectangles x0, y0, x1, y1, class (0 or 1) that do not overlap."""
    pixels = rng.normal((60, 140, 60), 25, (HEIGHT, WIDTH, 3))
    found = []
    for number in range(objects):
        left, right = number * WIDTH // objects, (number + 1) * WIDTH // objects
        w, h = int(rng.integers(14, right - left - 2)), int(rng.integers(16, HEIGHT - 8))
        x, y, kind = int(rng.integers(left, right - w)), int(rng.integers(0, HEIGHT - h)), int(rng.integers(2))
        pixels[y : y + h, x : x + w] = COLORS[kind] + rng.normal(0, 12, (h, w, 3))
        found.append((x, y, x + w, y + h, kind))
    return pixels.clip(0, 255).astype(np.uint8), found


def make_coco(root: Path, train: int = 6, val: int = 3) -> Path:
    """train.json and val.json with polygons, images in train/ and val/; category ids are 3 and 7."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        (root / split).mkdir(parents=True)
        images, annotations = [], []
        for number in range(1, count + 1):
            pixels, objects = draw_image(rng)
            Image.fromarray(pixels).save(root / split / f"{number}.png")
            images.append({"id": 10 * number, "file_name": f"{number}.png", "width": WIDTH, "height": HEIGHT})
            for x0, y0, x1, y1, kind in objects:
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": 10 * number,
                        "category_id": (3, 7)[kind],
                        "bbox": [x0, y0, x1 - x0, y1 - y0],
                        "area": (x1 - x0) * (y1 - y0),
                        "iscrowd": 0,
                        "segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]],
                    }
                )
        categories = [{"id": 3, "name": "red"}, {"id": 7, "name": "blue"}]
        table = {"images": images, "annotations": annotations, "categories": categories}
        (root / f"{split}.json").write_text(json.dumps(table))
    return root


def make_voc(root: Path, count: int = 4) -> Path:
    """The same kind of images in VOC's layout, one list `train` of all."""
    rng = np.random.default_rng(1)
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for number in range(count):
        pixels, objects = draw_image(rng)
        Image.fromarray(pixels).save(root / "JPEGImages" / f"p{number}.png")
        boxes = "".join(
            f"<object><name>{('red', 'blue')[kind]}</name><bndbox><xmin>{x0 + 1}</xmin><ymin>{y0 + 1}</ymin>"
            f"<xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
            for x0, y0, x1, y1, kind in objects
        )
        size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height></size>"
        text = f"<annotation><filename>p{number}.png</filename>{size}{boxes}</annotation>"
        (root / "Annotations" / f"p{number}.xml").write_text(text)
    (root / "ImageSets" / "Main" / "train.txt").write_text("".join(f"p{number}\n" for number in range(count)))
    return root


def make_label_maps(root: Path, layout: str = "folders", train: int = 6, val: int = 3) -> Path:
    """Images with label maps of three classes (ground 0, red 1, blue 2) in a layout's folders and numbers."""
    rng = np.random.default_rng(2)
    numbers = {"folders": [0, 1, 2], "ade20k": [1, 2, 3], "cityscapes": [7, 8, 11]}[layout]
    for split, count in (("train", train), ("val", val)):
        for number in range(count):
            pixels, objects = draw_image(rng)
            labels = np.full((HEIGHT, WIDTH), numbers[0], np.uint8)
            for x0, y0, x1, y1, kind in objects:
                labels[y0:y1, x0:x1] = numbers[1 + kind]
            image, labels_file = label_paths(root, layout, split, f"p{number}")
            for path in (image, labels_file):
                path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(image)
            Image.fromarray(labels).save(labels_file)
    return root


def label_paths(root: Path, layout: str, split: str, name: str) -> tuple[Path, Path]:
    """Where a layout keeps an image and its label map."""
    if layout == "ade20k":
        split = {"train": "training", "val": "validation"}[split]
        return root / "images" / split / f"{name}.jpg", root / "annotations" / split / f"{name}.png"
    if layout == "cityscapes":
        image = root / "leftImg8bit" / split / "town" / f"{name}_leftImg8bit.png"
        return image, root / "gtFine" / split / "town" / f"{name}_gtFine_labelIds.png"
    return root / "images" / split / f"{name}.jpg", root / "labels" / split / f"{name}.png"


def _written(folder: Path, recipe: dict, sections: dict) -> Path:
    for name, section in sections.items():
        recipe[name] = {**recipe.get(name, {}), **section} if isinstance(section, dict) else section
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "recipe.yml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def detection_recipe(folder: Path, root: Path, **sections) -> Path:
    """A recipe for `make_coco`: 3 steps an epoch, 2 epochs. Sections are merged."""
    recipe = {
        "name": "small",
        "device": "cpu",
        "backbone": dict(SMALL),
        "data": {"root": str(root), "train": "train.json", "val": "val.json", "train_images": "train"},
        "detector": {"channels": 16, "anchors": [8, 16, 32, 64, 128], "short_side": 56, "long_side": 96},
        "augment": {"short_sides": [48, 56], "long_side": 96},
        "train": {"epochs": 2, "milestones": [1], "lr": 1e-3, "warmup_steps": 2, "ema_decay": 0.9, "grad_clip": 5.0},
        "val": {"every": 2},
        "path": {"experiments_root": str(folder / "runs")},
        "logger": {"print_freq": 2, "save_freq": 2, "use_tb_logger": False},
    }
    recipe["data"] |= {"val_images": "val", "batch_size": 2, "workers": 0}
    recipe["detector"] |= {"proposals": [40, 20], "box_samples": 16, "detections": 10}
    return _written(folder, recipe, sections)


def segmentation_recipe(folder: Path, root: Path, **sections) -> Path:
    """A recipe for `make_label_maps`: 6 steps. Sections are merged."""
    recipe = {
        "name": "small",
        "device": "cpu",
        "backbone": dict(SMALL),
        "data": {"root": str(root), "num_classes": 3, "classes": ["ground", "red", "blue"], "batch_size": 2},
        "head": {"channels": 8, "aux_channels": 8},
        "augment": {"scale": [72, 56], "crop": 48},
        "train": {"steps": 6, "schedule": "poly", "lr": 1e-3, "warmup_steps": 2, "ema_decay": 0.9},
        "val": {"every": 3, "scale": [72, 56], "crop": 48, "stride": 32, "ratios": [0.75, 1.0]},
        "path": {"experiments_root": str(folder / "runs")},
        "logger": {"print_freq": 2, "save_freq": 2, "use_tb_logger": False},
    }
    recipe["data"]["workers"] = 0
    return _written(folder, recipe, sections)


def shrunk(name: str) -> dict:
    """Arguments that make a backbone small and keep its kind, its heads among them."""
    family, _, rest = name.partition("_")
    mixer, _, size = rest.rpartition("_")
    small = {"name": name, "depths": [1, 1, 1, 1], "img_size": 64}
    if family == "vheat" or mixer == "convnext":
        return {**small, "dims": 8}
    if mixer == "pvt":
        return {**small, "dims": [8, 16, 40, 64]}
    return {**small, "dims": 8 * SIZES[mixer][size]["mixer_args"]["num_heads"][0]}
