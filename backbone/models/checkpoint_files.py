"""Files of weights: read without running code that they hold; what is none is named by what it is."""

import argparse
import json
import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

# Stand-ins and plain containers that published files hold beside tensors; none of them runs code when built.
_SCALAR = np.float64().__reduce__()[0]  # the function that rebuilds a number; it has no public name
_SCALARS = [(_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
_DTYPES = [type(np.dtype(name)) for name in ("float64", "float32", "int64", "int32", "bool")]
_ALLOWED = [(OrderedDict, "yacs.config.CfgNode"), argparse.Namespace, np.dtype, *_DTYPES, *_SCALARS]
_PAGES = (b"<!doctype html", b"<html", b"<head", b"<?xml")
_LFS = b"version https://git-lfs"


def _what_it_is(path: Path) -> str | None:
    """What a file is that holds no weights, and what to do; None where its first bytes may begin some."""
    with open(path, "rb") as file:
        head = file.read(256)
    if not head:
        return "the file is empty (0 bytes); download or copy it again"
    if head.startswith(_LFS):
        return "a pointer of Git LFS, not the weights; run `git lfs pull` where it lies, or download the file itself"
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if start.lower().startswith(_PAGES):
        return "a web page, not the weights; download the file itself, not the page that shows it"
    if all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in head):
        line = start.decode("ascii").splitlines()[0][:60] if start else ""
        return f"is no checkpoint of tensors, but text (it begins {line!r}); download the file itself"
    return None


def is_safetensors(path: Path) -> bool:
    """Whether a file begins as .safetensors do, whatever its name."""
    with open(path, "rb") as file:
        head = file.read(9)
    return head[8:] == b"{"


def _checked(path: str | Path) -> Path:
    path = Path(os.path.expanduser(path))
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give the .safetensors or .pth file in it")
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint {path}; give the path of a .safetensors or .pth file")
    try:
        found = _what_it_is(path)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from error
    if found is not None:
        raise ValueError(f"{path}: {found}")
    return path


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The content of a .safetensors, .pth or .pt file, without running code that it holds; the bytes tell the kind.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is none of weights, is damaged, or holds objects that are neither tensors nor plain values.
    """
    path = _checked(path)
    try:
        if is_safetensors(path):
            return load_file(path)
        # An opened file: by a name that ends in .safetensors torch would take another reader.
        with open(path, "rb") as file, torch.serialization.safe_globals(_ALLOWED):
            content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} is no checkpoint of tensors and plain values, or would run code when loaded; "
            f"save its weights alone with torch.save or safetensors ({str(error).splitlines()[0]})"
        ) from error
    except MemoryError:
        raise ValueError(f"{path}: not enough memory to read it") from None
    except Exception as error:  # readers raise whatever they like on damaged bytes
        said = (str(error).splitlines() or [""])[0][:120]
        raise ValueError(
            f"{path}: not a whole file of weights, cut off or damaged ({type(error).__name__}: {said}); "
            "download or copy it again"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected a table of tensors by name")
    return content


def stored_model(path: str | Path) -> dict[str, Any]:
    """The model's arguments in the metadata of weights that this package wrote; {} for other files.

    Raises:
        FileNotFoundError, ValueError: as `read_checkpoint`.
    """
    stored = _stored(path, "model")
    return stored if isinstance(stored, dict) else {}


def stored_classes(path: str | Path) -> list[str]:
    """Names of the classes in the metadata of weights, in the order of their numbers; [] where they are not stated.

    Raises:
        FileNotFoundError, ValueError: as `read_checkpoint`.
    """
    stored = _stored(path, "classes")
    return stored if isinstance(stored, list) else []


def _stored(path: str | Path, key: str) -> Any:
    """What metadata hold as JSON; None where there is none."""
    path = _checked(path)
    if not is_safetensors(path):
        return None
    try:
        with safe_open(path, "pt") as file:
            return json.loads((file.metadata() or {}).get(key, "null"))
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path}: not a whole .safetensors file, cut off or damaged ({error}); download or copy it again"
        ) from error
