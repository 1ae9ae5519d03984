"""Long odd transforms: DCT-II and DCT-IV of odd length as a real Fourier transform of the same length.

With u = 2x+1 and the angle taken apart by the Chinese remainder theorem, the DCT-II of odd length m is the cosine
part of the Fourier transform at even frequencies and its sine part at odd ones; the DCT-IV is sums and differences of
both parts. Samples change places and signs, and nothing is multiplied (Heideman 1992; Chan and Siu 1997).
"""

import math
from typing import NamedTuple

import numpy as np

from vheatir.kernels.cpu.plan_steps import COPY, DENSE, II, MERGE, SPLIT, Step

COSINE = 0
SINE = 1


class Signed(NamedTuple):
    """What a slot holds, up to a sign."""

    slot: int
    sign: int


Parts = dict[tuple[int, int], Signed]  # (frequency up to half the length, COSINE or SINE) -> where it is


def prime_power(m: int) -> int:
    """The largest prime power q with m / q prime to q; m itself where m is one."""
    largest = 1
    rest = m
    p = 3
    while rest > 1:
        if p * p > rest:
            p = rest
        power = 1
        while rest % p == 0:
            rest, power = rest // p, power * p
        largest, p = max(largest, power), p + 2
    return largest


def _odd_sample(odd: int, m: int, modulus: int) -> Signed:
    """The odd number +-odd, or for modulus 8 also +-(4m - odd) with the opposite sign, that is 1 in the modulus."""
    choices = [Signed(odd, 1), Signed(-odd, 1), Signed(4 * m - odd, -1), Signed(odd - 4 * m, -1)]
    return next(one for one in choices[: modulus // 2] if one.slot % modulus == 1)


class OddTransform:
    """Steps of one DCT-II or DCT-IV of odd length on given slots; frequency k ends in slot `order[k]`.

    Args:
        kind: DCT-II or DCT-IV.
        slots: where the samples are.
        length: of the whole line. A dense product does not work in place: its results go to the twins of its slots,
            slot + length and back.
        first: the samples are still outside.
        holds_zero: frequency zero is the whole line's, whose orthonormal row is smaller by sqrt(1/2).
    """

    def __init__(self, kind: int, slots: list[int], length: int, *, first: bool, holds_zero: bool):
        self._length = length
        self._first = first
        self._steps: list[Step] = []
        m = len(slots)
        modulus = 4 if kind == II else 8
        samples: list[Signed] = [Signed(0, 0)] * m
        for x, slot in enumerate(slots):
            u, sign = _odd_sample(2 * x + 1, m, modulus)
            samples[pow(modulus, -1, m) * u % m] = Signed(slot, sign)
        (parts,) = self._fourier(m, [samples])
        results = self._cosine2(m, parts) if kind == II else self._cosine4(m, parts)
        self.order = [one.slot for one in results]
        factor = 1.0 if kind == II else math.sqrt(0.5)
        weights = {one.slot: one.sign * factor for one in results}
        if holds_zero:
            weights[self.order[0]] *= math.sqrt(0.5)
        self._scale(weights)

    def _twin(self, slot: int) -> int:
        return slot - self._length if slot >= self._length else slot + self._length

    def _fourier(self, m: int, groups: list[list[Signed]]) -> list[Parts]:
        """Cosine and sine sums over the residues r = 0 .. m-1, for every group of m slots."""
        p = prime_power(m)
        if p == m:
            return self._fourier_dense(m, groups)
        q = m // p
        of_residue = [[(p * pow(p, -1, q) * s + q * pow(q, -1, p) * r) % m for r in range(p)] for s in range(q)]
        inner = self._fourier(p, [[group[i] for i in row] for group in groups for row in of_residue])
        names = list(inner[0])
        columns = [[inner[g * q + s][name] for s in range(q)] for g in range(len(groups)) for name in names]
        outer = self._fourier(q, columns)
        found = []
        pairs: list[tuple[Signed, Signed]] = []
        for g in range(len(groups)):
            products = dict(zip(names, outer[g * len(names) : (g + 1) * len(names)]))
            found.append(self._products(m, p, q, products, pairs))
        rows = np.array([(x.slot, y.slot) for x, y in pairs])
        self._steps.append(Step(MERGE, II, rows, rows.copy()))
        return found

    @staticmethod
    def _products(m: int, p: int, q: int, products: dict, pairs: list) -> Parts:
        """cos(a+b) and sin(a+b) from the products of cosines and sines; the sums they need are added to `pairs`."""
        parts = {}
        done = set()
        for k in range(m // 2 + 1):
            a = k * pow(q, -1, p) % p
            b = k * pow(p, -1, q) % q
            sign_a = -1 if 2 * a > p else 1
            sign_b = -1 if 2 * b > q else 1
            a = min(a, p - a) if a else 0
            b = min(b, q - b) if b else 0
            cc = products[a, COSINE][b, COSINE]
            if a == 0 or b == 0:
                parts[k, COSINE] = cc
                if a:
                    sine = products[a, SINE][b, COSINE]
                    sign = sign_a
                elif b:
                    sine = products[a, COSINE][b, SINE]
                    sign = sign_b
                else:
                    continue
                parts[k, SINE] = Signed(sine.slot, sign * sine.sign)
                continue
            ss = products[a, SINE][b, SINE]
            sc = products[a, SINE][b, COSINE]
            cs = products[a, COSINE][b, SINE]
            if (a, b) not in done:
                done.add((a, b))
                pairs += [(cc, ss), (sc, cs)]
            parts[k, COSINE] = _combined(cc, 1, ss, -sign_a * sign_b)
            parts[k, SINE] = _combined(sc, sign_a, cs, sign_b)
        return parts

    def _fourier_dense(self, m: int, groups: list[list[Signed]]) -> list[Parts]:
        """The same by two dense products of half the length each, on sums and differences of r and -r."""
        half = m // 2
        rows = np.array([(g[r].slot, g[m - r].slot) for g in groups for r in range(1, half + 1)])
        self._steps.append(Step(SPLIT, II, rows, rows, first=self._first))
        if self._first:
            centers = np.array([[g[0].slot] for g in groups])
            self._steps.append(Step(COPY, II, centers, centers, first=True))
            self._first = False
        even: list[list[Signed]] = []
        odd: list[list[Signed]] = []
        for g in groups:
            same = [(g[r], g[m - r]) if g[r].sign == g[m - r].sign else (g[m - r], g[r]) for r in range(1, half + 1)]
            even.append([g[0], *(Signed(s.slot, g[r].sign) for r, (s, _) in enumerate(same, 1))])
            odd.append([Signed(d.slot, g[r].sign) for r, (_, d) in enumerate(same, 1)])
        k = np.arange(half + 1)
        angle = k[:, None] * k[None] % m * (2 * math.pi / m)
        self._dense(np.cos(angle), even)
        self._dense(np.sin(angle[1:, 1:]), odd)
        return [
            {(k, COSINE): Signed(self._twin(one.slot), 1) for k, one in enumerate(e)}
            | {(k, SINE): Signed(self._twin(one.slot), 1) for k, one in enumerate(o, 1)}
            for e, o in zip(even, odd)
        ]

    def _dense(self, matrix: np.ndarray, groups: list[list[Signed]]) -> None:
        slots = np.array([[one.slot for one in g] for g in groups])
        signs = np.array([[one.sign for one in g] for g in groups], dtype=np.float64)
        twins = np.where(slots >= self._length, slots - self._length, slots + self._length)
        self._steps.append(Step(DENSE, II, slots, twins, matrix[None] * signs[:, None, :]))

    @staticmethod
    def _folded(parts: Parts, m: int, k: int, part: int) -> Signed:
        """The part at frequency k of any residue, by symmetry."""
        k %= m
        one = parts[min(k, m - k) if k else 0, part]
        return Signed(one.slot, -one.sign if part == SINE and 2 * k > m else one.sign)

    def _cosine2(self, m: int, parts: Parts) -> list[Signed]:
        results = []
        for k in range(m):
            one = self._folded(parts, m, k, SINE if k % 2 else COSINE)
            quarter = m * k % 4  # the angle that is left beside the Fourier transform's, in quarter turns
            results.append(Signed(one.slot, one.sign * (1 if quarter in (0, 3) else -1)))
        return results

    def _cosine4(self, m: int, parts: Parts) -> list[Signed]:
        pairs = np.array([(parts[k, COSINE].slot, parts[k, SINE].slot) for k in range(1, m // 2 + 1)])
        self._steps.append(Step(MERGE, II, pairs, pairs.copy()))
        eighth = m % 8
        cosine = 1 if eighth in (1, 7) else -1
        sine = 1 if eighth in (1, 3) else -1
        results = []
        for x in range(m):
            v, sign = _odd_sample(2 * x + 1, m, 8)
            if v % m == 0:
                one = parts[0, COSINE]
                results.append(Signed(one.slot, sign * cosine * one.sign))
            else:
                c = self._folded(parts, m, v, COSINE)
                s = self._folded(parts, m, v, SINE)
                results.append(_combined(c, sign * cosine, s, -sign * sine))
        return results

    def _scale(self, weights: dict[int, float]) -> None:
        """Give each slot its factor: signs change the order of a merge, the rest lands in the last dense tables."""
        for step in reversed(self._steps):
            if step.kind == MERGE:
                for rows_in, (u, v) in zip(step.rows_in, step.rows_out):
                    if weights[u] != weights[v]:
                        rows_in[:] = rows_in[::-1].copy()
                    weights[v] = weights[u]
            elif step.kind == DENSE:
                factors = np.array([[weights.pop(slot, 1.0) for slot in rows] for rows in step.rows_out.tolist()])
                tables = step.tables * factors[:, :, None]
                # The kernel reads one orientation forward and the other one backward.
                tables = np.stack([tables.transpose(0, 2, 1), tables], 1)
                step.tables = tables[:1] if (tables == tables[:1]).all() else tables

    def steps(self, final: bool) -> list[Step]:
        """The steps; if `final`, those that touch a slot last write outside."""
        if not final:
            return self._steps
        kept: list[Step] = []
        touched: set[int] = set()
        for step in reversed(self._steps):
            last = np.array([not touched & set(rows) for rows in step.rows_out.tolist()])
            if step.kind == SPLIT:
                last[:] = False
            for chosen in (last, ~last):
                if chosen.any():
                    tables = step.tables if step.tables is None or len(step.tables) == 1 else step.tables[chosen]
                    rows = step.rows_in[chosen], step.rows_out[chosen]
                    kept.append(Step(step.kind, step.type, *rows, tables, step.first, bool(chosen is last)))
            touched |= set(step.rows_in.ravel().tolist()) | set(step.rows_out.ravel().tolist())
        written = {slot for step in kept if step.final for slot in step.rows_out.ravel().tolist()}
        left = np.array([[slot] for slot in self.order if slot not in written])
        if len(left):
            kept.insert(0, Step(COPY, II, left, left.copy(), final=True))
        return kept[::-1]


def _combined(x: Signed, of_x: int, y: Signed, of_y: int) -> Signed:
    """Where a merge of x and y leaves of_x * x + of_y * y: the sum lies in x's slot, the difference in y's."""
    sign_x = of_x * x.sign
    sign_y = of_y * y.sign
    return Signed(x.slot if sign_x == sign_y else y.slot, sign_x)
