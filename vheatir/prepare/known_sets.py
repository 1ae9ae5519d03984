"""The known image sets, where they lie, and manifests: what is in a folder, with hashes and terms."""

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from vheatir.data.sources import ImageSource, map_threads, raise_problems
from vheatir.errors import UserError
from vheatir.utils.files import sha256
from vheatir.utils.run_metadata import write_json

UNIONS = ("DFWB",)


@dataclass(frozen=True)
class ImageSet:
    """One set of `sets.yml`; `folder` is its place below the root of all data."""

    name: str
    folder: str
    images: int | None
    channels: int
    url: str
    terms: str
    part_of: str | None = None
    archive: str | None = None
    members: list[str] = field(default_factory=list)
    exclude: frozenset[str] = frozenset()
    only: frozenset[str] | None = None
    download: Mapping[str, Any] | None = None
    listed: bool = False
    photos: str | None = None
    also: str | None = None


@functools.cache
def known_sets() -> dict[str, ImageSet]:
    """The sets of `sets.yml` by name."""
    content = yaml.safe_load((Path(__file__).parent / "sets.yml").read_text(encoding="utf-8"))
    found = {}
    for group, sets in content.items():
        for name, entry in sets.items():
            facts = {key: value for key, value in entry.items() if key != "tasks"}
            for key in ("exclude", "only"):
                if key in facts:
                    facts[key] = frozenset(map(str, facts[key]))
            parent = {"test": "test/"}.get(group, f"{entry['part_of']}/" if entry.get("part_of") else "")
            found[name] = ImageSet(name=name, folder=parent + name, **facts)
    return found


def find_sets(name: str) -> list[ImageSet]:
    """The set of a name, or the parts of a union, whatever the case of the letters; empty where there is none."""
    wanted = name.casefold()
    return [
        item
        for item in known_sets().values()
        if wanted in {str(part).casefold() for part in (item.name, item.also, item.part_of) if part is not None}
    ]


def survey(folder: Path, min_size: int = 1, channels: int | None = None) -> list[dict[str, Any]]:
    """Every image below a folder, decoded.

    Args:
        folder: searched recursively.
        min_size: least side in pixels.
        channels: 3 refuses gray images.

    Returns:
        {"name", "sha256", "height", "width", "channels"} of each, in order of names.

    Raises:
        UserError: lists all that cannot be decoded, are too small or gray.
    """
    images = ImageSource(folder, backend="disk")

    def look(key: str) -> dict[str, Any] | str:
        try:
            shape = images.read_native(key).shape
        except UserError as error:
            return str(error)
        if min(shape[:2]) < min_size:
            return f"{images.describe(key)}: {shape[0]}x{shape[1]} pixels, expected at least {min_size} on each side"
        if channels == 3 and len(shape) == 2:
            return f"{images.describe(key)}: is gray, expected color"
        facts = {"height": shape[0], "width": shape[1], "channels": 3 if len(shape) == 3 else 1}
        return {"name": key, "sha256": sha256(folder / key), **facts}

    found = map_threads(look, images.keys)
    raise_problems(folder, [item for item in found if isinstance(item, str)], len(images))
    return found


def write_manifest(path: Path, name: str, terms: str, url: str | None, files: list[dict[str, Any]]) -> None:
    """Write {"name", "images", "terms", "url", "written", "files"} as JSON.

    Args:
        path: file to write.
        name: of the set.
        terms: its license in words.
        url: where it comes from.
        files: what `survey` found.
    """
    facts = {"name": name, "images": len(files), "terms": terms, "url": url}
    write_json(path, facts | {"written": datetime.now(UTC).isoformat(timespec="seconds"), "files": files})


def read_manifest(path: Path) -> dict[str, Any] | None:
    """A manifest written earlier, None where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {**content, "files": {item["name"]: item for item in content["files"]}}
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a manifest that can be read ({error}); remove it and run again") from error


def check_unchanged(path: Path, earlier: Mapping[str, Any], files: list[dict[str, Any]]) -> None:
    """UserError that lists what has changed since a manifest was written.

    Args:
        path: of the manifest.
        earlier: its content, from `read_manifest`.
        files: what `survey` finds now.
    """
    now = {item["name"]: item["sha256"] for item in files}
    before = {name: item["sha256"] for name, item in earlier["files"].items()}
    problems = [f"{name}: missing" for name in sorted(before.keys() - now.keys())]
    problems += [f"{name}: new" for name in sorted(now.keys() - before.keys())]
    problems += [f"{name}: changed" for name in sorted(now.keys() & before.keys()) if now[name] != before[name]]
    if problems:
        listed = "\n  ".join(problems[:20] + (["…"] if len(problems) > 20 else []))
        raise UserError(
            f"{len(problems)} images differ from {path}; restore them, or remove it to accept them:\n  {listed}"
        )
