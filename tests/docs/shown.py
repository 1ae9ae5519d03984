"""What the pages show: their commands and their Python blocks."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "*/README.md", "benchmarks/results/*.md", "vheatir/**/*.md")
    for path in ROOT.glob(pattern)
)
PROGRAMS = "vheatir|torchrun|srun|sbatch|accelerate|python[0-9.]*|pip|make|git|apt-get|mkdocs|docker|ray"

_FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_INDENTED = re.compile(r"^ {4,}(.*)$", re.MULTILINE)
_INLINE = re.compile(r"`([^`]+)`")
_CARD = re.compile(r"^\| command \| (.*) \|$", re.MULTILINE)
_COMMAND = re.compile(rf"(?:\$ )?((?:[A-Z_]+=\S* )*(?:\S*/)?(?:{PROGRAMS}) .*)")


@dataclass(frozen=True)
class Command:
    """A command in one line, without prompt and comment, and the page that shows it."""

    page: str
    text: str

    @property
    def words(self) -> list[str]:
        return shlex.split(self.text)


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def commands(page: Path) -> list[Command]:
    """All commands of a page: whole lines of blocks, lines of weight cards, and pieces of text that give an option.

    `vheatir train` in a sentence names a command; `vheatir train -opt FILE` shows one.
    """
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    found = [(block.start(2), block[2].splitlines()) for block in _FENCED.finditer(text) if block[1] != "python"]
    prose = _FENCED.sub(lambda block: " " * len(block[0]), text)
    found += [(line.start(), [line[1]]) for line in _INDENTED.finditer(prose)]
    found += [(line.start(), line[1].split("; ")) for line in _CARD.finditer(prose)]
    prose = _INDENTED.sub(lambda line: " " * len(line[0]), prose)
    found += [(piece.start(), [piece[1]]) for piece in _INLINE.finditer(prose) if re.search(r"\s-", piece[1])]
    lines = [" ".join(line.split()) for _, lines in sorted(found) for line in lines]
    shown = [match[1] for line in lines if (match := _COMMAND.fullmatch(re.sub(r" # .*$", "", line)))]
    return [Command(name_of(page), line) for line in shown]


def python_blocks(page: str) -> list[str]:
    """The blocks of Python code of a page, from top to bottom."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [block[2] for block in _FENCED.finditer(text) if block[1] == "python"]
