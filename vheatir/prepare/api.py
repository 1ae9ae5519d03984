"""`vheatir.prepare`: image sets fetched, verified, written down, cut into sub-images and packed into an LMDB."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import vheatir.prepare.known_sets as known_sets
import vheatir.prepare.url_list as lists
from vheatir.errors import UserError
from vheatir.prepare.debian_packages import collect_photos, read_photos
from vheatir.prepare.defaults import FREE, OWN_TERMS
from vheatir.prepare.download import download as fetch
from vheatir.prepare.download import unpack
from vheatir.prepare.patches import extract_patches, make_lmdb
from vheatir.utils.files import writing
from vheatir.utils.lock import Lock

DOWNLOADS = "downloads"

Say = Callable[[str], None]
_DEFAULTS = {"size": 512, "overlap": 96, "shrink": 1, "min_detail": 0.0, "compress_level": None}
_DEFAULTS |= {"count": None, "min_side": 512, "source": None, "license": FREE}


def prepare(  # long function: most of it says what its arguments mean
    names: str | Path | Sequence[str | Path],
    *,
    root: str | Path = "datasets",
    download: bool = False,
    terms: str = OWN_TERMS,
    sub: bool = False,
    size: int = 512,
    overlap: int = 96,
    shrink: int = 1,
    min_detail: float = 0.0,
    lmdb: bool = False,
    compress_level: int | None = None,
    url_list: str | Path | None = None,
    count: int | None = None,
    min_side: int = 512,
    source: str | None = None,
    licenses: Sequence[str] = FREE,
    say: Say | None = None,
) -> dict[str, Path]:
    """Make image sets ready for training and evaluation.

    Every image is decoded and hashed, and listed in NAME.manifest.json beside its folder; where that is there, the
    folder is compared with it.

    Args:
        names: known sets, unions such as DFWB, or folders of your own.
        root: where all data lie.
        download: fetch what is missing and can be fetched; read the terms first.
        terms: license of your own folder, for its manifest.
        sub: cut into sub-images: NAME_sub.
        size: side of a sub-image in pixels.
        overlap: pixels that neighboring sub-images share.
        shrink: replace squares of so many pixels a side by their mean before cutting.
        min_detail: leave out sub-images with less, see `vheatir.prepare.patches.extract_patches`.
        lmdb: pack into an LMDB: NAME.lmdb, or NAME_sub.lmdb with `sub`.
        compress_level: of PNG, 0 fast to 9 small; by default 3, in an LMDB 1.
        url_list: CSV, JSON lines or Parquet file with url, hash (MD5) and license, from which one set is made.
        count: how many images of the list to take, the same for everybody.
        min_side: smallest side in pixels of images of the list.
        source: only rows of the list whose source holds this.
        licenses: accepted parts of a license's address in the list.
        say: called with lines of progress.

    Returns:
        Where each name is ready: its folder, sub-images or LMDB.

    Raises:
        UserError: refused, or something is missing; says what to do.
    """
    names = [str(names)] if isinstance(names, str | Path) else [str(name) for name in names]
    settings = {"size": size, "overlap": overlap, "shrink": shrink, "min_detail": min_detail}
    if not sub:
        _refuse_unused(settings, "--sub")
    if not sub and not lmdb:
        _refuse_unused({"compress_level": compress_level}, "--sub or --lmdb")
    if url_list is None:
        chosen_by = {"count": count, "min_side": min_side, "source": source, "license": tuple(licenses)}
        _refuse_unused(chosen_by, "--list")
    if terms != OWN_TERMS and (url_list is not None or all(map(known_sets.find_sets, names))):
        raise UserError("--terms is for folders of your own: known sets and lists state theirs; leave it out")
    preparation = _Preparation(Path(root), download, say or (lambda _text: None))
    if url_list is not None:
        if len(names) > 1 or count is None or count < 1:
            raise UserError("--list makes one set: give one NAME, and --count with how many images are wanted")
        item = _listed_set(names[0])
        rows = lists.choose(lists.read_list(Path(url_list)), min_side, source, licenses)
        folders = {names[0]: preparation.collect(item.name if item else names[0], item, rows, count)}
    else:
        folders = {name: preparation.obtain(name, terms) for name in names}
    found = {}
    for name, folder in folders.items():
        label = _name(folder)
        if sub:
            folder = preparation.cut(folder, label, compress_level, settings)
            label = folder.name
        if lmdb:
            folder = preparation.pack(folder, label, compress_level)
        found[name] = folder
        preparation.say(f"{name}: ready")
    return found


def _refuse_unused(given: Mapping[str, Any], needed: str) -> None:
    """UserError where arguments that change nothing without others have values beside their defaults."""
    unused = [f"--{name.replace('_', '-')}" for name, value in given.items() if value != _DEFAULTS[name]]
    if unused:
        raise UserError(f"{', '.join(unused)}: would change nothing without {needed}; add it, or leave them out")


def sets_table(root: str | Path = "datasets") -> str:
    """The known sets as text, and which of them are below `root`."""
    root = Path(root)
    lines = [f"{'set':<10} {'images':>6}  {'there':<5} {'fetched by --download':<22} terms"]
    for item in known_sets.known_sets().values():
        there = "yes" if (root / item.folder).is_dir() else "no"
        fetched = "yes" if item.download else "no"
        if item.listed:
            fetched = "from a list"
        lines.append(f"{item.name:<10} {item.images or '':>6}  {there:<5} {fetched:<22} {item.terms}")
    return "\n".join(lines)


def _listed_set(name: str) -> known_sets.ImageSet | None:
    """The known set of a name that is made from a list; UserError for one that is not."""
    item = next(iter(known_sets.find_sets(name)), None)
    if item is not None and not item.listed:
        raise UserError(f"{name}: is a set without a list; leave --list out, or choose another name")
    return item


@dataclass(frozen=True)
class _Preparation:
    """Where data lie, whether they may be fetched, and who gets the messages."""

    root: Path
    download: bool
    say: Say

    def obtain(self, name: str, terms: str) -> Path:
        """The verified folder of a set, of a union or of the user."""
        parts = known_sets.find_sets(name)
        if not parts:
            folder = Path(name)
            if not folder.is_dir():
                known = ", ".join([*known_sets.UNIONS, *known_sets.known_sets()])
                raise UserError(f"{name}: neither a folder nor a known set; known: {known}")
            # written below the root, so that nothing is added to a folder that may not be ours
            self._verify(folder, _manifest(self.root / _name(folder)), _name(folder), terms, None)
            return folder
        problems = []
        for item in parts:
            try:
                self._obtain_set(item)
            except UserError as error:
                problems.append(str(error))
        if problems:
            raise UserError("\n".join(problems))
        union = parts[0].part_of if len(parts) > 1 else None
        return self.root / (union or parts[0].folder)

    def _obtain_set(self, item: known_sets.ImageSet) -> None:
        folder = self.root / item.folder
        facts = {}
        if not folder.is_dir() and item.photos:
            rows = read_photos(Path(__file__).parent / item.photos)
            with _alone(folder, "set"):
                facts = collect_photos(rows, self.root / DOWNLOADS, folder)
                _manifest(folder).unlink(missing_ok=True)  # of an earlier folder: decoders may round otherwise by now
        elif not folder.is_dir():
            self._fetch(item, folder)
        self._verify(folder, _manifest(folder), item.name, item.terms, item, facts)

    def _fetch(self, item: known_sets.ImageSet, folder: Path) -> None:
        """Download and unpack a set, or say how to get it."""
        archive = self.root / DOWNLOADS / item.archive if item.archive else None
        if item.listed:
            raise UserError(f"{item.name}: get a list from {item.url} and give it with --list and --count")
        if archive is not None and not archive.exists() and item.download and self.download:
            self.say(f"{item.name}: {item.terms}")
            with _alone(archive, "archive"):
                fetch(item.download["url"], archive, item.download["checksum"], self._bytes_shown(archive.name))
        if archive is None or not archive.exists():
            raise UserError(f"{item.name}: {folder} is missing. {_instructions(item, folder, archive)}")
        with _alone(folder, "set"):
            count = unpack(archive, folder, item.members, item.exclude, item.only)
        self.say(f"{item.name}: {count} images unpacked into {folder}")

    def _bytes_shown(self, name: str) -> Callable[[int, int | None], None]:
        shown = -1

        def show(have: int, whole: int | None) -> None:
            nonlocal shown
            step = have * 20 // whole if whole else have >> 28  # every twentieth, or every 256 MiB
            if step != shown:
                shown = step
                of = f" of {whole / 1e6:.0f}" if whole else ""
                self.say(f"{name}: {have / 1e6:.0f}{of} MB")

        return show

    def _verify(
        self,
        folder: Path,
        manifest: Path,
        name: str,
        terms: str,
        item: known_sets.ImageSet | None,
        facts: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        """Decode and hash every image; compare with an earlier manifest, or write one."""
        files = known_sets.survey(folder, channels=item.channels if item else None)
        if item is not None and item.images is not None and len(files) != item.images:
            raise UserError(
                f"{name}: {folder} holds {len(files)} images, expected {item.images}; remove it and prepare it again"
            )
        earlier = known_sets.read_manifest(manifest)
        if earlier is not None:
            known_sets.check_unchanged(manifest, earlier, files)
            self.say(f"{name}: {len(files)} images as in {manifest}")
            if item is None and terms not in (OWN_TERMS, earlier.get("terms")):
                same = list(earlier["files"].values())
                known_sets.write_manifest(manifest, name, terms, earlier.get("url"), same)
                self.say(f"{name}: terms in {manifest}: {terms}")
            return
        with writing(manifest):
            manifest.parent.mkdir(parents=True, exist_ok=True)
        files = [file | (facts or {}).get(file["name"], {}) for file in files]
        known_sets.write_manifest(manifest, name, terms, item.url if item else None, files)
        self.say(f"{name}: {len(files)} images verified, listed in {manifest}")

    def collect(
        self, name: str, item: known_sets.ImageSet | None, rows: Sequence[Mapping[str, Any]], count: int
    ) -> Path:
        """A set of freely licensed images, the first `count` of the rows that can be had."""
        folder = self.root / name
        self.say(f"{name}: {len(rows)} images of the list may be used")

        def report(have: int, problem: str | None) -> None:
            if problem is not None:
                self.say(f"left out: {problem}")
            elif have % 100 == 0:
                self.say(f"{name}: {have} of {count} images")

        with _alone(folder, "set"):
            self._write_listed(name, folder, lists.collect(rows, folder, count, report), item)
        return folder

    def _write_listed(
        self, name: str, folder: Path, have: Mapping[str, Mapping[str, Any]], item: known_sets.ImageSet | None
    ) -> None:
        files = known_sets.survey(folder)
        if extra := [file["name"] for file in files if file["name"] not in have]:
            raise UserError(
                f"{folder}: holds {len(extra)} images that are not of this choice ({extra[0]}); remove them"
            )
        for file in files:
            row = have[file["name"]]
            file |= {"license": row["license"], "url": row["url"], "source": row.get("source")}
        terms = item.terms if item else "each image under its own license, see `files`"
        known_sets.write_manifest(_manifest(folder), name, terms, item.url if item else None, files)
        self.say(f"{name}: {len(files)} images verified, listed with their licenses in {_manifest(folder)}")

    def cut(self, folder: Path, label: str, compress_level: int | None, settings: Mapping[str, Any]) -> Path:
        """Sub-images of a folder, which stay where they are there."""
        target = self.root / f"{label}_sub"
        compress_level = 3 if compress_level is None else compress_level
        if self._is_new(target):
            shown = self._images_shown(target)
            count = extract_patches(folder, target, compress_level=compress_level, progress=shown, **settings)
            self.say(f"{target}: {count} sub-images")
        return target

    def pack(self, folder: Path, label: str, compress_level: int | None) -> Path:
        """The LMDB of a folder, which stays where it is there."""
        target = self.root / f"{label}.lmdb"
        compress_level = 1 if compress_level is None else compress_level
        if self._is_new(target):
            count = make_lmdb(folder, target, compress_level, self._images_shown(target))
            self.say(f"{target}: {count} images, read back and equal")
        return target

    def _is_new(self, target: Path) -> bool:
        if target.exists():
            self.say(f"{target}: exists and is kept; remove it to make it again")
        return not target.exists()

    def _images_shown(self, target: Path) -> Callable[[int, int], None]:
        def show(done: int, total: int) -> None:
            if done % 640 == 0:
                self.say(f"{target.name}: {done} of {total} images")

        return show


@contextmanager
def _alone(target: Path, what: str) -> Iterator[None]:
    """While something is made that a second command would make too, over the same unfinished files.

    Raises:
        UserError: another process is at it.
    """
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = Lock(target.with_name(f".{target.name}.lock"), f"the {what} {target}", "wait for it")
    try:
        yield
    finally:
        lock.release()


def _name(folder: Path) -> str:
    """The last part of a path, whatever way it is written; a link's own name, not that of what it leads to."""
    return folder.name if folder.name not in ("", "..") else folder.resolve().name


def _manifest(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.manifest.json")


def _instructions(item: known_sets.ImageSet, folder: Path, archive: Path | None) -> str:
    text = f"Its {item.images} images are at {item.url} ({item.terms}). "
    if item.download:
        return text + "--download fetches them."
    if archive is not None:
        return text + f"Put the archive at {archive} and run the same command, or the images into {folder}."
    return text + f"Put them into {folder} and run the same command."
