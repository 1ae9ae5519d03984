"""Compare a folder of restored images with a folder of references, whatever program made them."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from vheatir.data.sources import ImageSource
from vheatir.errors import UserError
from vheatir.image_io.arrays import luma_bt601
from vheatir.metrics.fidelity import scores

_LISTED = 10  # names in an error message


def pair_by_stem(restored: ImageSource, reference: ImageSource) -> list[tuple[str, str, str]]:
    """(stem, key in `restored`, key in `reference`) sorted by stem; a stem is the path below the folder, no suffix.

    Every image must have its partner, so that a mean is never taken over a part of the set unnoticed.
    """
    ours = restored.by_stem()
    theirs = reference.by_stem()
    problems = [
        f"{name}: in {reference.root}, missing in {restored.root}" for name in sorted(theirs.keys() - ours.keys())
    ]
    problems += [
        f"{name}: in {restored.root}, missing in {reference.root}" for name in sorted(ours.keys() - theirs.keys())
    ]
    if problems:
        more = f"\n  and {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
        listed = "\n  ".join(problems[:_LISTED])
        raise UserError(f"{len(problems)} images have no partner of the same name (without suffix):\n  {listed}{more}")
    return [(name, ours[name], theirs[name]) for name in sorted(theirs)]


def compare_folders(
    restored: str | Path, reference: str | Path, *, border: int = 0, luma: bool = False
) -> dict[str, Any]:
    """Means of PSNR, SSIM and PSNR-B over the pairs, and the figures of each.

    Returns {"restored_dir", "reference_dir", "border", "luma", "images", "psnr", "ssim", "psnrb", "per_image"}. With
    `luma` a colour reference may be compared with a gray restored image, which then stands for its BT.601 luma.
    """
    sources = [ImageSource(folder, backend="disk") for folder in (restored, reference)]
    records = []
    for name, *keys in pair_by_stem(*sources):
        paths = [source.describe(key) for source, key in zip(sources, keys)]
        images = [_read(source, key, luma) for source, key in zip(sources, keys)]
        if images[0].shape != images[1].shape:
            kinds = " and ".join(f"{path} is {_kind(image)}" for path, image in zip(paths, images))
            raise UserError(f"{kinds}; expected the same size and both gray or both colour")
        try:
            records.append({"image": name, **scores(*images, border=border)})
        except ValueError as error:
            raise UserError(f"{paths[0]}: {error}") from error
    means = {
        figure: math.fsum(record[figure] for record in records) / len(records) for figure in ("psnr", "ssim", "psnrb")
    }
    about = {"restored_dir": str(restored), "reference_dir": str(reference), "border": border, "luma": luma}
    return {**about, "images": len(records), **means, "per_image": records}


def _read(source: ImageSource, key: str, luma: bool) -> np.ndarray:
    image = source.read_native(key)
    return luma_bt601(image) if luma and image.ndim == 3 else image


def _kind(image: np.ndarray) -> str:
    return f"{image.shape[0]}x{image.shape[1]} {'gray' if image.ndim == 2 else 'colour'}"
