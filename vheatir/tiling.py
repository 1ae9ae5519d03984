"""The documented name of `vheatir.restore.tiling`."""

from vheatir.restore.tiling import (
    ALIGNMENT,
    DEFAULT_OVERLAP,
    DEFAULT_TILE,
    MIN_TILE,
    WHOLE_PIXELS,
    WHOLE_SIDE,
    Span,
    apply_tiled,
    check_tile,
    default_tile,
    plan_axis,
    tiled_rows,
)

__all__ = [
    "ALIGNMENT",
    "DEFAULT_OVERLAP",
    "DEFAULT_TILE",
    "MIN_TILE",
    "WHOLE_PIXELS",
    "WHOLE_SIDE",
    "Span",
    "apply_tiled",
    "check_tile",
    "default_tile",
    "plan_axis",
    "tiled_rows",
]
