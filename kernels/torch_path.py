"""Separable DCT in plain PyTorch: dense, or split into even and odd halves and run in cache-sized chunks.

The split: with e = first half + reversed second half and o = first half - reversed second half, the even frequencies
are the half-length DCT-II of e and the odd ones a half-length matrix times o, so each split halves the products
(Rao and Yip, Discrete Cosine Transform, 1990). Frequencies stay in split order, which `order` describes; the
decay is permuted instead of the spectrum. Row passes and column passes run on pieces that stay in the cache.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vheatir.kernels.dct import dct_matrix, may_cache

_CHUNK = 1 << 19  # elements of one piece, for each thread: 2 MiB of float32 (fastest of 2^17 ... 2^24)
_NARROW = 16  # with fewer channels than a cache line holds, one large product on transposed maps is faster (to 30x)


class AxisMatrices(NamedTuple):
    """One axis: part lengths, forward and inverse matrices per part, and frequency index of each slot."""

    splits: tuple[int, ...]  # lengths that are folded, outermost first
    forward: tuple[Tensor, ...]
    inverse: tuple[Tensor, ...]
    order: Tensor
    rank: Tensor  # slot of each frequency


def _build_axis_matrices(n: int, halvings: int, dtype: torch.dtype, device: torch.device) -> AxisMatrices:
    with torch.inference_mode(False), torch.no_grad():
        table = dct_matrix(n)
        remaining = torch.arange(n, device="cpu")
        length = n
        parts = []
        orders = []
        splits = []
        for _ in range(halvings):
            if length < 2 or (splits and splits[-1] % 2):
                break
            splits.append(length)
            parts.insert(0, table[remaining[1::2], : length // 2])
            orders.insert(0, remaining[1::2])
            remaining, length = remaining[0::2], length - length // 2
        parts.insert(0, table[remaining, :length])
        orders.insert(0, remaining)
        order = torch.cat(orders)
        forward = tuple(part.to(device, dtype).contiguous() for part in parts)
        inverse = tuple(part.T.to(device, dtype).contiguous() for part in parts)
        return AxisMatrices(tuple(splits), forward, inverse, order.to(device), torch.argsort(order).to(device))


_cached_axis_matrices = lru_cache(maxsize=16)(_build_axis_matrices)


def axis_matrices(n: int, halvings: int, dtype: torch.dtype, device: torch.device) -> AxisMatrices:
    """Matrices and order of an n-point DCT; cached where `may_cache`.

    Args:
        n: points.
        halvings: even/odd splits.
        dtype: of the matrices.
        device: of the matrices.
    """
    build = _cached_axis_matrices if may_cache() else _build_axis_matrices
    return build(n, halvings, dtype, device)


def _multiply(matrix: Tensor, source: Tensor, out: Tensor | None = None) -> Tensor:
    """matrix @ source for each of b; source (b, n, m)."""
    if out is None:
        out = source.new_empty(source.shape[0], matrix.shape[0], source.shape[2])
    batch, length, lines = source.shape
    if batch == 1:
        torch.mm(matrix, source[0], out=out[0])
    elif lines < _NARROW:
        rows = source.transpose(1, 2).reshape(batch * lines, length) @ matrix.T
        out.copy_(rows.view(batch, lines, matrix.shape[0]).transpose(1, 2))
    elif out.is_contiguous():
        torch.bmm(matrix.expand(batch, -1, -1), source, out=out)
    else:  # into a result with gaps, bmm would multiply one by one, on one thread
        out.copy_(torch.bmm(matrix.expand(batch, -1, -1), source))
    return out


def _fold(splits: tuple[int, ...], x: Tensor) -> list[Tensor]:
    """(b, n, m) to sums and differences, one tensor for each part, in part order; x is kept."""
    differences = []
    for length in splits:
        half = length // 2
        middle = length - length // 2
        mirrored = x[:, middle:].flip(1)
        differences.insert(0, x[:, :half] - mirrored)
        if middle == half:
            x = mirrored.add_(x[:, :half])
        else:
            total = x.new_empty(x.shape[0], middle, x.shape[2])
            torch.add(x[:, :half], mirrored, out=total[:, :half])
            total[:, half] = x[:, half]
            x = total
    return [x, *differences]


def _unfold(splits: tuple[int, ...], parts: list[Tensor], out: Tensor) -> None:
    """The inverse of `_fold` up to the factor that the matrices hold; the parts are overwritten."""
    even = parts[0]
    for odd, length in zip(parts[1:], reversed(splits), strict=True):
        half = length // 2
        middle = length - length // 2
        target = out if length == out.shape[1] else out.new_empty(out.shape[0], length, out.shape[2])
        torch.add(even[:, :half], odd, out=target[:, :half])
        if middle > half:
            target[:, half] = even[:, half]
        target[:, middle:] = torch.sub(even[:, :half], odd, out=odd).flip(1)
        even = target


def _slots(matrices: tuple[Tensor, ...], x: Tensor) -> tuple[Tensor, ...]:
    """The rows of x (b, n, m) that belong to each part."""
    return x.split([matrix.shape[0] for matrix in matrices], 1)


def _forward(axis: AxisMatrices, x: Tensor, out: Tensor) -> None:
    for matrix, part, slots in zip(axis.forward, _fold(axis.splits, x), _slots(axis.forward, out), strict=True):
        _multiply(matrix, part, slots)


def _inverse(axis: AxisMatrices, spectrum: Tensor, out: Tensor) -> None:
    """`out` may be `spectrum` itself."""
    slots = _slots(axis.inverse, spectrum)
    parts = [_multiply(matrix, slot) for matrix, slot in zip(axis.inverse, slots, strict=True)]
    if axis.splits:
        _unfold(axis.splits, parts, out)
    else:
        out.copy_(parts[0])


def _lines(maps: Tensor) -> Tensor:
    """(b, H, W, C) as (b, H, W*C), always a view: results are written through it."""
    return maps.view(*maps.shape[:2], maps.shape[2] * maps.shape[3])


def without_subnormals(decay: Tensor) -> Tensor:
    """A copy with 0 for every number below the smallest normal one of its type."""
    about = torch.finfo(decay.dtype)
    return F.hardshrink(decay, about.tiny * (1 - about.eps))  # up to there inclusive; NaN stays


class Transform:
    """The two-dimensional transform of (B, H, W, C) maps along one path.

    Args:
        height: H.
        width: W.
        halvings: even/odd splits along H and W.
        dtype: of the arithmetic.
        device: of the maps.
    """

    def __init__(self, height: int, width: int, halvings: tuple[int, int], dtype: torch.dtype, device: torch.device):
        self.rows = axis_matrices(height, halvings[0], dtype, device)  # the transform along H
        self.columns = axis_matrices(width, halvings[1], dtype, device)
        self.dtype = dtype
        self.natural = not (self.rows.splits or self.columns.splits)
        # Launches, not cache misses, set the pace of small maps and of other devices.
        self.chunked = not self.natural and device.type == "cpu"

    def to_path_order(self, decay: Tensor) -> Tensor:
        """(H, W, C) in natural order of frequencies to the path's order."""
        if self.natural:
            return decay
        return decay.index_select(-3, self.rows.order).index_select(-2, self.columns.order)

    def fold(self, decay: Tensor) -> Tensor:
        """A decay in natural order as `conduct` reads it: in the path's order and type, subnormal numbers as zeros.

        Always a copy. The native kernels do the same to the numbers that they read.
        """
        return without_subnormals(self.to_path_order(decay.to(self.dtype)))

    def to_natural_order(self, spectrum: Tensor) -> Tensor:
        """(..., H, W, C) in the path's order to natural order."""
        if self.natural:
            return spectrum
        return spectrum.index_select(-3, self.rows.rank).index_select(-2, self.columns.rank)

    def _pieces(self, count: int, size: int, least: int = 1):
        """Ranges over `count` slices of `size` elements each, `least` or more slices to a range."""
        step = max(least, _CHUNK * torch.get_num_threads() // size) if self.chunked else max(count, 1)
        return ((start, min(start + step, count)) for start in range(0, count, step))

    def _column_pieces(self, image: Tensor):
        """Ranges over the columns of (b, H, W, C); a column is contiguous in C, so at least a cache line is taken."""
        return self._pieces(image.shape[2], image.shape[1] * image.shape[3], -(-64 // image.shape[3]))

    def _along_width(self, step, axis: AxisMatrices, source: Tensor, out: Tensor) -> None:
        """Apply `step` to every row; source and out are (B*H, W, C)."""
        for start, stop in self._pieces(source.shape[0], source.shape[1] * source.shape[2]):
            step(axis, source[start:stop], out[start:stop])

    def forward(self, x: Tensor) -> Tensor:
        """Spectrum in the path's order."""
        batch, height, width, channels = x.shape
        if self.natural:
            rows = _multiply(self.columns.forward[0], x.flatten(0, 1)).view(batch, height, width * channels)
            return _multiply(self.rows.forward[0], rows).view(x.shape)
        spectrum = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        self._along_width(_forward, self.columns, x.flatten(0, 1), spectrum.flatten(0, 1))
        for image in spectrum.split(1) if self.chunked else (spectrum,):
            for start, stop in self._column_pieces(image):
                piece = _lines(image[:, :, start:stop])
                result = torch.empty(piece.shape, dtype=x.dtype, device=x.device)
                _forward(self.rows, piece, result)
                piece.copy_(result)
        return spectrum

    def inverse(self, spectrum: Tensor) -> Tensor:
        """Maps from a spectrum in the path's order, which is overwritten."""
        batch, height, width, channels = spectrum.shape
        if self.natural:
            columns = _multiply(self.rows.inverse[0], spectrum.view(batch, height, width * channels))
            maps = _multiply(self.columns.inverse[0], columns.view(batch * height, width, channels))
            return maps.view(spectrum.shape)
        for image in spectrum.split(1) if self.chunked else (spectrum,):
            for start, stop in self._column_pieces(image):
                piece = _lines(image[:, :, start:stop])
                _inverse(self.rows, piece, piece)
        flat = spectrum.flatten(0, 1)
        self._along_width(_inverse, self.columns, flat, flat)
        return spectrum

    def conduct_with_spectrum(self, x: Tensor, decay: Tensor) -> tuple[Tensor, Tensor]:
        """Operator output, and the spectrum of x in the path's order; the decay as `fold` makes it."""
        spectrum = self.forward(x)
        return self.inverse(spectrum * decay), spectrum

    def conduct(self, x: Tensor, decay: Tensor) -> Tensor:
        """Operator output; the decay as `fold` makes it."""
        if not self.chunked:
            return self.inverse(self.forward(x).mul_(decay))
        y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        self._along_width(_forward, self.columns, x.flatten(0, 1), y.flatten(0, 1))
        for image in y.split(1):
            for start, stop in self._column_pieces(image):
                piece = image[:, :, start:stop]
                result = torch.empty(piece.shape, dtype=x.dtype, device=x.device)
                _forward(self.rows, _lines(piece), _lines(result))
                result.mul_(decay[:, start:stop])
                _inverse(self.rows, _lines(result), _lines(piece))
        self._along_width(_inverse, self.columns, y.flatten(0, 1), y.flatten(0, 1))
        return y
