"""Text files that people make with many programs: read with or without a byte order mark."""

import codecs
import json
from pathlib import Path
from typing import Any

_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


def decoded(content: bytes) -> str:
    """Text in UTF-8, or in what its byte order mark says.

    Raises:
        UnicodeDecodeError: it is neither.
    """
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8")
    return content.decode(encoding)


def read_text(path: Path) -> str:
    """The text of a file.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is no text in UTF-8 or UTF-16; names the file.
    """
    try:
        return decoded(path.read_bytes())
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected text in UTF-8 ({error}); save it in that encoding") from error


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is no JSON; names the file.
    """
    try:
        return json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error})") from error
