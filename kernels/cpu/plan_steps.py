"""Steps of a plan, the numbers in them, and their form in memory."""

import math
from dataclasses import dataclass

import numpy as np

II = 0  # types of cosine transform; the numbers are those of csrc/api.h, like the kinds of step
IV = 1
SPLIT, LEAF, DENSE, MERGE, COPY = range(5)
READS_OUTSIDE = 1
WRITES_OUTSIDE = 2


@dataclass
class Step:
    """Groups of rows, all combined in the same way.

    Attributes:
        rows_in: (count, size), samples of the line where `first`, else slots of the work space.
        rows_out: (count, size), frequencies where `final` (until then slots, see TransformPlan), else slots.
        tables: (count, ...) numbers of each group, or (1, ...) for all of them; None for merges and copies.
    """

    kind: int
    type: int
    rows_in: np.ndarray
    rows_out: np.ndarray
    tables: np.ndarray | None = None
    first: bool = False
    final: bool = False

    @property
    def count(self) -> int:
        return self.rows_in.shape[0]

    @property
    def size(self) -> int:
        return self.rows_in.shape[1]


@dataclass(frozen=True)
class TransformPlan:
    """A plan as the native kernel reads it; a row of `steps` is one vheatir_step of csrc/api.h.

    Attributes:
        scale: factor that makes the results of all steps the orthonormal transform.
    """

    length: int
    scale: float
    slots: int
    steps: np.ndarray
    rows: np.ndarray
    table: np.ndarray


def encode(length: int, scale: float, steps: list[Step]) -> TransformPlan:
    """Lay the steps out in three arrays.

    Args:
        length: samples of a line.
        scale: factor that makes the results orthonormal.
        steps: in the order of the kernel.
    """
    rows = []
    tables = []
    records = []
    rows_at = table_at = 0
    for step in steps:
        numbers = np.zeros((1, 0)) if step.tables is None else step.tables.reshape(len(step.tables), -1)
        pitch = numbers.shape[1] if len(numbers) > 1 else 0
        flags = READS_OUTSIDE * step.first + WRITES_OUTSIDE * step.final
        cells = step.rows_in.size
        records.append((step.kind, step.type, step.size, step.count, flags, table_at, pitch, rows_at))
        rows += [step.rows_in.ravel(), step.rows_out.ravel()]
        tables.append(numbers.ravel())
        rows_at += 2 * cells
        table_at += numbers.size
    slots = 1 + max((int(s.rows_out.max()) for s in steps if not s.final), default=0)
    return TransformPlan(
        length=length,
        scale=scale,
        slots=slots,
        steps=np.array(records, dtype=np.int32),
        rows=np.concatenate(rows).astype(np.int32),
        table=np.concatenate([*tables, [0.0]]).astype(np.float32),
    )


def turn(n: int, j: np.ndarray | int) -> np.ndarray:
    """(..., 4) rotation of the samples j and n-1-j that begins a DCT-IV(n): two rows of a 2x2 matrix."""
    angle = (2 * np.asarray(j) + 1) * (math.pi / (4 * n))
    sign = 1 - 2 * (np.asarray(j) % 2)
    return np.stack([np.cos(angle), np.sin(angle), sign * np.sin(angle), -sign * np.cos(angle)], -1)


def leaf_table(kind: int, n: int) -> np.ndarray:
    """Numbers of a leaf in the order in which the kernel's recursion uses them."""
    if n % 2 == 0:
        turns = turn(n, np.arange(n // 2))[:, :2].ravel() if kind == IV else np.empty(0)
        children = (II, IV) if kind == II else (II, II)
        return np.concatenate([turns, *(leaf_table(child, n // 2) for child in children)])
    angle = np.arange(1, n // 2 + 1) * (2 * math.pi / n)
    return np.concatenate([np.cos(angle), np.sin(angle)]) * (1 if kind == II else math.sqrt(0.5))


def split_groups(n: int, depth: int) -> np.ndarray:
    """(n / 2^depth, 2^depth) samples that `depth` halvings combine: closed under the mirror of every one."""
    if depth == 0:
        return np.arange(n)[:, None]
    inner = split_groups(n // 2, depth - 1)
    return np.concatenate([inner, n - 1 - inner[:, ::-1]], 1)


def split_turns(kind: int, n: int, depth: int) -> np.ndarray:
    """(groups, numbers) rotations for each group, in the order of the kernel's recursion.

    Args:
        kind: DCT-II or DCT-IV.
        n: samples.
        depth: halvings of the step.
    """
    groups = split_groups(n, depth)
    if depth == 0:
        return np.empty((len(groups), 0))
    half = groups.shape[1] // 2
    own = turn(n, groups[:, :half]).reshape(len(groups), -1) if kind == IV else np.empty((len(groups), 0))
    children = (II, IV) if kind == II else (II, II)
    return np.concatenate([own, *(split_turns(child, n // 2, depth - 1) for child in children)], 1)
