"""Hooks of MkDocs: the sources as the reference pages read them, and links to files that are not part of the site.

The reader of docstrings finds submodules of folders with an `__init__.py` alone, and `kernels/` has none on purpose. So
it reads a copy laid out as the installed package is, with that file added. Nothing of it is imported.
"""

import re
import shutil
import tempfile
from pathlib import Path, PurePosixPath

from mkdocs.plugins import event_priority

ROOT = Path(__file__).resolve().parent.parent
_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(((?:\.\./)+[^)#\s]+)(?:#[^)\s]*)?\)")
_copies = []  # removed when the process ends


def _lay_out(target: Path) -> None:
    def keep_python(folder: str, names: list[str]) -> set[str]:
        return {name for name in names if not (Path(folder, name).is_dir() or name.endswith((".py", ".pyi")))}

    shutil.copytree(
        ROOT / "vheatir",
        target / "vheatir",
        ignore=lambda folder, names: (
            keep_python(folder, names) | ({"backbone", "kernels"} if Path(folder) == ROOT / "vheatir" else set())
        ),
    )
    for name in ("backbone", "kernels"):
        shutil.copytree(ROOT / name, target / "vheatir" / name, ignore=keep_python)
    (target / "vheatir" / "kernels" / "__init__.py").touch()


@event_priority(100)  # before mkdocstrings reads its settings
def on_config(config):
    folder = tempfile.TemporaryDirectory(prefix="vheatir-site-")
    _copies.append(folder)
    _lay_out(Path(folder.name))
    config.plugins["mkdocstrings"].config.handlers["python"]["paths"] = [folder.name]
    return config


def _named(link: re.Match, page: str) -> str:
    """The link, or its text and the file's path where the file lies outside `docs/`."""
    target = (ROOT / "docs" / PurePosixPath(page).parent / link[2]).resolve()
    if target.is_relative_to(ROOT / "docs"):
        return link[0]
    path = f"`{target.relative_to(ROOT).as_posix()}`"
    return link[1] if link[1].strip("`") == path.strip("`") else f"{link[1]} ({path} in the repository)"


def on_page_markdown(markdown, *, page, **_):
    return _LINK.sub(lambda link: _named(link, page.file.src_uri), markdown)
