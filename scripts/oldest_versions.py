"""Prints pip constraints: every dependency of pyproject.toml in the oldest version that is allowed.

    python scripts/oldest_versions.py > oldest-constraints.txt

Standard library only; run by `make test-oldest`.
"""

import re
import tomllib
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"
# Tools of the set-up itself; pip puts setuptools where building needs a newer one than the least.
LEFT_OUT = ("setuptools",)


def constraints(project: dict) -> list[str]:
    """`name==version` for each dependency with a lower bound, its marker kept, each once."""
    listed = [
        *project["dependencies"],
        *(text for texts in project["optional-dependencies"].values() for text in texts),
    ]
    found = {}
    for text in listed:
        requirement, _, marker = text.partition(";")
        match = re.fullmatch(r"([\w.-]+)(?:\[[\w,]+\])?(?:>=|==)([\w.]+).*", requirement.strip())
        if match and match[1] not in LEFT_OUT:
            found[match[1].lower()] = f"{match[1]}=={match[2]}" + (f"; {marker.strip()}" if marker else "")
    return sorted(found.values())


if __name__ == "__main__":
    print("\n".join(constraints(tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"])))
