"""Where the package's data folders are, installed or in a checkout."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]


def recipes() -> Path:
    """The folder of the YAML recipes: `vheatir/recipes` once installed, `options/` beside the package in a checkout."""
    installed = _PACKAGE / "recipes"
    return installed if installed.is_dir() else _PACKAGE.parent / "options"
