"""The shipped weights, and reading and writing files of weights."""

from vheatir.weights.card import card
from vheatir.weights.store import (
    DEFAULTS,
    FOLDER,
    FORMAT,
    METADATA,
    PAIRED,
    REQUIRED,
    SUFFIX,
    available,
    checkpoint_metadata,
    configured,
    find,
    load,
    load_checkpoint,
    read,
    save,
    serve,
)

__all__ = [
    "DEFAULTS",
    "FOLDER",
    "FORMAT",
    "METADATA",
    "PAIRED",
    "REQUIRED",
    "SUFFIX",
    "available",
    "card",
    "checkpoint_metadata",
    "configured",
    "find",
    "load",
    "load_checkpoint",
    "read",
    "save",
    "serve",
]
