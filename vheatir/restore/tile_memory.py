"""How much memory is free, how large tiles may be in it, and what running out of it looks like."""

import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import torch

import vheatir.restore.tiling as tiling

SMALLEST_TILE = 32  # pixels; what does not fit then never will
_SHARE = 0.5  # of the free memory that the network may fill
_MAPS_PER_PASS = 36  # feature maps alive at the peak of a forward pass, measured; beside the layers' decay maps
_MAPS_PER_UNET_PASS = 14  # the same for a VHeatUNet, in feature maps of full resolution
_COPIES_OF_CLIP = 8  # of each of its planes, for a VHeatVideoNet
_MAPS_OF_CLIP = 4  # of each frame, in maps of full resolution
_NO_LIMIT = 1 << 60  # what control groups without a limit state
_GROUPS = "/sys/fs/cgroup"


def free_memory(device: torch.device) -> int | None:
    """Bytes that can still be had on a device; None where the system does not tell."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    known = [free for free in (_available(), *_group_limits(), _address_space()) if free is not None]
    return max(min(known), 0) if known and device.type == "cpu" else None


def _available() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:  # not Linux
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _group_limits() -> list[int]:
    """What the limits of this process's control groups (containers, batch systems) leave, version 2 and 1.

    A limit may be that of any group above the process's own: batch systems limit a job and put its tasks below.
    Cached files count as used there, until a container that has read much seems full; they make way, and count as free.
    """
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    left = []
    for line in lines:
        _, controllers, below = line.split(":", 2)
        if controllers == "":
            root = _GROUPS
            limit = "memory.max"
            used = "memory.current"
            cached = ("inactive_file", "active_file")
        elif "memory" in controllers.split(","):
            root = f"{_GROUPS}/memory"
            limit = "memory.limit_in_bytes"
            used = "memory.usage_in_bytes"
            cached = ("total_inactive_file", "total_active_file")
        else:
            continue
        group = PurePosixPath(below.lstrip("/"))
        for folder in (Path(root) / above for above in (group, *group.parents)):
            try:
                numbers = [(folder / name).read_text().strip() for name in (limit, used)]
            except OSError:
                continue
            if all(number.isdigit() for number in numbers) and int(numbers[0]) < _NO_LIMIT:
                left.append(int(numbers[0]) - int(numbers[1]) + _of_statistics(folder, cached))
    return left


def _of_statistics(group: Path, names: tuple[str, ...]) -> int:
    """The sum of some figures of a control group's statistics, in bytes; 0 where there are none."""
    try:
        lines = (group / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    pairs = (line.partition(" ") for line in lines)
    return sum(int(value) for name, _, value in pairs if name in names)


def _address_space() -> int | None:
    try:
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except (ImportError, OSError):
        return None
    return None if limit == resource.RLIM_INFINITY else limit - used


def bytes_per_pixel(config: Mapping[str, Any]) -> float:
    """What a forward pass of a network in float32 needs for each pixel of its input, as measured on a CPU."""
    if "encoder" in config:
        clip = config.get("frames", 0) * (
            config["in_chans"] * _COPIES_OF_CLIP + config.get("mix_dim", 0) * _MAPS_OF_CLIP
        )
        return 4.0 * (config["dim"] * _MAPS_PER_UNET_PASS + clip)
    layers = sum(config["depths"])
    return 4.0 * config["dim"] / config["downscale"] ** 2 * (layers + _MAPS_PER_PASS)


def tile_for(config: Mapping[str, Any], height: int, width: int, free: int | None) -> int:
    """The tile for an image of this size in this much memory; 0 means the whole image at once.

    Args:
        config: constructor arguments of the network.
        height: of the image.
        width: of the image.
        free: bytes of memory; None where that is not known.
    """
    usual = tiling.default_tile(height, width)
    if free is None:
        return usual
    pixels = _SHARE * free / bytes_per_pixel(config)
    if usual == 0 and height * width <= pixels:
        return 0
    return tile_below(min(pixels**0.5, tiling.DEFAULT_TILE))


def tile_below(side: float) -> int:
    """The largest tile of at most `side` pixels on the tiles' grid, but not below the smallest."""
    step = 2 * tiling.ALIGNMENT
    return max(SMALLEST_TILE, int(side) // step * step)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on whatever device."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)
