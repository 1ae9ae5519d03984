"""Plans of the fast cosine transform: which rows each step of the native kernel combines, and with what numbers.

A plan turns the DCT-II of one line into steps, each of them orthogonal up to a factor:

    split   DCT-II(n) = DCT-II(n/2) of sums and DCT-IV(n/2) of differences; DCT-IV(n) = two DCT-II(n/2) of rotated pairs
    leaf    a whole short transform in registers
    merge   sums and differences that end a DCT-IV
    dense   a product with a small matrix
    copy    what a step leaves aside

Half of the split is free of multiplications and the other half rotates, so errors do not grow. All steps together and
the plan's scale are the orthonormal transform, the transposed steps in reverse and the scale its inverse.
Long odd lengths are in plan_odd.py, short ones in csrc/odd_leaf.h.

Source: Plonka and Tasche, Fast and numerically stable algorithms for discrete cosine transforms (2005).
"""

import math
from functools import lru_cache

import numpy as np

from vheatir.kernels.cpu.plan_odd import OddTransform, prime_power
from vheatir.kernels.cpu.plan_steps import (
    COPY,
    II,
    IV,
    LEAF,
    MERGE,
    SPLIT,
    Step,
    TransformPlan,
    encode,
    leaf_table,
    split_groups,
    split_turns,
)

# Samples of a transform that is done in registers; between the two only multiples of 4. The longer ones spill with 16
# registers, which is worth it where it saves a pass of splits.
SHORT_LEAF = 16
LONG_LEAF = 32
_DEEPEST_SPLIT = 3  # halvings of one split step: 8 rows and their temporaries fit in the registers


class _Builder:
    def __init__(self, length: int, usual_leaf: int):
        self._length = length
        # One sample is its own transform, exactly.
        self._scale = math.sqrt(2 / length) if length > 1 else 1.0
        self._of_zero = math.sqrt(0.5) if length > 1 else 1.0
        self._halvings, self._leaf = _halvings(length, usual_leaf)
        halvings, leaf = _halvings(length, LONG_LEAF)
        if _passes(halvings) < _passes(self._halvings):
            self._halvings = halvings
            self._leaf = leaf
        self._splits: list[Step] = []
        self._leaves: list[Step] = []
        self._merges: list[tuple[int, Step]] = []  # with the length of the transform that each one ends

    def build(self) -> TransformPlan:
        self._nodes = iter(self._split_all())
        order = self._assemble(II, self._length, True)
        # A merge needs the shorter ones below it; sorting also brings together what can be one step.
        merges = [step for _, step in sorted(self._merges, key=lambda one: (one[0], one[1].kind, one[1].final))]
        steps = self._splits + _joined(sorted(self._leaves, key=_likeness)) + _joined(merges)
        frequency = np.zeros(2 * self._length, dtype=np.int64)
        frequency[np.array(order)] = np.arange(self._length)
        for step in steps:
            if step.final:
                step.rows_out = frequency[step.rows_out]
        return encode(self._length, self._scale, steps)

    def _split_all(self) -> list[tuple[int, np.ndarray]]:
        """Emit the splits; returns type and slots of every leaf, in depth-first order."""
        nodes = [(II, np.arange(self._length))]
        done = 0
        while done < self._halvings:
            depth = -(-(self._halvings - done) // _passes(self._halvings - done))
            children = []
            for kind, slots in nodes:
                rows = slots[split_groups(len(slots), depth)]
                tables = split_turns(kind, len(slots), depth)
                self._splits.append(Step(SPLIT, kind, rows, rows, tables, first=done == 0))
                children += zip(_types_below(kind, depth), rows.T)
            nodes = children
            done += depth
        return nodes

    def _assemble(self, kind: int, size: int, final: bool) -> list[int]:
        """Emit leaves and merges of a node; returns the slot of each of its frequencies.

        `final`: no merge follows, the node's results are the line's.
        """
        if size == self._leaf:
            return self._emit_leaf(final)
        half = size // 2
        if kind == II:
            even = self._assemble(II, half, final)
            odd = self._assemble(IV, half, final)
            return [slot for pair in zip(even, odd) for slot in pair]
        u = self._assemble(II, half, False)
        v = self._assemble(II, half, False)
        pairs = [(u[k], v[half - k]) for k in range(1, half)]
        rows = np.array(pairs)
        ends = np.array([[u[0]], [v[0]]])
        self._merges.append((size, Step(MERGE, II, rows, rows, final=final)))
        if final:
            self._merges.append((size, Step(COPY, II, ends, ends, final=True)))
        return [u[0], *(slot for pair in pairs for slot in pair), v[0]]

    def _emit_leaf(self, final: bool) -> list[int]:
        kind, slots = next(self._nodes)
        first = self._halvings == 0
        holds_zero = not self._leaves
        if self._leaf > SHORT_LEAF and self._leaf % 2:
            odd = OddTransform(kind, slots.tolist(), self._length, first=first, holds_zero=holds_zero)
            self._leaves += odd.steps(final)
            return odd.order
        zero = [self._of_zero if holds_zero else 1.0] if kind == II else []
        table = np.concatenate([leaf_table(kind, self._leaf), zero])
        self._leaves.append(Step(LEAF, kind, slots[None], slots[None], table[None], first, final))
        return slots.tolist()


def _halvings(length: int, longest_leaf: int) -> tuple[int, int]:
    """How often a line is halved until leaves of at most that length, or an odd number of samples, are left; which."""
    halvings = 0
    leaf = length
    while leaf % 2 == 0 and leaf > SHORT_LEAF and not (leaf <= longest_leaf and leaf % 4 == 0):
        halvings += 1
        leaf //= 2
    return halvings, leaf


def _passes(halvings: int) -> int:
    """Split steps, each over the whole line, that so many halvings take."""
    return -(-halvings // _DEEPEST_SPLIT)


def _types_below(kind: int, depth: int) -> list[int]:
    if depth == 0:
        return [kind]
    return [*_types_below(II, depth - 1), *_types_below(IV if kind == II else II, depth - 1)]


def _likeness(step: Step) -> tuple:
    """Equal for leaves that can be one step; the same for all steps that must keep their order."""
    return (step.type, step.final) if step.kind == LEAF else ()


def _can_join(last: Step, step: Step) -> bool:
    """Whether two neighbors differ in their rows only, and the second one needs none of the first one's results."""
    if step.kind not in (LEAF, MERGE, COPY):
        return False
    if (last.kind, last.type, last.size) != (step.kind, step.type, step.size):
        return False
    if (last.first, last.final) != (step.first, step.final):
        return False
    if step.tables is not None and (last.tables is None or not np.array_equal(last.tables, step.tables)):
        return False
    return not np.isin(step.rows_in, last.rows_out).any()


def _joined(steps: list[Step]) -> list[Step]:
    """Neighbors of one kind, size and table as one step with more groups."""
    out: list[Step] = []
    for step in steps:
        if out and _can_join(out[-1], step):
            rows_in = np.concatenate([out[-1].rows_in, step.rows_in])
            rows_out = np.concatenate([out[-1].rows_out, step.rows_out])
            out[-1] = Step(step.kind, step.type, rows_in, rows_out, step.tables, step.first, step.final)
        else:
            out.append(step)
    return out


@lru_cache(maxsize=1024)
def longest_product(length: int) -> int:
    """Length of the longest dense product in the plan of `length` samples; 1 where all of it is done in leaves."""
    odd = length
    while odd > SHORT_LEAF and odd % 2 == 0:
        odd //= 2
    longest = 1
    while odd > SHORT_LEAF:
        factor = prime_power(odd)
        longest, odd = max(longest, factor), odd // factor
    return longest


@lru_cache(maxsize=64)
def transform_plan(length: int, usual_leaf: int = SHORT_LEAF) -> TransformPlan:
    """The plan of the orthonormal DCT-II of `length` samples. Numbers are computed in float64 and rounded once.

    Leaves are no longer than `usual_leaf`, or than LONG_LEAF where that saves a pass.
    """
    return _Builder(length, usual_leaf).build()
