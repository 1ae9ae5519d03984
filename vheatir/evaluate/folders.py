"""Compare a folder of restored images with a folder of references, whatever program made them."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from vheatir.data.sources import ImageSource
from vheatir.errors import UserError
from vheatir.evaluate.protocol import READ
from vheatir.image_io.arrays import luma_bt601
from vheatir.metrics.fidelity import scores
from vheatir.utils.files import skipped_note

_LISTED = 10  # names in an error message
_LUMA = (16, 235)  # BT.601 luma of 8 bits
_MOST_OUTSIDE = 0.01  # share of values that restoring may have pushed out of that range


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
    """Means of PSNR, SSIM and PSNR-B over the pairs, and those of each pair.

    Beside a gray image, one of three equal channels is gray too. Alpha is not compared; notes name such images, and
    count files of other kinds. Everything is read before the first metric is computed, so that what is
    broken shows at once.

    Args:
        restored: folder of restored images.
        reference: folder of references of the same names.
        border: pixels cut from each side.
        luma: compare BT.601 luma (16 to 235). A gray image is compared as it is; beside a color one it stands for
            luma, and is refused where its values show that it is not.

    Returns:
        {"restored_dir", "reference_dir", "border", "luma", "images", "psnr", "ssim", "psnrb", "notes", "per_image"}.

    Raises:
        UserError: a file that cannot be read, has no partner, or another size or kind than its partner.
    """
    sources = [ImageSource(folder, backend="disk", suffixes=READ) for folder in (restored, reference)]
    pairs = pair_by_stem(*sources)
    for source in sources:
        source.check()
    records = []
    notes = [f"{source.root}: {skipped_note(source.others)}" for source in sources if source.others]
    for name, *keys in pairs:
        paths = [source.describe(key) for source, key in zip(sources, keys)]
        stored = [source.open(key) for source, key in zip(sources, keys)]
        notes += [f"{path}: its alpha is not compared" for path, one in zip(paths, stored) if one.has_alpha]
        images = _alike([one.eight_bits(path) for path, one in zip(paths, stored)], paths, luma)
        if images[0].shape != images[1].shape:
            kinds = " and ".join(f"{path} is {_kind(image)}" for path, image in zip(paths, images))
            raise UserError(f"{kinds}; expected the same size and both gray or both color")
        try:
            records.append({"image": name, **scores(*images, border=border)})
        except ValueError as error:
            raise UserError(f"{paths[0]}: {error}") from error
    means = {
        figure: math.fsum(record[figure] for record in records) / len(records) for figure in ("psnr", "ssim", "psnrb")
    }
    about = {"restored_dir": str(restored), "reference_dir": str(reference), "border": border, "luma": luma}
    return {**about, "images": len(records), **means, "notes": notes, "per_image": records}


def _alike(images: list[np.ndarray], paths: list[str], luma: bool) -> list[np.ndarray]:
    """The two of a pair as they are compared."""
    if images[0].ndim != images[1].ndim:
        images = [image[..., 0] if image.ndim == 3 and _is_gray(image) else image for image in images]
    if luma and images[0].ndim != images[1].ndim:
        gray, path = next((image, path) for image, path in zip(images, paths) if image.ndim == 2)
        outside = float(np.mean((gray < _LUMA[0]) | (gray > _LUMA[1])))
        if outside > _MOST_OUTSIDE:
            raise UserError(
                f"{path}: is to be the BT.601 luma of a color image, which lies from {_LUMA[0]} to {_LUMA[1]}, but "
                f"{outside:.0%} of its values lie outside; convert both to gray in the same way and leave --luma out"
            )
    return [luma_bt601(image) if luma and image.ndim == 3 else image for image in images]


def _is_gray(image: np.ndarray) -> bool:
    return np.array_equal(image[..., 0], image[..., 1]) and np.array_equal(image[..., 0], image[..., 2])


def _kind(image: np.ndarray) -> str:
    return f"{image.shape[0]}x{image.shape[1]} {'gray' if image.ndim == 2 else 'color'}"
