"""Result files: JSON whose metadata says how to measure the same again, written atomically."""

import json
import math
import shlex
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vheatir.errors import UserError
from vheatir.utils.files import atomic_open

_QUIET = {"capture_output": True, "text": True, "check": False}


def run_metadata(command: Sequence[str]) -> dict[str, Any]:
    """What a result needs to be measured again: command, versions, commit of the checkout, machine, time."""
    from vheatir import info

    return {
        "command": shlex.join(command),
        "utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "versions": info.versions(),
        "machine": info.machine(),
    }


def _commit() -> str | None:
    """The commit of the checkout that holds this file, with "-dirty" for edited files; None when there is none."""
    git = ["git", "-C", str(Path(__file__).resolve().parent)]
    try:
        described = subprocess.run([*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"], **_QUIET)
        tracked = subprocess.run([*git, "ls-files", "--error-unmatch", Path(__file__).name], **_QUIET)
    except OSError:
        return None
    return described.stdout.strip() if described.returncode == tracked.returncode == 0 else None


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON atomically; numbers that JSON does not know (infinite, NaN) become null."""
    with atomic_open(path) as file:
        file.write((json.dumps(_finite(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def prepare_output(path: Path) -> None:
    """Make the folder of an output file, before hours of work for a file that cannot be written."""
    if path.is_dir():
        raise UserError(f"{path}: is a folder, expected the name of a file to write")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path}: its folder cannot be made ({error.strerror}); choose another place") from error
