"""Motion between frames of a clip, without weights: brightness in windows of heat, from coarse to fine."""

import torch
import torch.nn.functional as F
from torch import Tensor

from vheatir.kernels.diffusion.ops import diffuse
from vheatir.kernels.plain import full_precision

_LEAST_SIDE = 8  # pixels at the coarsest scale
_MOST_SCALES = 5
_STEPS = 3  # of Newton's method at each scale
_SMOOTHING = 0.5  # squared pixels: of the frames before gradients are taken
_WINDOW = 12.0  # squared pixels: pixels that move together
_STILL = 5e-5  # squared gradient below which a window counts as flat and keeps the motion of the coarser scale
_MOST_STEP = 1.0  # pixels in one step
_MISS = 1.0  # squared pixels by which the way there and back may miss its start
_MISS_SHARE = 0.01  # and share of the squared lengths of both ways
_AROUND = 5  # pixels: side of the square in which all must return


def motion(target: Tensor, source: Tensor) -> Tensor:
    """Where in `source` the pixels of `target` are: source at (y + v, x + u) looks like target at (y, x).

    Each step solves for the displacement that explains the difference of brightness by its gradient, in the mean over
    a window, which is a heat kernel; scales go from a sixteenth of the size to the whole one. Flat parts keep what the
    coarser scale found.

    Args:
        target: (N, 1, H, W), gray, about [0, 1].
        source: likewise.

    Returns:
        (N, 2, H, W): u to the right and v down, in pixels. Without gradients.

    Source: Lucas and Kanade, An iterative image registration technique, IJCAI 1981; pyramids, Bouguet, 2001.
    """
    if target.ndim != 4 or target.shape[1] != 1 or target.shape != source.shape:
        raise ValueError(
            f"expected two sets of gray frames (N, 1, H, W) of one shape, got {tuple(target.shape)} and "
            f"{tuple(source.shape)}"
        )
    with torch.no_grad(), full_precision(target):
        wide = torch.promote_types(target.dtype, torch.float32)
        pyramid = [(_smooth(target.detach().to(wide)), _smooth(source.detach().to(wide)))]
        while len(pyramid) < _MOST_SCALES and min(pyramid[-1][0].shape[2:]) >= 2 * _LEAST_SIDE:
            halved = [F.avg_pool2d(frame, 2, ceil_mode=True) for frame in pyramid[-1]]
            pyramid.append((halved[0], halved[1]))
        flow = torch.zeros_like(pyramid[-1][0]).expand(-1, 2, -1, -1)
        for aim, start in reversed(pyramid):
            if flow.shape[2:] != aim.shape[2:]:
                flow = enlarged(flow, (aim.shape[2], aim.shape[3]))
            for _ in range(_STEPS):
                flow = flow + _step(aim, start, flow)
        return flow


def motion_there_and_back(target: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
    """`motion` from target to source, and where it can be trusted: where the motion back ends at its start.

    What is hidden in the other frame, has left it or was taken for something similar does not return.

    Args:
        target: (N, 1, H, W), as for `motion`.
        source: likewise.

    Returns:
        (N, 2, H, W) as `motion`, and (N, 1, H, W), 1 where all pixels around return and 0 elsewhere.

    Source: forward-backward check of Sundaram, Brox and Keutzer, Dense point trajectories by GPU-accelerated large
        displacement optical flow, ECCV 2010, with other constants.
    """
    there, back = motion(torch.cat([target, source]), torch.cat([source, target])).chunk(2)
    with torch.no_grad():
        back = warped(back, there)
        lengths = (there.square() + back.square()).sum(1, keepdim=True)
        missed = (there + back).square().sum(1, keepdim=True) > _MISS + _MISS_SHARE * lengths
        return there, 1 - F.max_pool2d(missed.to(there.dtype), _AROUND, 1, _AROUND // 2)


def enlarged(flow: Tensor, size: tuple[int, int]) -> Tensor:
    """Motion of maps at twice the resolution, cut to `size`; its lengths double too."""
    height, width = size
    return 2 * F.interpolate(flow, scale_factor=2, mode="bilinear", align_corners=False)[..., :height, :width]


def warped(frames: Tensor, flow: Tensor, mode: str = "bilinear") -> Tensor:
    """Frames (N, C, H, W) seen along a motion (N, 2, H, W); beyond the rim its pixels are repeated.

    Args:
        frames: what is sampled.
        flow: see `motion`.
        mode: "bilinear" or "bicubic".
    """
    height, width = frames.shape[2:]
    x, y = _places(flow)
    with full_precision(frames):
        # In units of half the size, from the center.
        grid = torch.stack([2 * x / max(width - 1, 1) - 1, 2 * y / max(height - 1, 1) - 1], -1)
        wide = torch.promote_types(frames.dtype, grid.dtype)
        return F.grid_sample(frames.to(wide), grid.to(wide), mode=mode, padding_mode="border", align_corners=True)


def _places(flow: Tensor) -> tuple[Tensor, Tensor]:
    """Columns and rows where the pixels come from, (N, H, W) each."""
    height, width = flow.shape[2:]
    x = torch.arange(width, device=flow.device, dtype=flow.dtype)
    y = torch.arange(height, device=flow.device, dtype=flow.dtype)
    return flow[:, 0] + x, flow[:, 1] + y[:, None]


def _smooth(frames: Tensor) -> Tensor:
    return diffuse(frames.permute(0, 2, 3, 1), _SMOOTHING).permute(0, 3, 1, 2)


def _step(target: Tensor, source: Tensor, flow: Tensor) -> Tensor:
    """What is to be added to the motion."""
    moved = warped(source, flow)
    x, y = _places(flow)
    inside = (x >= 0) & (x <= target.shape[3] - 1) & (y >= 0) & (y <= target.shape[2] - 1)
    middle = F.pad((moved + target) / 2, (1, 1, 1, 1), mode="replicate")[:, 0]
    across = (middle[:, 1:-1, 2:] - middle[:, 1:-1, :-2]) / 2
    down = (middle[:, 2:, 1:-1] - middle[:, :-2, 1:-1]) / 2
    change = (target - moved)[:, 0]
    products = torch.stack([across**2, across * down, down**2, across * change, down * change], -1)
    means = diffuse(products * inside[..., None], _WINDOW)
    xx, xy, yy, xt, yt = means.unbind(-1)
    xx = xx + _STILL
    yy = yy + _STILL
    determinant = xx * yy - xy**2
    step = torch.stack([(yy * xt - xy * yt) / determinant, (xx * yt - xy * xt) / determinant], 1)
    return step.clamp(-_MOST_STEP, _MOST_STEP)
