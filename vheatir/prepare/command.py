"""`vheatir prepare`: image sets fetched, verified, written down, cut into sub-images and packed into an LMDB."""

import argparse
import sys
from pathlib import Path

from vheatir.errors import UserError
from vheatir.prepare.defaults import FREE, OWN_TERMS

_EPILOG = """\
NAME is a known set (no NAME: a table of them), a union such as DFWB, or a folder of your own. Data lie below --root
(default: datasets), where the recipes look for them; NAME.manifest.json beside a folder lists its images with size,
SHA-256, terms and, for listed images, license and address. When it is there, the folder is compared with it.

examples:
  vheatir prepare BSD432 --download
  vheatir prepare DFWB --sub --lmdb
  vheatir prepare my_photos/ --sub --shrink 2 --terms "my own"
  vheatir prepare FreePhotos --sub --min-detail 3
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
    add("--terms", default=OWN_TERMS, help="license of your own folder, for its manifest")
    sub = parser.add_argument_group("for training").add_argument
    sub("--sub", action="store_true", help="cut into sub-images: NAME_sub")
    sub("--size", type=int, default=512, metavar="N", help="side of a sub-image in pixels (default 512)")
    sub("--overlap", type=int, default=96, metavar="N", help="pixels that neighbors share (default 96)")
    sub("--shrink", type=int, default=1, metavar="N", help="mean of N x N pixels first (default 1: as they are)")
    detail_help = "leave out flatter sub-images (default 0: none; 3 leaves out blue skies)"
    sub("--min-detail", type=float, default=0.0, metavar="X", help=detail_help)
    sub("--lmdb", action="store_true", help="pack into an LMDB: NAME.lmdb, or NAME_sub.lmdb with --sub")
    sub("--compress-level", type=int, metavar="L", help="of PNG, 0 fast to 9 small (default: 3, in an LMDB 1)")
    listed = parser.add_argument_group("freely licensed images").add_argument
    listed("--list", type=Path, metavar="FILE", help="CSV, JSON lines or Parquet with url, hash (MD5), license")
    listed("--count", type=int, metavar="N", help="how many to take, the same for everybody")
    listed("--min-side", type=int, default=512, metavar="N", help="smallest side in pixels (default 512)")
    listed("--source", metavar="TEXT", help="only rows whose source holds this")
    license_help = "accepted parts of a license's address (default: CC0 and the public domain mark)"
    listed("--license", nargs="+", default=list(FREE), metavar="PART", help=license_help)
    return parser


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _asks_for_work(options: argparse.Namespace) -> str:
    """Those of the given options that prepare something."""
    given = {"--list": options.list, "--download": options.download, "--sub": options.sub, "--lmdb": options.lmdb}
    return ", ".join(name for name, value in given.items() if value)


def main(argv: list[str]) -> int:
    """Prepare what is named; without names show what is known."""
    options = _parser().parse_args(argv)

    from vheatir.prepare.api import prepare, sets_table

    if not options.names:
        if unused := _asks_for_work(options):
            raise UserError(
                f"{unused}: give the NAME of what is to be prepared; alone, `vheatir prepare` lists the sets"
            )
        _say(sets_table(options.root))
        return 0
    prepare(
        options.names,
        root=options.root,
        download=options.download,
        terms=options.terms,
        sub=options.sub,
        size=options.size,
        overlap=options.overlap,
        shrink=options.shrink,
        min_detail=options.min_detail,
        lmdb=options.lmdb,
        compress_level=options.compress_level,
        url_list=options.list,
        count=options.count,
        min_side=options.min_side,
        source=options.source,
        licenses=options.license,
        say=_say,
    )
    return 0
