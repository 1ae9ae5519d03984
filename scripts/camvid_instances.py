#!/usr/bin/env python3
"""Cars and pedestrians of CamVid as objects: connected components of its label maps, in COCO's format.

    python scripts/camvid_instances.py datasets/camvid_subset datasets/camvid_subset

Reads `labels/train` and `labels/val` of the first folder, whose numbers 8 and 9 are Car and Pedestrian, and writes
`instances_train.json` and `instances_val.json` into the second. Two cars that touch in the image are one object: the
label maps do not tell them apart.
"""

import argparse
import json
import sys
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as rle

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

CLASSES = {8: "Car", 9: "Pedestrian"}


def objects(labels: np.ndarray, least_area: int) -> list[dict]:
    """Components, 8-connected, of at least so many pixels; entries of COCO's annotations without ids."""
    found = []
    for category, number in enumerate(CLASSES, 1):
        count, components, stats, _ = cv2.connectedComponentsWithStats(
            (labels == number).astype(np.uint8), connectivity=8
        )
        for component in range(1, count):
            x, y, width, height, area = (int(value) for value in stats[component])
            if area >= least_area:
                coded = rle.encode(np.asfortranarray((components == component).astype(np.uint8)))
                segmentation = {"size": coded["size"], "counts": coded["counts"].decode("ascii")}
                found.append(
                    {
                        "category_id": category,
                        "bbox": [x, y, width, height],
                        "area": area,
                        "iscrowd": 0,
                        "segmentation": segmentation,
                    }
                )
    return found


def convert(folder: Path, least_area: int) -> dict:
    """A folder of label maps as a table in COCO's format; images have the maps' names, as .jpg."""
    images, annotations = [], []
    for number, path in enumerate(sorted(folder.glob("*.png")), 1):
        labels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        if labels is None or labels.ndim != 2:
            raise SystemExit(f"{path}: expected a label map of one channel")
        images.append(
            {"id": number, "file_name": f"{path.stem}.jpg", "height": labels.shape[0], "width": labels.shape[1]}
        )
        for entry in objects(labels, least_area):
            annotations.append({"id": len(annotations) + 1, "image_id": number, **entry})
    if not images:
        raise SystemExit(f"{folder}: no label maps (*.png)")
    categories = [{"id": category, "name": name} for category, name in enumerate(CLASSES.values(), 1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def main() -> None:
    from vheatir.utils.files import atomic_open

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("camvid", type=Path, help="folder with labels/train and labels/val")
    parser.add_argument("output", type=Path, help="folder for the JSON files")
    parser.add_argument("--least-area", type=int, default=100, help="pixels of the smallest object that counts")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    for split in ("train", "val"):
        table = convert(args.camvid / "labels" / split, args.least_area)
        with atomic_open(args.output / f"instances_{split}.json") as file:
            file.write(json.dumps(table).encode())
        counts = [sum(one["category_id"] == category for one in table["annotations"]) for category in (1, 2)]
        print(f"{split}: {len(table['images'])} images, {counts[0]} cars, {counts[1]} pedestrians")


if __name__ == "__main__":
    main()
