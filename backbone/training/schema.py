"""Recipes as dataclasses: filled from tables with typed keys; what nobody reads is refused by name."""

import difflib
import math
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from typing import Any, Union, get_args, get_origin, get_type_hints


@dataclass
class Logger:
    """What is written when; `save_freq` in steps, beside the checkpoint after each epoch or evaluation."""

    print_freq: int = 50
    save_freq: int | None = None
    keep_checkpoints: int = 2
    use_tb_logger: bool = True


@dataclass(kw_only=True)
class Run:
    """What every recipe has."""

    name: str
    logger: Logger = field(default_factory=Logger)
    manual_seed: int = 0
    device: str = "auto"


def _one_of(key: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(str(key), known, n=1)
    return f"did you mean {close[0]}? known here: {', '.join(known)}" if close else f"known here: {', '.join(known)}"


def _fits(value: Any, kind: Any) -> bool:
    if get_origin(kind) in (Union, types.UnionType):
        return any(_fits(value, one) for one in get_args(kind))
    if get_origin(kind) is tuple:
        parts = get_args(kind)
        if not isinstance(value, list | tuple):
            return False
        if parts[-1] is Ellipsis:
            return len(value) > 0 and all(_fits(one, parts[0]) for one in value)
        return len(value) == len(parts) and all(map(_fits, value, parts))
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _name(kind: Any) -> str:
    if get_origin(kind) in (Union, types.UnionType):
        return " or ".join(_name(one) for one in get_args(kind))
    if get_origin(kind) is tuple:
        parts = get_args(kind)
        return "a list" if parts[-1] is Ellipsis else f"{len(parts)} numbers"
    return {float: "a number", int: "a whole number", str: "text", bool: "true or false", type(None): "~"}.get(
        kind, "a table"
    )


def fill(kind: type, table: Mapping, where: str = "") -> Any:
    """A dataclass from a table, and those inside it; `where` is the section's name with a dot.

    Raises:
        ValueError: an unknown key, a wrong type, or a key that is missing; named as section.key.
    """
    hints, values = get_type_hints(kind), {}
    for key, value in table.items():
        if key not in hints:
            raise ValueError(f"unknown key {where}{key}; {_one_of(key, list(hints))}")
        wanted = hints[key]
        if is_dataclass(wanted):
            if not isinstance(value, Mapping):
                raise ValueError(f"{where}{key} must be a table, got {value!r}")
            values[key] = fill(wanted, value, f"{key}.")
        elif not _fits(value, wanted):
            raise ValueError(f"{where}{key} must be {_name(wanted)}, got {value!r}")
        else:
            values[key] = tuple(value) if isinstance(value, list) else value
    for one in fields(kind):
        if one.name not in values and one.default is MISSING and one.default_factory is MISSING:
            raise ValueError(f"{where}{one.name} is missing")
    return kind(**values)


def get(recipe: Any, path: str) -> Any:
    """The value of section.key."""
    for part in path.split("."):
        recipe = getattr(recipe, part)
    return recipe


def check(
    recipe: Any,
    choices: Mapping[str, Sequence[str]],
    positive: Sequence[str] = (),
    not_negative: Sequence[str] = (),
    shares: Sequence[str] = (),
) -> None:
    """Check values by section.key; those that are None pass.

    Raises:
        ValueError: not one of its choices, not above 0, below 0, or not between 0 and 1.
    """
    for path, known in choices.items():
        if get(recipe, path) not in known:
            raise ValueError(f"{path} must be one of {', '.join(known)}, got {get(recipe, path)!r}")
    for path in positive:
        if (value := get(recipe, path)) is not None and value <= 0:
            raise ValueError(f"{path} must be above 0, got {value}")
    for path in not_negative:
        if (value := get(recipe, path)) is not None and value < 0:
            raise ValueError(f"{path} must not be below 0, got {value}")
    for path in shares:
        if (value := get(recipe, path)) is not None and not 0 <= value <= 1:
            raise ValueError(f"{path} must lie between 0 and 1, got {value}")
