"""Objects from COCO's JSON and VOC's XML; what is wrong with either is noted by file and rule."""

import json
import xml.etree.ElementTree as ET
from collections import defaultdict
from pathlib import Path

from vheatir.backbone.dense.image_files import Problem, size_problem
from vheatir.backbone.detection.recipe import Data
from vheatir.backbone.detection.records import Catalogue, Record, Thing, box_rule, clipped, segmentation_rule


def read_catalogue(data: Data, training: bool, masks: bool, classes: tuple[str, ...] | None = None) -> Catalogue:
    """A split of a data set.

    Args:
        data: where it is.
        training: the split for training, else that for evaluation.
        masks: objects need masks.
        classes: names in the order of their numbers; None takes `data.classes`, or those of the data.

    Raises:
        FileNotFoundError, ValueError: the split cannot be read at all. Broken rules are in the result.
    """
    root, split = Path(data.root), data.train if training else data.val
    if not root.is_dir():
        raise FileNotFoundError(f"data.root {root}: no such folder; set it to the data set's folder")
    classes = classes or data.classes
    if data.format == "voc":
        return read_voc(root, split, classes)
    return read_coco(root / split, root / (data.train_images if training else data.val_images), masks, classes)


def _coco_tables(file: Path) -> dict[str, list]:
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; expected annotations in COCO's format (data.train, data.val)")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{file}: not JSON ({error})") from error
    names = ("images", "annotations", "categories")
    if not isinstance(content, dict) or any(not isinstance(content.get(name), list) for name in names):
        raise ValueError(f"{file}: expected a table with the lists {', '.join(names)}")
    if not content["images"]:
        raise ValueError(f"{file}: the list of images is empty")
    return content


def _labels(file: Path, categories: list, classes: tuple[str, ...] | None) -> tuple[dict, tuple[str, ...]]:
    """Labels from 1 on by category id, and their names."""
    names = {one["id"]: str(one["name"]) for one in sorted(categories, key=lambda one: one["id"])}
    if classes is None:
        classes = tuple(names.values())
    lacking = [name for name in classes if name not in names.values()]
    if lacking:
        raise ValueError(f"{file}: no category {lacking[0]!r}; categories there: {', '.join(names.values())}")
    order = {name: label for label, name in enumerate(classes, 1)}
    return {number: order.get(name, 0) for number, name in names.items()}, classes


def read_coco(file: Path, folder: Path, masks: bool, classes: tuple[str, ...] | None = None) -> Catalogue:
    """Pictures below `folder` with the objects of a JSON file in COCO's format.

    Raises:
        FileNotFoundError, ValueError: no such file, or not of that form.
    """
    tables, problems = _coco_tables(file), []
    try:
        labels, classes = _labels(file, tables["categories"], classes)
        by_image = defaultdict(list)
        for one in tables["annotations"]:
            by_image[one["image_id"]].append(one)
        records, seen = [], set()
        for one in tables["images"]:
            number, stated = one["id"], (int(one["width"]), int(one["height"]))
            path = folder / one["file_name"]
            if number in seen:
                problems.append(Problem(str(path), "an image id that is taken", f"{file.name}: id {number}"))
                continue
            seen.add(number)
            size, problem = size_problem(path, stated)
            if problem is not None:
                problems.append(problem)
                continue
            things = [_coco_thing(entry, labels, path, size, masks, problems) for entry in by_image[number]]
            records.append(Record(path, number, *size, [thing for thing in things if thing is not None]))
    except (KeyError, TypeError) as error:
        raise ValueError(f"{file}: an entry lacks {error}, or is no table") from error
    for number in sorted(set(by_image) - seen, key=str):
        rule = "an annotation of an image that is not listed"
        problems.append(Problem(str(file), rule, f"annotation {by_image[number][0]['id']}, image {number}"))
    return Catalogue(records, classes, problems)


def _coco_thing(
    entry: dict, labels: dict, path: Path, size: tuple[int, int], masks: bool, problems: list[Problem]
) -> Thing | None:
    """An object, or None: its class is not asked for, or it breaks a rule, which is noted."""
    where = f"annotation {entry['id']}"
    if entry["category_id"] not in labels:
        problems.append(Problem(str(path), "an unknown category", f"{where}, category {entry['category_id']}"))
        return None
    label = labels[entry["category_id"]]
    if label == 0:
        return None
    values = entry.get("bbox")
    if not values or len(values) != 4:
        problems.append(Problem(str(path), "an empty annotation", f"{where} has no box"))
        return None
    x, y, width, height = map(float, values)
    box, crowd, segmentation = (x, y, x + width, y + height), bool(entry.get("iscrowd", 0)), entry.get("segmentation")
    rule = box_rule(box, *size) or (segmentation_rule(segmentation, *size) if masks else None)
    if rule is not None:
        problems.append(Problem(str(path), rule, f"{where}, box {values}"))
        return None
    area = float(entry.get("area") or width * height)
    return Thing(clipped(box, *size), label, crowd, area, segmentation if masks else None)


def _voc_names(root: Path, split: str) -> list[str]:
    file = root / "ImageSets" / "Main" / f"{split}.txt"
    if not file.is_file():
        held = ", ".join(sorted(path.stem for path in file.parent.glob("*.txt"))) or "none"
        raise FileNotFoundError(f"{file}: no such list (data.train, data.val); lists there: {held}")
    names = [line.split()[0] for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not names:
        raise ValueError(f"{file}: the list is empty")
    return names


def read_voc(root: Path, split: str, classes: tuple[str, ...] | None = None) -> Catalogue:
    """Pictures and boxes of a folder in VOC's layout; coordinates are pixels from 1 on, both ends inside.

    Raises:
        FileNotFoundError, ValueError: no such list, or no objects to take the classes from.
    """
    problems, found = [], []
    for name in _voc_names(root, split):
        file = root / "Annotations" / f"{name}.xml"
        tree, problem = _parsed(file)
        if problem is not None:
            problems.append(problem)
            continue
        picture = root / "JPEGImages" / (tree.findtext("filename") or f"{name}.jpg")
        if not picture.is_file():
            picture = picture.with_name(f"{name}.jpg")
        found.append((file, picture, tree))
    if classes is None:
        classes = tuple(sorted({one.findtext("name", "") for *_, tree in found for one in tree.iter("object")}))
    if not classes:
        raise ValueError(f"{root}: no objects in the annotations of {split}")
    labels, records = {name: label for label, name in enumerate(classes, 1)}, []
    for number, (file, picture, tree) in enumerate(found, 1):
        stated = tuple(int(tree.findtext(f"size/{side}", "0")) for side in ("width", "height"))
        size, problem = size_problem(picture, stated if all(stated) else None)
        if problem is not None:
            problems.append(problem)
            continue
        things = [_voc_thing(one, labels, file, size, problems) for one in tree.iter("object")]
        if not things:
            problems.append(Problem(str(file), "an empty annotation", "no objects"))
        records.append(Record(picture, number, *size, [thing for thing in things if thing is not None]))
    return Catalogue(records, classes, problems)


def _parsed(file: Path) -> tuple[ET.Element | None, Problem | None]:
    if not file.is_file():
        return None, Problem(str(file), "the file is missing")
    try:
        return ET.fromstring(file.read_bytes()), None
    except ET.ParseError as error:
        return None, Problem(str(file), "not XML", str(error))


def _voc_thing(
    entry: ET.Element, labels: dict[str, int], file: Path, size: tuple[int, int], problems: list[Problem]
) -> Thing | None:
    name = entry.findtext("name", "")
    if name not in labels:
        problems.append(Problem(str(file), "an unknown category", repr(name)))
        return None
    try:
        x0, y0, x1, y1 = (float(entry.findtext(f"bndbox/{key}", "")) for key in ("xmin", "ymin", "xmax", "ymax"))
    except ValueError:
        problems.append(Problem(str(file), "an empty annotation", f"{name}: bndbox lacks a number"))
        return None
    # The first pixel is 1: a box from a to b covers b - a + 1 pixels, and one of a single point is a slip.
    rule = "a box without area" if x0 == x1 or y0 == y1 else box_rule((x0 - 1, y0 - 1, x1, y1), *size)
    if rule is not None:
        problems.append(Problem(str(file), rule, f"{name}, {x0:g} {y0:g} {x1:g} {y1:g}"))
        return None
    box = clipped((x0 - 1, y0 - 1, x1, y1), *size)
    area = (box[2] - box[0]) * (box[3] - box[1])
    return Thing(box, labels[name], entry.findtext("difficult", "0") == "1", area)
