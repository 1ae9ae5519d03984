"""`vheatir prepare`: image sets fetched, verified, written down, cut into sub-images and packed into an LMDB."""

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vheatir.errors import UserError
from vheatir.prepare import known_sets, url_list
from vheatir.prepare.download import download, unpack
from vheatir.prepare.patches import extract_patches, make_lmdb

DOWNLOADS = "downloads"
_OWN_TERMS = "not stated"

_EPILOG = """\
NAME is a known set (no NAME: a table of them), a union such as DFWB, or a folder of your own. Data lie below --root
(default: datasets), where the recipes look for them; NAME.manifest.json beside a folder lists its images with size,
SHA-256, terms and, for listed pictures, licence and address. When it is there, the folder is compared with it.

examples:
  vheatir prepare BSD432 --download
  vheatir prepare DFWB --sub --lmdb
  vheatir prepare my_photos/ --sub --shrink 2 --terms "my own"
  vheatir prepare PD12M --list pd12m.000.parquet --count 4000 --min-side 1500 --sub --shrink 2

exit status: 0 all prepared, 2 refused or something is missing (what to do is said).
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "vheatir prepare",
        description="Make image sets ready for training and evaluation.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help="known sets, unions, or folders of your own")
    add("--root", type=Path, default=Path("datasets"), metavar="DIR", help="where all data lie (default: datasets)")
    add("--download", action="store_true", help="fetch what is missing and can be fetched; read the terms first")
    add("--terms", default=_OWN_TERMS, help="licence of your own folder, for its manifest")
    sub = parser.add_argument_group("for training").add_argument
    sub("--sub", action="store_true", help="cut into sub-images: NAME_sub")
    sub("--size", type=int, default=512, metavar="N", help="side of a sub-image in pixels (default 512)")
    sub("--overlap", type=int, default=96, metavar="N", help="pixels that neighbours share (default 96)")
    sub("--shrink", type=int, default=1, metavar="N", help="mean of N x N pixels first (default 1: as they are)")
    sub("--lmdb", action="store_true", help="pack into an LMDB: NAME.lmdb, or NAME_sub.lmdb with --sub")
    sub("--compress-level", type=int, metavar="L", help="of PNG, 0 fast to 9 small (default: 3, in an LMDB 1)")
    listed = parser.add_argument_group("freely licensed pictures").add_argument
    listed("--list", type=Path, metavar="FILE", help="CSV, JSON lines or Parquet with url, hash (MD5), license")
    listed("--count", type=int, metavar="N", help="how many to take, the same for everybody")
    listed("--min-side", type=int, default=512, metavar="N", help="smallest side in pixels (default 512)")
    listed("--source", metavar="TEXT", help="only rows whose source holds this")
    license_help = "accepted parts of a licence's address (default: CC0 and the public domain mark)"
    listed("--license", nargs="+", default=list(url_list.FREE), metavar="PART", help=license_help)
    return parser


def main(argv: list[str]) -> int:
    """Prepare what is named; without names show what is known."""
    options = _parser().parse_args(argv)
    if not options.names:
        _say(_table(options.root))
        return 0
    if options.list is not None:
        if len(options.names) > 1 or not (options.count or 0) > 0:
            raise UserError("--list makes one set: give one NAME, and --count with how many pictures are wanted")
        jobs = [(options.names[0], _collect(options.names[0], options))]
    else:
        jobs = [(name, _obtain(name, options)) for name in options.names]
    for name, folder in jobs:
        _for_training(folder, options)
        _say(f"{name}: ready")
    return 0


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _table(root: Path) -> str:
    lines = [f"{'set':<10} {'images':>6}  {'there':<5} {'fetched by --download':<22} terms"]
    for item in known_sets.known_sets().values():
        there = "yes" if (root / item.folder).is_dir() else "no"
        fetched = "yes" if item.download else "from a list" if item.listed else "no"
        lines.append(f"{item.name:<10} {item.images or '':>6}  {there:<5} {fetched:<22} {item.terms}")
    return "\n".join(lines)


def _obtain(name: str, options: argparse.Namespace) -> Path:
    """The verified folder of a set, of a union or of the user."""
    parts = known_sets.find_sets(name)
    if not parts:
        folder = Path(name)
        if not folder.is_dir():
            known = ", ".join([*known_sets.UNIONS, *known_sets.known_sets()])
            raise UserError(f"{name}: neither a folder nor a known set; known: {known}")
        # written below the root, so that nothing is added to a folder that may not be ours
        _verify(folder, _manifest(options.root / _name(folder)), _name(folder), options.terms, None)
        return folder
    problems = []
    for item in parts:
        try:
            _obtain_set(item, options)
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems))
    union = len(parts) > 1
    return options.root / (parts[0].part_of if union else parts[0].folder)


def _obtain_set(item: known_sets.ImageSet, options: argparse.Namespace) -> None:
    folder = options.root / item.folder
    if not folder.is_dir():
        _fetch(item, folder, options)
    _verify(folder, _manifest(folder), item.name, item.terms, item)


def _name(folder: Path) -> str:
    """The last part of a path, whatever way it is written; a link's own name, not that of what it leads to."""
    return folder.name if folder.name not in ("", "..") else folder.resolve().name


def _manifest(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.manifest.json")


def _fetch(item: known_sets.ImageSet, folder: Path, options: argparse.Namespace) -> None:
    """Download and unpack a set, or say how to get it."""
    archive = options.root / DOWNLOADS / item.archive if item.archive else None
    if item.listed:
        raise UserError(f"{item.name}: get a list from {item.url} and give it with --list and --count")
    if archive is not None and not archive.exists() and item.download and options.download:
        _say(f"{item.name}: {item.terms}")
        download(item.download["url"], archive, item.download["checksum"], _bytes_shown(archive.name))
    if archive is None or not archive.exists():
        raise UserError(f"{item.name}: {folder} is missing. {_instructions(item, folder, archive)}")
    count = unpack(archive, folder, item.members, item.exclude, item.only)
    _say(f"{item.name}: {count} images unpacked into {folder}")


def _instructions(item: known_sets.ImageSet, folder: Path, archive: Path | None) -> str:
    text = f"Its {item.images} images are at {item.url} ({item.terms}). "
    if item.download:
        return text + "--download fetches them."
    if archive is not None:
        return text + f"Put the archive at {archive} and run the same command, or the images into {folder}."
    return text + f"Put them into {folder} and run the same command."


def _bytes_shown(name: str) -> Callable[[int, int | None], None]:
    shown = -1

    def show(have: int, whole: int | None) -> None:
        nonlocal shown
        step = have * 20 // whole if whole else have >> 28  # every twentieth, or every 256 MiB
        if step != shown:
            shown = step
            of = f" of {whole / 1e6:.0f}" if whole else ""
            _say(f"{name}: {have / 1e6:.0f}{of} MB")

    return show


def _verify(folder: Path, manifest: Path, name: str, terms: str, item: known_sets.ImageSet | None) -> None:
    """Decode and hash every image; compare with an earlier manifest, or write one."""
    files = known_sets.survey(folder, channels=item.channels if item else None)
    if item is not None and item.images is not None and len(files) != item.images:
        raise UserError(
            f"{name}: {folder} holds {len(files)} images, expected {item.images}; remove it and prepare it again"
        )
    earlier = known_sets.read_manifest(manifest)
    if earlier is not None:
        known_sets.compare(manifest, earlier, files)
        _say(f"{name}: {len(files)} images as in {manifest}")
        return
    manifest.parent.mkdir(parents=True, exist_ok=True)
    known_sets.write_manifest(manifest, name, terms, item.url if item else None, files)
    _say(f"{name}: {len(files)} images verified, listed in {manifest}")


def _collect(name: str, options: argparse.Namespace) -> Path:
    """A set of freely licensed pictures from a list."""
    item = next(iter(known_sets.find_sets(name)), None)
    if item is not None and not item.listed:
        raise UserError(f"{name}: is a set without a list; leave --list out, or choose another name")
    name = item.name if item else name
    folder = options.root / name
    rows = url_list.choose(url_list.read_list(options.list), options.min_side, options.source, options.license)
    _say(f"{name}: {len(rows)} pictures of the list may be used")

    def told(count: int, problem: str | None) -> None:
        if problem is not None:
            _say(f"left out: {problem}")
        elif count % 100 == 0:
            _say(f"{name}: {count} of {options.count} pictures")

    have = url_list.collect(rows, folder, options.count, told)
    _write_listed(name, folder, have, item)
    return folder


def _write_listed(
    name: str, folder: Path, have: Mapping[str, Mapping[str, Any]], item: known_sets.ImageSet | None
) -> None:
    files = known_sets.survey(folder)
    if extra := [file["name"] for file in files if file["name"] not in have]:
        raise UserError(f"{folder}: holds {len(extra)} images that are not of this choice ({extra[0]}); remove them")
    for file in files:
        row = have[file["name"]]
        file |= {"license": row["license"], "url": row["url"], "source": row.get("source")}
    terms = item.terms if item else "each picture under its own licence, see `files`"
    known_sets.write_manifest(_manifest(folder), name, terms, item.url if item else None, files)
    _say(f"{name}: {len(files)} pictures verified, listed with their licences in {_manifest(folder)}")


def _for_training(folder: Path, options: argparse.Namespace) -> None:
    """The sub-images and the LMDB that were asked for; those that are there stay."""
    source, name = folder, _name(folder)
    if options.sub:
        target = options.root / f"{name}_sub"
        level = 3 if options.compress_level is None else options.compress_level
        if target.exists():
            _say(f"{target}: is there and stays; remove it to have it made anew")
        else:
            shown = _images_shown(target)
            count = extract_patches(source, target, options.size, options.overlap, level, shown, options.shrink)
            _say(f"{target}: {count} sub-images")
        source, name = target, target.name
    if options.lmdb:
        target = options.root / f"{name}.lmdb"
        level = 1 if options.compress_level is None else options.compress_level
        if target.exists():
            _say(f"{target}: is there and stays; remove it to have it made anew")
        else:
            _say(f"{target}: {make_lmdb(source, target, level, _images_shown(target))} images, read back and equal")


def _images_shown(target: Path) -> Callable[[int, int], None]:
    return lambda done, total: _say(f"{target.name}: {done} of {total} images") if done % 640 == 0 else None
