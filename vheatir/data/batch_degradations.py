"""Augmentation and degradation of batches on the training device (`on_device`): symmetries, noise, approximate JPEG.

Strengths, grid phases and seeds are drawn by the loader for each sample, so that a batch stays a function of its sample
numbers alone, whatever process or resumed run it is in. The noise itself comes from the device's own generator: runs
agree bit for bit on one kind of device, and in their statistics between kinds. kornia's RandomGaussianNoise and
RandomJPEG do not serve: the first has one sigma for all, both draw from the state of the process.
"""

from typing import Any

import torch
from torch import Tensor

from vheatir.data.base import MIXUP, philox

# 4:2:0 repeats its chroma grid every 16 pixels
LUMA_BLOCK = 8
CHROMA_BLOCK = 16


@torch.no_grad()
def finish_batch(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """A collated training batch with its tensors on `device` and the steps done that were left to it.

    Reads, where they are there, "symmetry": (B,) modes 0-7; "sigma", "noise_seed", "one_plane": (B,) noise on the scale
    of [0, 1], its seed, and whether the sample is a gray one with one plane of noise; "jpeg", "gt_size": see
    `JPEGDataset`. Returns the batch with "lq", "gt": (B, C, H, W).
    """
    done = {
        key: value.to(device, non_blocking=True) if torch.is_tensor(value) else value for key, value in batch.items()
    }
    if "symmetry" in done:
        done |= {key: symmetries(done[key], done["symmetry"]) for key in ("lq", "gt") if key in done}
    if "lq" in done:
        return done
    if "sigma" in done:
        seeds = batch["noise_seed"].tolist()
        one_plane = done["one_plane"]
        return done | {"lq": add_noise(done["gt"], done["sigma"].float(), seeds, one_plane)}
    clean = done["gt"]
    passes = batch["jpeg"]
    size = int(batch["gt_size"][0])
    degraded = (jpeg_chain(clean, passes, size) * 255).round() / 255
    return done | {"lq": degraded, "gt": _cut_chain(clean, passes, size)}


def symmetries(images: Tensor, modes: Tensor) -> Tensor:
    """`vheatir.data.base.augment` of each square image. images: (B, C, S, S); modes: (B,) integers 0-7."""
    from kornia.geometry.transform import hflip, vflip

    for bit, function in ((1, hflip), (2, vflip), (4, lambda image: image.mT)):
        images = torch.where((modes & bit).bool()[:, None, None, None], function(images), images)
    return images


def add_noise(clean: Tensor, sigma: Tensor, seeds: list[int], one_plane: Tensor) -> Tensor:
    """White Gaussian noise, neither clipped nor rounded, seeded image by image.

    Args:
        clean: (B, C, H, W).
        sigma: (B,), on the scale of `clean`.
        seeds: one for each image.
        one_plane: (B,) bool, the same noise in all channels.
    """
    generator = torch.Generator(clean.device)
    noise = torch.empty_like(clean)
    for plane, seed in zip(noise, seeds, strict=True):
        plane.normal_(generator=generator.manual_seed(seed))
    noise = torch.where(one_plane[:, None, None, None], noise[:, :1], noise)
    return clean + sigma[:, None, None, None] * noise


def mixup(images: list[Tensor], seed: int, iteration: int, beta: float, probability: float = 1.0) -> list[Tensor]:
    """Each sample becomes a weighted mean of itself and its neighbor in the batch, in all `images` alike.

    The weight is drawn from Beta(beta, beta), one for the iteration. Pairs are fixed (0 with 1, 2 with 3, …): samples
    come in random order as it is, and so several processes mix as one does, where each has an even number of samples.
    The last of an odd number stays alone.

    Source: mixup, arXiv 1710.09412, as in Restormer, arXiv 2111.09881 (beta 1.2).

    Args:
        images: (B, ...) each, such as [lq, gt].
        seed: of the data set.
        iteration: counted from 0.
        beta: parameter of the Beta distribution, above 0.
        probability: share of the iterations that mix, from 0 to 1.
    """
    rng = philox(MIXUP, seed, iteration)
    weight = rng.beta(beta, beta)
    if rng.random() >= probability:
        return images
    count = len(images[0])
    partners = [number ^ 1 if number ^ 1 < count else number for number in range(count)]
    return [image.lerp(image[partners], weight) for image in images]


def block_of(images: Tensor) -> int:
    """Side of the JPEG grid of (B, C, H, W): color is stored in 4:2:0."""
    return CHROMA_BLOCK if images.shape[1] == 3 else LUMA_BLOCK


def jpeg_chain(images: Tensor, passes: Tensor, size: int) -> Tensor:
    """kornia's differentiable JPEG, once for each pass, cut after each as `jpeg_crop` cuts; an approximation.

    Args:
        images: (B, C, S, S) in [0, 1], C = 3 or 1, with S = size + block * number of passes.
        passes: (B, P, 3), see `JPEGDataset`.
        size: side of the result in pixels.

    Returns:
        (B, C, size, size), not rounded.
    """
    from kornia.enhance import jpeg_codec_differentiable

    for index in range(passes.shape[1]):
        quality = passes[:, index, 0].to(images)
        compressed = jpeg_codec_differentiable(images.expand(-1, 3, -1, -1), quality.clamp(min=1))
        compressed = compressed if images.shape[1] == 3 else compressed.mean(1, keepdim=True)
        images = torch.where((quality > 0)[:, None, None, None], compressed, images)
        left = passes.shape[1] - 1 - index
        images = _cut(images, passes[:, index, 1:], size + left * block_of(images))
    return images


def _cut_chain(images: Tensor, passes: Tensor, size: int) -> Tensor:
    """The same cuts, without compression."""
    return _cut(images, passes[:, :, 1:].sum(1), size)


def _cut(images: Tensor, corners: Tensor, size: int) -> Tensor:
    """`size` x `size` pixels of each image from its (y, x) in corners: (B, 2)."""
    pairs = zip(images, corners.tolist(), strict=True)
    return torch.stack([image[:, y : y + size, x : x + size] for image, (y, x) in pairs])
