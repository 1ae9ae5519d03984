"""Objects from COCO's JSON and VOC's XML; what is wrong with either is noted by file and rule."""

import codecs
import re
import xml.etree.ElementTree as ET
from collections import defaultdict
from pathlib import Path, PureWindowsPath

from vheatir.backbone.data.pixels import SUFFIXES, has_image_suffix
from vheatir.backbone.data.text_files import read_json, read_text
from vheatir.backbone.dense.image_files import Problem, frame_of
from vheatir.backbone.detection.recipe import DetectionData
from vheatir.backbone.detection.records import (
    Annotations,
    Instance,
    Record,
    box_rule,
    clipped,
    decode,
    segmentation_rule,
)
from vheatir.backbone.training.schema import is_number


def read_annotations(
    data: DetectionData, training: bool, masks: bool, classes: tuple[str, ...] | None = None
) -> Annotations:
    """A split of a data set.

    Args:
        data: where it is.
        training: the split for training, else that for evaluation.
        masks: objects need masks.
        classes: names in the order of their numbers; None takes `data.classes`, or those of the data.

    Raises:
        FileNotFoundError, ValueError: the split cannot be read at all. Broken rules are in the result.
    """
    root = Path(data.root)
    split = data.train if training else data.val
    if not root.is_dir():
        raise FileNotFoundError(f"data.root {root}: no such folder; set it to the data set's folder")
    classes = classes or data.classes
    if data.format == "voc":
        return read_voc(root, split, classes)
    return read_coco(root / split, root / (data.train_images if training else data.val_images), masks, classes)


def _coco_tables(file: Path) -> dict[str, list]:
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; expected annotations in COCO's format (data.train, data.val)")
    content = read_json(file)
    names = ("images", "annotations", "categories")
    if not isinstance(content, dict) or any(not isinstance(content.get(name), list) for name in names):
        raise ValueError(f"{file}: expected a table with the lists {', '.join(names)}")
    if not content["images"]:
        raise ValueError(f"{file}: the list of images is empty")
    needed = {"images": ("id", "file_name", "width", "height"), "annotations": ("image_id", "category_id")}
    for name, keys in {**needed, "categories": ("id", "name")}.items():
        for number, entry in enumerate(content[name], 1):
            lacking = [key for key in keys if key not in entry] if isinstance(entry, dict) else ["a table's form"]
            if lacking:
                raise ValueError(f"{file}: {name}: entry {number} lacks {', '.join(lacking)}: {str(entry)[:80]}")
            for key in ("id", "image_id", "category_id"):
                if not isinstance(entry.get(key, 0), int | float | str):
                    raise ValueError(f"{file}: {name}: entry {number}: {key} is {entry[key]!r}, no number or text")
    return content


def _labels(file: Path, categories: list, classes: tuple[str, ...] | None) -> tuple[dict, tuple[str, ...]]:
    """Labels from 1 on by category id, and their names."""
    names: dict[int | str, str] = {}
    for one in sorted(categories, key=lambda one: (isinstance(one["id"], str), one["id"])):
        number = one["id"]
        name = str(one["name"])
        if number in names:
            raise ValueError(f"{file}: the category id {number!r} is taken twice, by {names[number]!r} and {name!r}")
        if name in names.values():
            raise ValueError(f"{file}: two categories are named {name!r}; give each its own name")
        names[number] = name
    if classes is None:
        classes = tuple(names.values())
    lacking = [name for name in classes if name not in names.values()]
    if lacking:
        raise ValueError(f"{file}: no category {lacking[0]!r}; categories there: {', '.join(names.values())}")
    order = {name: label for label, name in enumerate(classes, 1)}
    return {number: order.get(name, 0) for number, name in names.items()}, classes


def _numbers(images: list) -> dict:
    """A whole number for each image id: the id itself, or where one is text or beyond 64 bits, its place."""
    ids = list(dict.fromkeys(one["id"] for one in images))
    if all(isinstance(one, int) and abs(one) < 2**63 for one in ids):
        return {one: one for one in ids}
    return {one: place for place, one in enumerate(ids, 1)}


def read_coco(file: Path, folder: Path, masks: bool, classes: tuple[str, ...] | None = None) -> Annotations:
    """Images below `folder` with the objects of a JSON file in COCO's format.

    Boxes and polygons see each image in the frame whose size the file states; see `frame_of`.

    Args:
        file: the annotations.
        folder: what their file names are relative to.
        masks: objects need masks.
        classes: names in the order of their numbers; None takes those of the file.

    Raises:
        FileNotFoundError, ValueError: no such file, or not of that form.
    """
    tables = _coco_tables(file)
    problems = []
    labels, classes = _labels(file, tables["categories"], classes)
    numbers = _numbers(tables["images"])
    by_image = defaultdict(list)
    for place, one in enumerate(tables["annotations"], 1):
        by_image[one["image_id"]].append({"id": f"number {place} of the list", **one})
    records = []
    seen = set()
    files = set()
    for one in tables["images"]:
        path = folder / str(one["file_name"])
        if one["id"] in seen:
            problems.append(Problem(str(path), "an image id that is taken", f"{file.name}: id {one['id']}"))
            continue
        seen.add(one["id"])
        if path in files:
            problems.append(Problem(str(path), _TWICE, f"{file.name}: id {one['id']} too"))
            continue
        files.add(path)
        if not (is_number(one["width"]) and is_number(one["height"])):
            stated = f"{file.name}: {one['width']!r} x {one['height']!r}"
            problems.append(Problem(str(path), "a size that is no numbers", stated))
            continue
        frame = frame_of(path, (int(one["width"]), int(one["height"])))
        if isinstance(frame, Problem):
            problems.append(frame)
            continue
        instances = [_coco_instance(entry, labels, path, frame.size, masks, problems) for entry in by_image[one["id"]]]
        instances = [instance for instance in instances if instance is not None]
        records.append(Record(path, numbers[one["id"]], *frame.size, instances, frame.turned))
    for number in sorted(set(by_image) - seen, key=str):
        rule = "an annotation of an image that is not listed"
        problems.append(Problem(str(file), rule, f"annotation {by_image[number][0]['id']}, image {number}"))
    return Annotations(records, classes, problems)


_TWICE = "an image that is listed twice"
_CROWD = {0: False, 1: True, "0": False, "1": True, None: False}


def _coco_rule(entry: dict, masks: bool, size: tuple[int, int]) -> tuple[str, str] | None:
    """The rule that an annotation breaks and what it has there; None where it breaks none."""
    values = entry.get("bbox")
    area = entry.get("area")
    if not values or (isinstance(values, list) and len(values) != 4):
        return "an empty annotation", "has no box"
    if not isinstance(values, list) or not all(is_number(value) for value in values):
        return "a box that is not four numbers", f"box {values}"
    crowd = entry.get("iscrowd")
    if not isinstance(crowd, int | float | str | None) or crowd not in _CROWD:
        return "an iscrowd that is neither 0 nor 1", f"iscrowd {crowd!r}"
    if area is not None and not (is_number(area) and area >= 0):
        return "an area that is no number", f"area {area!r}"
    x, y, width, height = values
    rule = box_rule((x, y, x + width, y + height), *size)
    rule = rule or (segmentation_rule(entry.get("segmentation"), *size) if masks else None)
    return None if rule is None else (rule, f"box {values}")


def _coco_instance(
    entry: dict, labels: dict, path: Path, size: tuple[int, int], masks: bool, problems: list[Problem]
) -> Instance | None:
    """An object, or None: its class is not asked for, or it breaks a rule, which is noted."""
    where = f"annotation {entry['id']}"
    if entry["category_id"] not in labels:
        problems.append(Problem(str(path), "an unknown category", f"{where}, category {entry['category_id']}"))
        return None
    label = labels[entry["category_id"]]
    if label == 0:
        return None
    broken = _coco_rule(entry, masks, size)
    if broken is not None:
        rule, found = broken
        problems.append(
            Problem(str(path), rule, f"{where} {found}" if found.startswith("has") else f"{where}, {found}")
        )
        return None
    x, y, width, height = map(float, entry["bbox"])
    shape = entry.get("segmentation") if masks else None
    area = entry.get("area") or (0 if shape is None else decode(shape, *size).sum()) or width * height
    box = clipped((x, y, x + width, y + height), *size)
    return Instance(box, label, _CROWD[entry.get("iscrowd")], float(area), shape)


def _voc_names(root: Path, split: str) -> list[str]:
    """Names without suffix; lines may hold spaces, a suffix, and at their end the -1, 0 or 1 of a list for a class."""
    file = root / "ImageSets" / "Main" / f"{split}.txt"
    if not file.is_file():
        held = ", ".join(sorted(path.stem for path in file.parent.glob("*.txt"))) or "none"
        raise FileNotFoundError(f"{file}: no such list (data.train, data.val); lists there: {held}")
    lines = [line.strip() for line in read_text(file).splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"{file}: the list is empty")
    folder = root / "Annotations"

    def name_of(line: str) -> str:
        forms = [line]
        name, _, flag = line.rpartition(" ")
        if flag in ("-1", "0", "1"):
            forms.append(name.strip())
        forms += [form.rpartition(".")[0] for form in forms if has_image_suffix(form) or form.endswith(".xml")]
        return next((form for form in forms if (folder / f"{form}.xml").is_file()), forms[-1])

    return [name_of(line) for line in lines]


def _voc_image(root: Path, name: str, stated: str) -> Path:
    """The image that an annotation states; where there is none, one of the annotation's own name."""
    folder = root / "JPEGImages"
    forms = [folder / PureWindowsPath(stated).name] if stated else []
    forms += [folder / f"{name}{suffix}" for suffix in SUFFIXES]
    return next((form for form in forms if form.is_file()), folder / f"{name}.jpg")


def read_voc(root: Path, split: str, classes: tuple[str, ...] | None = None) -> Annotations:
    """Images and boxes of a folder in VOC's layout; coordinates are pixels from 1 on, both ends inside.

    Boxes see each image in the frame whose size the annotation states; see `frame_of`.

    Args:
        root: with Annotations/, ImageSets/ and JPEGImages/.
        split: name of the list in ImageSets/Main/.
        classes: names in the order of their numbers; None takes those of the objects, sorted.

    Raises:
        FileNotFoundError, ValueError: no such list, or no objects to take the classes from.
    """
    problems = []
    found = []
    files = set()
    for name in _voc_names(root, split):
        file = root / "Annotations" / f"{name}.xml"
        tree = _parsed(file)
        if isinstance(tree, Problem):
            problems.append(tree)
            continue
        image = _voc_image(root, name, tree.findtext("filename", "").strip())
        if image in files:
            problems.append(Problem(str(image), _TWICE, f"{name} in the list of {split}"))
            continue
        files.add(image)
        found.append((file, image, tree))
    if classes is None:
        classes = tuple(sorted({_text(one, "name") for *_, tree in found for one in tree.iter("object")}))
    if not classes:
        first = "".join(f"; {one}" for one in problems[:1]) + (f"; {len(problems)} files in all" if problems else "")
        raise ValueError(f"{root}: no objects in the annotations of {split}{first}")
    labels = {name: label for label, name in enumerate(classes, 1)}
    records = []
    for number, (file, image, tree) in enumerate(found, 1):
        try:
            width, height = (int(float(_text(tree, f"size/{side}") or 0)) for side in ("width", "height"))
        except (ValueError, OverflowError):
            problems.append(Problem(str(file), "a size that is no numbers", ET.tostring(tree.find("size"), "unicode")))
            continue
        frame = frame_of(image, (width, height) if width and height else None)
        if isinstance(frame, Problem):
            problems.append(frame)
            continue
        instances = [_voc_instance(one, labels, file, frame.size, problems) for one in tree.iter("object")]
        if not instances:
            problems.append(Problem(str(file), "an empty annotation", "no objects"))
        instances = [instance for instance in instances if instance is not None]
        records.append(Record(image, number, *frame.size, instances, frame.turned))
    return Annotations(records, classes, problems)


def _text(entry: ET.Element, path: str) -> str:
    return (entry.findtext(path) or "").strip()


def _parsed(file: Path) -> ET.Element | Problem:
    if not file.is_file():
        return Problem(str(file), "the file is missing")
    try:
        return ET.fromstring(_xml(file.read_bytes()))
    except (ET.ParseError, LookupError, ValueError) as error:
        return Problem(str(file), "not XML", str(error))


def _xml(content: bytes) -> bytes:
    """XML in UTF-8 from any encoding that Python knows; the parser itself knows few."""
    declared = re.match(rb"""\s*<\?xml[^>]*?encoding\s*=\s*["']([\w.:-]+)["'][^>]*\?>""", content)
    if declared is None or content.startswith((codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content
    return content[declared.end() :].decode(declared[1].decode("ascii")).encode()


def _voc_instance(
    entry: ET.Element, labels: dict[str, int], file: Path, size: tuple[int, int], problems: list[Problem]
) -> Instance | None:
    name = _text(entry, "name")
    if name not in labels:
        problems.append(Problem(str(file), "an unknown category", repr(name)))
        return None
    try:
        x0, y0, x1, y1 = (float(_text(entry, f"bndbox/{key}")) for key in ("xmin", "ymin", "xmax", "ymax"))
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
    difficult = _text(entry, "difficult") == "1"
    return Instance(box, labels[name], difficult, area, difficult=difficult)
