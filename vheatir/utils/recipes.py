"""YAML recipes: where they lie, and reading one with what it extends and with overrides.

Numbers may be written as `2e-4`: YAML 1.1 takes that for text, this reader for a number.
"""

import copy
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from vheatir.errors import UserError

_PACKAGE = Path(__file__).resolve().parents[1]


def recipes() -> Path:
    """The folder of the YAML recipes: `vheatir/recipes` once installed, `options/` beside the package in a checkout."""
    installed = _PACKAGE / "recipes"
    return installed if installed.is_dir() else _PACKAGE.parent / "options"


class _Loader(yaml.SafeLoader):
    """Safe YAML that reads 1e-4 as a number and refuses a key that stands twice."""

    def construct_mapping(self, node, deep=False):
        merge = "tag:yaml.org,2002:merge"  # `<<: *base` takes over keys, which others may replace
        keys = [self.construct_object(key, deep=True) for key, _ in node.value if key.tag != merge]
        twice = sorted({str(key) for key in keys if keys.count(key) > 1})
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"key given twice: {', '.join(twice)}", node.start_mark)
        return super().construct_mapping(node, deep)

    def construct_number(self, node):
        """3e5 and `!!float 5000` are whole numbers, which counts of iterations must be; 1.0 is not."""
        value = self.construct_yaml_float(node)
        return int(value) if value.is_integer() and ("e" in node.value.lower() or "." not in node.value) else value


_Loader.yaml_implicit_resolvers = copy.deepcopy(yaml.SafeLoader.yaml_implicit_resolvers)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_number)
_COMMA = re.compile(r"^[-+]?\d+,\d+([eE][-+]?\d+)?$")


def find_options(path: str | Path) -> Path:
    """The options file: a path, or the name of a recipe in the package, with or without `options/` and `.yml`."""
    path = Path(path)
    if path.is_file():
        return path
    parts = path.parts[1:] if path.parts[:1] == ("options",) else path.parts
    shipped = recipes().joinpath(*parts)
    shipped = shipped if path.suffix == ".yml" else shipped.with_name(f"{shipped.name}.yml")
    if parts and shipped.is_file() and shipped.is_relative_to(recipes()) and ".." not in parts:
        return shipped
    found = (file.relative_to(recipes()).with_suffix("").as_posix() for file in recipes().rglob("*.yml"))
    known = ", ".join(sorted(found, key=lambda name: ("/" in name, name)))
    raise UserError(f"{path}: no such options file; give a path or one of the recipes: {known}")


def load_table(path: Path, overrides: Sequence[str] = (), sections: Sequence[str] = ()) -> dict[str, Any]:
    """The table of a YAML file with overrides, whatever its keys.

    A file may begin from another one: `extends: other.yml`, beside it; sections of both are merged key by key.

    Args:
        path: the file.
        overrides: `a.b=value` each, the value in YAML; the section must exist, the key may be new.
        sections: names of sections that an override may begin where the file has none.

    Raises:
        UserError: not YAML, no table, or an override that names no section.
    """
    options = _table(path)
    for override in overrides:
        _override(options, override, sections)
    _check_numbers(path, "", options)
    return options


def _check_numbers(path: Path, where: str, value: Any) -> None:
    """Refuse numbers with a decimal comma, at any depth: YAML takes them for text or for two entries."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str) and item is None:
                raise UserError(
                    f"{path}: {where or 'the options'}: {key!r} stands where a name is expected; numbers are written "
                    "with a point, such as 2.5e-3, a comma begins the next entry"
                )
            _check_numbers(path, f"{where}.{key}".lstrip("."), item)
    elif isinstance(value, list):
        for item in value:
            _check_numbers(path, where, item)
    elif isinstance(value, str) and _COMMA.match(value):
        point = value.replace(",", ".")
        raise UserError(f"{path}: {where}: {value!r} has a decimal comma; numbers are written with a point, {point}")


def _table(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A file's table, merged into that of the file it extends; `above` are those that led here."""
    try:
        options = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(options, dict):
        raise UserError(f"{path}: expected a table of options, got {type(options).__name__}")
    if "extends" not in options:
        return options
    name = str(options.pop("extends"))
    base = path.parent / name
    if Path(name).name != name or not base.is_file() or base in (path, *above):
        raise UserError(f"{path}: extends {name}: expected another options file beside it")
    return _merged(_table(base, (path, *above)), options)


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def _override(options: dict[str, Any], text: str, known_sections: Sequence[str]) -> None:
    name, separator, value = text.partition("=")
    if not separator:
        raise UserError(f"--set {text}: expected a.b=value")
    parsed = _value(text, value)
    *sections, key = name.split(".")
    target = options
    if sections and sections[0] in known_sections and options.get(sections[0]) is None:
        options[sections[0]] = {}
    for section in sections:
        if not isinstance(target.get(section), dict):
            known = ", ".join(key for key, item in target.items() if isinstance(item, dict))
            raise UserError(f"--set {text}: there is no section {section!r}; sections here: {known}")
        target = target[section]
    target[key] = parsed


def key_values(given: Sequence[str]) -> dict[str, Any]:
    """The arguments of networks that `--set KEY=VALUE` names, the values in YAML.

    Raises:
        UserError: one without an equals sign, or a value that is not YAML.
    """
    changes = {}
    for change in given:
        key, equals, value = change.partition("=")
        if not equals:
            raise UserError(f"--set {change}: expected KEY=VALUE, such as --set img_size=64")
        changes[key] = _value(change, value)
    return changes


def _value(override: str, text: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise UserError(f"--set {override}: the value is not valid YAML: {error}") from error
