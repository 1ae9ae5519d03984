"""Tables and launches of the CUDA kernels: the same ones on a GPU and where tests run the kernels on a CPU."""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from vheatir.kernels.dct import dct_matrix

THREADS = 256
LARGEST_PLANE = 64  # longest side of a plane that one block keeps in shared memory
LONGEST_LINE = 4096  # the tables of a longer one would take more than 64 MiB in float32
_WARPS = THREADS // 32


class Machine(NamedTuple):
    """What a launch depends on.

    Attributes:
        shared_memory: bytes that a block may ask for.
        multiprocessors: how many blocks it takes to give each of them something to do.
    """

    shared_memory: int
    multiprocessors: int


class Launch(NamedTuple):
    """A kernel's name, how many blocks of `THREADS` it gets, and the bytes that each of them shares."""

    kernel: str
    blocks: int
    shared_memory: int
    threads: int = THREADS


def _parts(length: int, inverse: bool) -> list[Tensor]:
    """The matrices of a transform split once into sums and differences of mirrored points, in float64.

    Forward: even frequencies from sums, odd ones from differences; the middle point of an odd length meets itself in
    the sum, so its column is halved. Inverse: the even and the odd share of the first half of the points.
    """
    table = dct_matrix(length)
    half = (length + 1) // 2
    parts = [table[0::2, :half].clone(), table[1::2, : length // 2]]
    if inverse:
        return [part.T for part in parts]
    if length % 2:
        parts[0][:, -1] *= 0.5
    return parts


def _padded(parts: list[Tensor], size: int) -> Tensor:
    """(2, size, size), the parts with zeros around them."""
    whole = torch.zeros(2, size, size, dtype=torch.float64)
    for target, part in zip(whole, parts):
        target[: part.shape[0], : part.shape[1]] = part
    return whole


def _on(device: torch.device, table: Tensor) -> Tensor:
    table = table.to(device)
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()  # later calls may use it on other streams
    return table


@lru_cache(maxsize=64)
def fragments(length: int, size: int, inverse: bool, device: torch.device) -> Tensor:
    """A table in float16, padded to `size`, as lanes of a warp hold it for products of 16 x 16 numbers.

    Shape (part, 16 outputs, 16 inputs, lane, 8): lane l, with row = l // 4 and column = 2 (l % 4), has the pairs at
    [row, column], [row + 8, column], [row, column + 8], [row + 8, column + 8].

    Args:
        length: of the transform.
        size: of each part, a multiple of 16.
        inverse: the table of the inverse transform.
        device: where the table goes.
    """
    with torch.inference_mode(False), torch.no_grad():
        blocks = _padded(_parts(length, inverse), size).view(2, size // 16, 2, 8, size // 16, 2, 4, 2)
        # part, out, half of the rows, row, step, half of the columns, pair, which of it
        lanes = blocks.permute(0, 1, 4, 3, 6, 5, 2, 7).reshape(2, size // 16, size // 16, 32, 8)
        return _on(device, lanes.to(torch.float16).contiguous())


@lru_cache(maxsize=64)
def matrices(length: int, inverse: bool, device: torch.device) -> Tensor:
    """A table in float32, (part, inputs, outputs), padded to a multiple of 4.

    Args:
        length: of the transform.
        inverse: the table of the inverse transform.
        device: where the table goes.
    """
    with torch.inference_mode(False), torch.no_grad():
        whole = _padded(_parts(length, inverse), padded_half(length, 4))
        return _on(device, whole.transpose(1, 2).to(torch.float32).contiguous())


def padded_half(length: int, multiple: int) -> int:
    """Half the length, rounded up to a multiple."""
    return -(-((length + 1) // 2) // multiple) * multiple


# The structures beside the work space are those of csrc/cuda_plane.h and cuda_lines.h.
def _plane_bytes(height: int, width: int, side: int, tile: int) -> int:
    pitch = (width * (tile // 8) | 1) * 16
    state = 4 * (3 * _WARPS * tile + 3 * tile + side * tile)
    return height * pitch + state


def plane_launch(batch: int, height: int, width: int, channels: int, machine: Machine) -> Launch:
    """One block for each image and 16 channels, or 8 where 16 do not fit or would leave multiprocessors idle.

    Args:
        batch: images.
        height: of the maps.
        width: of the maps.
        channels: of the maps.
        machine: what the device offers.
    """
    side = 32 if max(height, width) <= 32 else 64
    fits = _plane_bytes(height, width, side, 16) <= machine.shared_memory
    tile = 16 if fits and channels > 8 and batch * -(-channels // 16) >= machine.multiprocessors else 8
    blocks = batch * -(-channels // tile)
    threads = 128 if max(height, width) <= 16 else THREADS
    return Launch(f"vheatir_plane_{side}_{tile}", blocks, _plane_bytes(height, width, side, tile), threads)


def _line_bytes(length: int, lines: int, exact: bool) -> int:
    state = 4 * 8 * lines + 4 * 3 * THREADS + 4 * 4 * lines
    if exact:
        return 2 * padded_half(length, 4) * lines * 4 + state
    return 2 * padded_half(length, 16) * (lines + 8) * 2 + state


def lines_at_once(length: int, count: int, exact: bool, machine: Machine) -> int | None:
    """How many lines a block transforms; None where not even the fewest fit into its memory.

    Args:
        length: points of a line.
        count: lines in all.
        exact: in float32, not on tensor cores.
        machine: what the device offers.
    """
    most, fewest = (32, 4) if exact else (64, 16)
    if -(-count // most) >= machine.multiprocessors and _line_bytes(length, most, exact) <= machine.shared_memory:
        return most
    return fewest if _line_bytes(length, fewest, exact) <= machine.shared_memory else None


def lines_launch(kind: str, length: int, count: int, machine: Machine) -> Launch:
    """Blocks of a kernel that transforms lines.

    Args:
        kind: "read", "halves", "write" or "floats".
        length: points of a line.
        count: lines in all.
        machine: what the device offers.

    Raises:
        ValueError: not even the fewest lines fit into a block's memory, see `lines_at_once`.
    """
    exact = kind == "floats"
    lines = lines_at_once(length, count, exact, machine)
    if lines is None:
        raise ValueError(f"lines of {length} points do not fit into {machine.shared_memory} bytes of shared memory")
    return Launch(f"vheatir_lines_{kind}_{lines}", -(-count // lines), _line_bytes(length, lines, exact))
