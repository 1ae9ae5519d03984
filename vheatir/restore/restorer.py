"""`Restorer`: restores images in memory or row by row with one set of weights."""

import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch

import vheatir.restore.estimate_level as estimate_level
import vheatir.restore.precision as precisions
import vheatir.restore.tile_memory as tile_memory
import vheatir.restore.tiling as tiling
from vheatir import weights as store
from vheatir.archs.base import middle_planes
from vheatir.backbone.layers.freezing import freeze
from vheatir.errors import UserError
from vheatir.restore.batches import Batches
from vheatir.restore.checks import check_array, check_choices, check_values
from vheatir.restore.defaults import DEFAULT_TASK, MAX_LEVEL
from vheatir.restore.pixels import SMALL, filled, in_part, with_margin
from vheatir.restore.self_ensemble import self_ensemble
from vheatir.utils.devices import device_named

_PROCESSES = [secrets.token_hex(8)]  # this one last, after those that it is a fork of; numbers of processes come again
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: _PROCESSES.append(secrets.token_hex(8)))
_UNCOMPRESSED = 95.0  # the JPEG quality assumed where no trace of compression is found

Rows = tuple[np.ndarray, np.ndarray | None]  # colors (rows, width, 1 or 3) and alpha (rows, width) or None, float32


@dataclass(frozen=True)
class RestorerSettings:
    """The arguments of a `Restorer`, small and plain, so that they can be sent to other machines."""

    task: str = DEFAULT_TASK
    weights: str | None = None
    device: str | None = None
    tile: int | None = None
    overlap: int | None = None
    strength: float = 1.0
    luma: float = 1.0
    chroma: float = 1.0
    ensemble: bool = False
    precision: str = "float32"

    def restorer(self) -> "Restorer":
        """A new one."""
        return Restorer(
            self.task,
            self.weights,
            self.device,
            self.tile,
            self.overlap,
            strength=self.strength,
            luma=self.luma,
            chroma=self.chroma,
            ensemble=self.ensemble,
            precision=self.precision,
        )


class _Network(NamedTuple):
    """A network, its constructor's arguments, and whether its products are in bfloat16."""

    module: torch.nn.Module
    config: dict[str, Any]
    bf16: bool


class Restorer:
    """Restores images with one set of weights, or by default with the task's own: one for color and one for gray.

    May be used from several threads; the network computes for one at a time. It is frozen (`vheatir.backbone.freeze`):
    after writing to values of its weights' `.data`, call `network.eval()`. It does not work in a fork of the process
    that made it, where PyTorch's threads are missing: make it in the fork, or start processes by "spawn". Pickles and
    deep copies hold the weights; small and plain is `RestorerSettings`.

    Args:
        task: "photo" (noise and compression of photographs), "denoise" (Gaussian noise) or "jpeg".
        weights: shipped name or path of a safetensors file, used for all images. Those trained on pairs, or on a
            degradation of one's own, serve any task.
        device: a torch device; a GPU when there is one by default.
        tile: side of the overlapping tiles in pixels, 0 for the whole image at once; chosen by the image's size and the
            free memory by default, and halved where memory runs out.
        overlap: pixels that neighboring tiles share; 32, or a quarter of smaller tiles, by default.
        strength: the result is input + strength * (restored - input), from 0 to 1; 0.7 leaves 30 % of the noise's
            amplitude, and of the detail that restoring would cost.
        luma: share of the change of brightness (BT.601 luma) that is kept, from 0 to 1, multiplied with the strength.
        chroma: the same for the change of color; 0 leaves colors as they came. Gray images have none.
        ensemble: the mean over the eight flips and rotations, for eight times the time.
        precision: "float32"; "bf16" for products of bfloat16 operands with sums in float32, which is slow on processors
            without instructions for it; "auto" for bf16 where it is faster and the shipped weights are known to change
            by less than 0.01 dB. `bf16` says what came of it.

    Raises:
        UserError: an unknown task or precision, unusable weights or device, or a tile, overlap or strength out of
            range.
    """

    def __init__(
        self,
        task: str = DEFAULT_TASK,
        weights: str | Path | None = None,
        device: str | torch.device | None = None,
        tile: int | None = None,
        overlap: int | None = None,
        *,
        strength: float = 1.0,
        luma: float = 1.0,
        chroma: float = 1.0,
        ensemble: bool = False,
        precision: str = "float32",
    ):
        check_choices(task, {"strength": strength, "luma": luma, "chroma": chroma})
        self.tile = tile
        self.strength = float(strength)
        self.luma = float(luma)
        self.chroma = float(chroma)
        self.ensemble = ensemble
        self._overlap_given = overlap is not None
        self.overlap = default_overlap(tile) if overlap is None else overlap
        try:
            tiling.check_tile(tiling.DEFAULT_TILE if tile is None else tile, self.overlap)
        except ValueError as error:
            raise UserError(str(error)) from error
        self.task = task
        self.device = device_named(device)
        default = store.DEFAULTS[task]
        self.precision = precision
        self._color, self.metadata = self._loaded(default["color"] if weights is None else weights)
        self.network = self._color.module
        self.bf16 = self._color.bf16
        own_gray = weights is None and default["gray"] != default["color"]
        self._gray: _Network | None = None
        self._gray_weights = default["gray"] if own_gray else None
        self._clips: Restorer | None = None
        self._clip_weights = default.get("video") if weights is None else None
        if not store.serve(self.metadata, task):
            raise UserError(
                f"the weights {weights} are for the task {self.metadata['task']!r}, not {task!r}; "
                "give other weights or change the task"
            )
        self.takes_level = bool(self._color.config.get("level_map"))
        self._largest: int | None = None  # side of the tiles for which memory has been found to suffice
        self._process = os.getpid()
        self._made_in = _PROCESSES[-1]
        self._batches = Batches(self._in_memory)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_batches"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._made_in not in _PROCESSES:  # else made here, or in one that this is a fork of
            self._process = os.getpid()
            self._made_in = _PROCESSES[-1]
        self._batches = Batches(self._in_memory)
        for one in (self._color, self._gray):  # copies of networks are not frozen
            if one is not None:
                freeze(one.module)

    def _loaded(self, weights: str | Path) -> "tuple[_Network, dict[str, str]]":
        """A frozen network and the metadata of its file."""
        bf16 = precisions.choose(self.precision, self.device, store.find(weights)).bf16
        network, metadata = store.load(weights, self.device)
        config: Any = network.config  # of all networks of `vheatir.archs.networks`
        return _Network(freeze(network), config, bf16), metadata

    def for_clips(self) -> "Restorer":
        """What restores clips: this, or where no weights were given, one like it with those of the task for clips."""
        if self._clip_weights is None:
            return self
        if self._clips is None:  # most users never restore a clip
            self._clips = Restorer(
                self.task,
                self._clip_weights,
                self.device,
                self.tile,
                self.overlap if self._overlap_given else None,
                strength=self.strength,
                luma=self.luma,
                chroma=self.chroma,
                ensemble=self.ensemble,
                precision=self.precision,
            )
        return self._clips

    def several_at_once(self, count: int) -> AbstractContextManager[None]:
        """For the length of a block, up to `count` small images at a time when several threads restore.

        Each gets its share of PyTorch's threads, which is faster than all threads for one after the other; images of
        one size that wait go through the network together. Results stay the same up to rounding. On a GPU nothing
        changes.
        """
        return self._batches.lanes(count if self.device.type == "cpu" else 1)

    def restore(
        self,
        image: np.ndarray,
        *,
        level: float | None = None,
        alpha: np.ndarray | None = None,
        on_tile: Callable[[float], None] | None = None,
    ) -> np.ndarray:
        """Restore an image in memory.

        A gray image goes to a color network as three equal channels and comes back as their mean. Computed in float32,
        up to the products of the network where `bf16` is set.

        Args:
            image: float32, float64 or float16, HWC RGB or HW gray, in [0, 1]; noise may leave that range, it is not
                clipped.
            level: sigma (0-255) or JPEG quality, for weights that take one; estimated by default.
            alpha: float HW; where it is 0 the image stays, and its colors do not run into what can be seen.
            on_tile: called with the share done, from 0 to 1.

        Returns:
            The restored image, of the same shape and dtype, in [0, 1].

        Raises:
            TypeError: another kind of array.
            ValueError: another shape, NaN, values on another scale, or a level for blind weights.
        """
        check_array(image)
        height, width = image.shape[:2]
        if alpha is not None and alpha.shape != (height, width):
            raise ValueError(f"expected alpha of shape {(height, width)} like the image, got {alpha.shape}")
        pixels = image.reshape(height, width, -1)

        def read(start: int, stop: int) -> Rows:
            return pixels[start:stop].astype(np.float32), None if alpha is None else alpha[start:stop]

        blocks = self.restore_rows(read, pixels.shape, level=level, on_tile=on_tile)
        result = np.empty(pixels.shape, image.dtype)
        top = 0
        for block in blocks:
            result[top : top + len(block)] = np.clip(block, 0, 1)
            top += len(block)
        return result.reshape(image.shape)

    @property
    def frames(self) -> int:
        """Frames of a clip from which one is restored; 1 where the network takes single images."""
        return int(self._color.config.get("frames", 1))

    def restore_clip(
        self,
        frames: Sequence[np.ndarray],
        *,
        level: float | None = None,
        on_tile: Callable[[float], None] | None = None,
    ) -> np.ndarray:
        """Restore the middle frame of a clip.

        Args:
            frames: as many as `frames` says, float32 (H, W, 3), RGB in [0, 1]; the limited range of a clip goes beyond.
            level: see `restore`; for weights that take one, and single frames, estimated by default.
            on_tile: called with the share done, from 0 to 1.

        Returns:
            The restored frame, float32 (H, W, 3), not clipped.
        """
        if len(frames) != self.frames:
            raise ValueError(f"expected {self.frames} frames, got {len(frames)}")
        pixels = np.concatenate(frames, axis=2)
        blocks = self.restore_rows(
            lambda start, stop: (pixels[start:stop], None), pixels.shape, level=level, on_tile=on_tile
        )
        return np.concatenate(list(blocks))

    def restore_rows(
        self,
        read: Callable[[int, int], Rows],
        shape: tuple[int, int, int],
        *,
        level: float | None = None,
        on_tile: Callable[[float], None] | None = None,
    ) -> Iterator[np.ndarray]:
        """Restored rows from the top in blocks (rows, width, 1 or 3), float32 and not clipped.

        Args:
            read: rows start:stop of the image, see `Rows`; asked for in order, each row of tiles once.
            shape: height, width and the number of colors.
            level: see `restore`.
            on_tile: called with the share done, from 0 to 1.
        """
        height, width, colors = shape
        self._check_process()
        if colors == 3 and self.metadata["color"] == "gray":
            raise ValueError("these weights are for gray images, the image has three channels; use color weights")
        level = self._relative_level(level, read, shape)
        free = tile_memory.free_memory(self.device) if self.tile is None else None
        tile = tile_memory.tile_for(self._color.config, height, width, free) if self.tile is None else self.tile
        overlap = self.overlap
        if self.tile is None and tile:  # less memory than expected makes tiles that the overlap may not fit
            overlap = min(overlap, tile // 2) if self._overlap_given else default_overlap(tile)

        def planes(start: int, stop: int) -> torch.Tensor:
            found, alpha = read(start, stop)
            check_values(found)
            found = found if alpha is None else np.concatenate([found, alpha[..., None].astype(np.float32)], axis=2)
            return torch.from_numpy(np.ascontiguousarray(found)).permute(2, 0, 1)[None]

        def restore(patch: torch.Tensor) -> torch.Tensor:
            with torch.inference_mode():
                return self._patch(patch, colors, level, whole=patch.shape[-2:] == (height, width))

        for rows in tiling.tiled_rows(restore, planes, (height, width), tile, overlap, on_tile=on_tile):
            if not torch.isfinite(rows).all():
                raise ValueError("the network made NaN or infinite values; these weights cannot be used for this image")
            yield rows[0].permute(1, 2, 0).numpy()

    def measure(
        self, read: Callable[[int, int], Rows], shape: tuple[int, int, int], task: str | None = None
    ) -> float | None:
        """The estimated noise level (0-255) or JPEG quality, None where there is no trace of compression.

        Args:
            read: see `restore_rows`.
            shape: height, width and the number of colors.
            task: "jpeg" estimates the quality; "denoise" the level of white noise; "photo" that of a camera's noise, at
                full and at half size; the restorer's own by default.
        """
        patches = []
        for rows, columns in estimate_level.sample_patches(*shape[:2]):
            patch = read(rows.start, rows.stop)[0][:, columns]
            patches.append(patch if shape[2] == 3 else patch[..., 0])
        task = task or self.task
        if task == "photo":  # cameras smooth their noise, and JPEG takes its finest part: half the size shows it
            wide = [patch for patch in patches if min(patch.shape[:2]) > 1]
            halves = [cv2.resize(patch, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA) for patch in wide]
            return max(estimate_level.estimate_noise(patches), estimate_level.estimate_noise(halves))
        if task == "denoise":
            return estimate_level.estimate_noise(patches)
        return estimate_level.estimate_quality([np.rint(patch.clip(0, 1) * 255).astype(np.uint8) for patch in patches])

    def _check_process(self) -> None:
        if os.getpid() != self._process and torch.get_num_threads() > 1:
            raise UserError(
                f"this Restorer was made in process {self._process} and is used in a fork of it, where PyTorch's "
                'threads are missing and the work would never end; start processes by "spawn" and make the Restorer '
                "there, or call torch.set_num_threads(1) in the fork"
            )

    def _relative_level(
        self, level: float | None, read: Callable[[int, int], Rows], shape: tuple[int, int, int]
    ) -> float | None:
        """The level as the network takes it, from 0 to 1; None for blind weights."""
        if not self.takes_level:
            if level is not None:
                raise ValueError("these weights are blind and take no level; leave it out or use other weights")
            return None
        if self.task not in MAX_LEVEL:
            raise ValueError(f"weights for the task {self.task!r} take no level, these do; they cannot be used")
        if level is None:
            level = self.measure(read, shape)
            level = _UNCOMPRESSED if level is None else level
        if not 0 <= level <= MAX_LEVEL[self.task]:
            raise ValueError(f"expected a level from 0 to {MAX_LEVEL[self.task]:g}, got {level}")
        return level / MAX_LEVEL[self.task]

    def _patch(self, patch: torch.Tensor, colors: int, level: float | None, *, whole: bool) -> torch.Tensor:
        """One tile (1, colors and perhaps alpha, H, W), restored: (1, colors, H, W)."""
        image = patch[:, :colors]
        hidden = patch[:, colors:] <= 0 if patch.shape[1] > colors else None
        seen = image if hidden is None else filled(image, hidden)
        output = self._batches.call(seen.contiguous(), level, whole=whole)
        seen = middle_planes(seen, output.shape[1])
        output = in_part(seen, output, self.strength * self.luma, self.strength * self.chroma)
        return output if hidden is None else output.where(~hidden, image)

    def _in_memory(self, images: torch.Tensor, levels: Sequence[float | None]) -> torch.Tensor:
        """The network's results, in smaller tiles where memory runs out for a single image."""
        side = max(images.shape[-2:])
        if self._largest is None or side <= self._largest:
            try:
                return self._forward(images, levels)
            except Exception as error:
                if not tile_memory.is_out_of_memory(error) or len(images) > 1:
                    raise
                if side <= tile_memory.SMALLEST_TILE:
                    raise UserError(
                        f"not enough memory on {self.device}, even for tiles of {side} pixels; close other programs "
                        "or use another --device"
                    ) from None
            self._largest = tile_memory.tile_below(side / 2)
            _release(self.device)
        tile = self._largest
        overlap = min(self.overlap, tile // 4)
        return tiling.apply_tiled(lambda part: self._in_memory(part, levels), images, tile, overlap)

    def _network_for(self, gray: bool) -> "_Network":
        if not gray or self._gray_weights is None:
            return self._color._replace(module=self.network)  # which users may have put another in place of
        if self._gray is None:  # most users never restore a gray image
            self._gray = self._loaded(self._gray_weights)[0]
        return self._gray

    def _forward(self, images: torch.Tensor, levels: Sequence[float | None]) -> torch.Tensor:
        gray = images.shape[1] == 1
        network, config, bf16 = self._network_for(gray)
        gray_as_color = gray and config["in_chans"] == 3
        x = (images.expand(-1, 3, -1, -1) if gray_as_color else images).contiguous().to(self.device)
        given = () if None in levels else (torch.tensor(levels, dtype=x.dtype, device=x.device),)

        def run(images: torch.Tensor) -> torch.Tensor:
            if self.ensemble:
                return self_ensemble(lambda turned: network(turned, *given), images)
            return network(images, *given)

        # Threads begin in the state of no mode, whatever the thread that began them is in.
        with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
            output = with_margin(run, x) if min(x.shape[-2:]) < SMALL else run(x)
        return (output.mean(dim=1, keepdim=True) if gray_as_color else output).float().cpu()


def _release(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()


def default_overlap(tile: int | None) -> int:
    """The overlap for a tile, None or 0 for one that is chosen later."""
    return min(tiling.DEFAULT_OVERLAP, tile // 4) if tile else tiling.DEFAULT_OVERLAP
