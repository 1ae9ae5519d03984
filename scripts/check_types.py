"""Checks the types of kernels/, backbone/ and vheatir/ with pyright, as pyproject.toml asks for.

    python scripts/check_types.py [--list] [--strict]

It fails where more imports than `circles_left` run in a circle, where an import of the project itself is not found,
where a module of `without_errors` has an error, or where the others together have more than `errors_elsewhere`. Imports
of optional packages that are not installed do not count.
"""

import argparse
import fnmatch
import json
import os
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
LINKS = ("vheatir/backbone/", "vheatir/kernels/")


class Finding(NamedTuple):
    """An error of pyright: the file from the root of the checkout, the line from 1 on, the rule and the text."""

    file: str
    line: int
    rule: str
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {' '.join(self.text.split())} ({self.rule})"

    @property
    def is_import(self) -> bool:
        return self.rule == "reportMissingImports"

    @property
    def is_foreign(self) -> bool:
        """Whether it says only that a package of others is not installed."""
        return self.is_import and not self.text.startswith('Import "vheatir')


class Rules(NamedTuple):
    """What pyproject.toml allows: patterns of files without errors, and the numbers of errors and circles elsewhere."""

    without_errors: list[str]
    errors_elsewhere: int
    circles_left: int

    def must_be_clean(self, finding: Finding) -> bool:
        return finding.is_import or any(fnmatch.fnmatchcase(finding.file, pattern) for pattern in self.without_errors)


def rules() -> Rules:
    """The rules in pyproject.toml."""
    return Rules(**tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["vheatir"]["types"])


def place(file: str) -> str:
    """The file from the root of the checkout, past the links."""
    name = Path(file).relative_to(ROOT).as_posix()
    return name.removeprefix("vheatir/") if name.startswith(LINKS) else name


def findings(report: dict) -> list[Finding]:
    """The errors of pyright's report in JSON, without those on packages of others that are not installed."""
    found = []
    for one in report["generalDiagnostics"]:
        if one["severity"] == "error":
            line = one["range"]["start"]["line"] + 1 if "range" in one else 1
            found.append(Finding(place(one["file"]), line, one.get("rule", "syntax"), one["message"]))
    return sorted(finding for finding in found if not finding.is_foreign)


def check() -> list[Finding]:
    """Run pyright over the checkout.

    Raises:
        SystemExit: it cannot be run, or checked nothing.
    """
    missing = [link for link in LINKS if not (ROOT / link).is_dir()]
    if missing:
        raise SystemExit(f"types: ERROR: {' and '.join(missing)} must be links to the folders beside vheatir/")
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable]
    quiet = {**os.environ, "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=quiet, capture_output=True, text=True)
    try:
        report = json.loads(done.stdout)
    except ValueError:
        message = (done.stderr.strip() or done.stdout.strip())[-2000:]
        raise SystemExit(f"types: ERROR: pyright cannot run: {message}\npip install 'vheatir[dev]'") from None
    if not report["summary"]["filesAnalyzed"]:
        raise SystemExit("types: ERROR: pyright found no files to check")
    return findings(report)


def main() -> int:
    """Print what is wrong; 0 where nothing is, else 1."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--list", action="store_true", help="print every error, also those that are allowed")
    parser.add_argument("--strict", action="store_true", help="fail also where the allowed numbers could be lowered")
    arguments = parser.parse_args()
    if not any((ROOT / name).exists() for name in (".git", *LINKS)):
        print("types: not checked, a source archive has no links to backbone/ and kernels/")
        return 0
    allowed = rules()
    every = check()
    circles = [finding for finding in every if finding.rule == "reportImportCycles"]
    found = [finding for finding in every if finding not in circles]
    wrong = [finding for finding in found if allowed.must_be_clean(finding)]
    elsewhere = [finding for finding in found if not allowed.must_be_clean(finding)]
    too_many = len(elsewhere) > allowed.errors_elsewhere
    too_many_circles = len(circles) > allowed.circles_left
    for finding in [*wrong, *circles, *(elsewhere if too_many or arguments.list else [])]:
        print(finding)
    worst = ", ".join(f"{name} {count}" for name, count in Counter(one.file for one in elsewhere).most_common(5))
    print(f"types: {len(wrong)} errors where there may be none; {len(elsewhere)} elsewhere of the allowed ", end="")
    print(f"{allowed.errors_elsewhere}{f', most in {worst}' if worst else ''}")
    print(f"types: {len(circles)} circles of imports of the allowed {allowed.circles_left}")
    lower = len(elsewhere) < allowed.errors_elsewhere or len(circles) < allowed.circles_left
    if lower:
        print("types: lower the numbers in pyproject.toml to these")
    return int(bool(wrong) or too_many or too_many_circles or (lower and arguments.strict))


if __name__ == "__main__":
    raise SystemExit(main())
