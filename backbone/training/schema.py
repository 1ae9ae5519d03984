"""Options as dataclasses: filled from tables with typed keys, whose rules stand beside them.

    lr: Annotated[float, Positive] = 1e-4

What nobody reads is refused by name, and every message says the key, what was expected and what came. Not by pydantic
or msgspec, which would be a dependency of every training for what 150 lines do.
"""

import difflib
import math
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import PurePath
from typing import Annotated, Any, TypeGuard, Union, get_args, get_origin, get_type_hints

from vheatir.backbone.training.precision import AMP_TYPES


@dataclass(frozen=True)
class Rule:
    """What a value must be beyond its type; `text` follows the key in the message."""

    text: str
    holds: Callable[[Any], bool]


def at_least(least: float) -> Rule:
    """Not below a number."""
    return Rule(f"must be at least {least}", lambda value: value >= least)


def below(limit: float) -> Rule:
    """Below a number."""
    return Rule(f"must be below {limit}", lambda value: value < limit)


def one_of(*choices: str) -> Rule:
    """One of some words."""
    return Rule(f"must be one of {', '.join(choices)}", lambda value: value in choices)


Positive = Rule("must be above 0", lambda value: value > 0)
NotNegative = at_least(0)
Ascending = Rule("must be two numbers above 0, the smaller one first", lambda pair: 0 < pair[0] <= pair[1])
AllPositive = Rule("must be numbers above 0", lambda numbers: bool(numbers) and min(numbers) > 0)
NotEmpty = Rule("must not be empty", bool)
Different = Rule("must name each but once", lambda names: len(set(names)) == len(names))
Share = Rule("must lie between 0 and 1", lambda value: 0 <= value <= 1)
Amp = one_of(*AMP_TYPES)
FolderName = Rule(
    "must be that of the run's folder, without / and not ..; path.experiments_root says where it lies",
    lambda name: PurePath(name).name == name and name not in ("", ".."),
)


@dataclass
class Logger:
    """What is written when; `save_freq` in steps, beside the checkpoint after each epoch or evaluation."""

    print_freq: Annotated[int, Positive] = 50
    save_freq: Annotated[int | None, Positive] = None
    keep_checkpoints: Annotated[int, Positive] = 2
    use_tb_logger: bool = True


@dataclass(kw_only=True)
class RunSection:
    """What every recipe has."""

    name: Annotated[str, FolderName]
    logger: Logger = field(default_factory=Logger)
    manual_seed: Annotated[int, NotNegative] = 0
    device: Annotated[str, one_of("auto", "cpu")] = "auto"


def _known(key: Any, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(str(key), known, n=1)
    return f"did you mean {close[0]}? known here: {', '.join(known)}" if close else f"known here: {', '.join(known)}"


def is_number(value: object, integer: bool = False) -> TypeGuard[float]:
    """A finite int or float, or a whole int when `integer`; True and False are no numbers here."""
    if isinstance(value, bool) or not isinstance(value, int if integer else (int, float)):
        return False
    return math.isfinite(value)


def _fits(value: Any, kind: Any) -> bool:
    if get_origin(kind) in (Union, types.UnionType):
        return any(_fits(value, one) for one in get_args(kind))
    if get_origin(kind) is tuple:
        parts = get_args(kind)
        if not isinstance(value, list | tuple):
            return False
        if parts[-1] is Ellipsis:
            return all(_fits(one, parts[0]) for one in value)
        return len(value) == len(parts) and all(map(_fits, value, parts))
    if kind is float:
        return is_number(value)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


_MANY = {float: "numbers", int: "whole numbers", str: "texts"}


def _name(kind: Any) -> str:
    if get_origin(kind) in (Union, types.UnionType):
        return " or ".join(_name(one) for one in get_args(kind) if one is not type(None))
    if get_origin(kind) is tuple:
        parts = get_args(kind)
        return f"a list of {_MANY[parts[0]]}" if parts[-1] is Ellipsis else f"{len(parts)} {_MANY[parts[0]]}"
    return {float: "a number", int: "a whole number", str: "text", bool: "true or false", type(None): "~"}.get(
        kind, "a table"
    )


def _split(hint: Any) -> tuple[Any, tuple[Rule, ...]]:
    """A field's type and its rules."""
    if get_origin(hint) is Annotated:
        kind, *rules = get_args(hint)
        return kind, tuple(rules)
    return hint, ()


def _value(key: str, value: Any, hint: Any) -> Any:
    """A value that fits its type and rules; `key` is its full name."""
    kind, rules = _split(hint)
    sections = [one for one in get_args(kind) if is_dataclass(one)]  # of a section that may be left out
    kind = sections[0] if sections and value is not None else kind
    if is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise ValueError(f"{key} must be a table, got {value!r}")
        return fill(kind, value, f"{key}.")
    if not _fits(value, kind):
        raise ValueError(f"{key} must be {_name(kind)}, got {value!r}")
    for rule in rules:
        if value is not None and not rule.holds(value):
            raise ValueError(f"{key} {rule.text}, got {value!r}")
    return tuple(value) if isinstance(value, list) else value


def fill(kind: type, table: Mapping, where: str = "") -> Any:
    """A dataclass from a table, and those inside it.

    Args:
        kind: the dataclass.
        table: values by name.
        where: the section's full name with a dot, for messages; "" at the top.

    Raises:
        ValueError: an unknown key, a wrong type, a broken rule, or a key that is missing; named as section.key.
    """
    hints = get_type_hints(kind, include_extras=True)
    values = {}
    for key, value in table.items():
        if key not in hints:
            raise ValueError(f"unknown key {where}{key}; {_known(key, list(hints))}")
        values[key] = _value(f"{where}{key}", value, hints[key])
    for one in fields(kind):
        if one.name not in values and one.default is MISSING and one.default_factory is MISSING:
            raise ValueError(f"{where}{one.name} is missing")
    return kind(**values)
