"""Losses beyond BasicSR's."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vheatir.data.batch_degradations import block_of, jpeg_chain


class PSNRLoss(nn.Module):
    """The mean over the images of 10 log10(mean squared error + floor): the negative PSNR in dB, up to the floor.

    Every image counts alike, however strong its degradation is: absolute differences are nearly all made by the worst
    images of a batch, and a network so trained harms those that needed little.

    Args:
        loss_weight: factor of the loss.
        reduction: "mean" over the images, or "sum".
        floor: added to the mean squared error of images in [0, 1]; 1e-6 stands for 60 dB, beyond which little counts.

    Raises:
        ValueError: another reduction, or a floor that is not above 0.

    Source: the loss of HINet (arXiv 2105.06086) and NAFNet (arXiv 2204.04676).
    """

    def __init__(self, loss_weight: float = 1.0, reduction: str = "mean", floor: float = 1e-6):
        super().__init__()
        if reduction not in ("mean", "sum"):
            raise ValueError(f"reduction must be mean or sum, got {reduction!r}")
        if not floor > 0:
            raise ValueError(f"floor must be above 0, got {floor!r}")
        self.loss_weight = loss_weight
        self.reduction = reduction
        self.floor = floor

    def forward(self, restored: Tensor, target: Tensor) -> Tensor:
        """A scalar from two batches (B, C, H, W) in [0, 1]."""
        errors = (restored - target).square().mean((1, 2, 3)) + self.floor
        decibels = 10 * torch.log10(errors)
        return self.loss_weight * (decibels.mean() if self.reduction == "mean" else decibels.sum())


class JPEGConsistencyLoss(nn.Module):
    """Would the restored image, compressed again, give the compressed one? Mean absolute difference.

    The codec is kornia's differentiable one (arXiv 2309.06978), which is 37 to 41 dB away from a real one in color at
    quality 10 to 40: a training signal, and its value never a result. The crop is compressed on its own grid, as often
    as it was; only blocks that lie whole inside the crop count, the others would need pixels that are not there.

    Args:
        loss_weight: factor of the loss.
    """

    def __init__(self, loss_weight: float = 1.0):
        super().__init__()
        self.loss_weight = loss_weight

    def forward(self, restored: Tensor, degraded: Tensor, passes: Tensor) -> Tensor:
        """The mean over the crops, a scalar.

        Args:
            restored: (B, C, S, S) in [0, 1], C = 3 or 1. S must be at least 2 P blocks (16 pixels each in color, 8 in
                gray), so that a whole block is inside.
            degraded: likewise.
            passes: (B, P, 3), see `JPEGDataset`.

        Raises:
            ValueError: the crop may hold no whole block.
        """
        block = block_of(restored)
        size = restored.shape[-1]
        count = passes.shape[1]
        context = block * count
        if size < 2 * context:
            raise ValueError(f"a crop of {size} pixels may hold no whole block; {2 * context} are enough")
        passes = passes.cpu()
        # What was cut off the top and the left is not there any more; the edge stands in for it.
        padded = F.pad(restored, (context,) * 4, mode="replicate")
        starts = (context - passes[:, :, 1:].sum(1)).tolist()
        side = size + context
        grids = torch.stack([p[:, y : y + side, x : x + side] for p, (y, x) in zip(padded, starts, strict=True)])
        difference = (jpeg_chain(grids, passes, size) - degraded).abs()
        inside = torch.stack([_whole_blocks(chain, size, block) for chain in passes]).to(restored)
        return self.loss_weight * ((difference.mean(1) * inside).sum((1, 2)) / inside.sum((1, 2))).mean()


def _whole_blocks(chain: Tensor, size: int, block: int) -> Tensor:
    """(size, size) booleans: where all blocks of all passes of a sample lie inside its crop. chain: (P, 3)."""
    axes = []
    for axis in (1, 2):
        start = 0
        stop = size
        for index, quality in enumerate(chain[:, 0].tolist()):
            if quality:
                offset = int(chain[index:, axis].sum())  # of the crop's first pixel, in the grid of this pass
                start, stop = start + -(start + offset) % block, stop - (stop + offset) % block
        position = torch.arange(size)
        axes.append((position >= start) & (position < stop))
    return axes[0][:, None] & axes[1][None, :]
