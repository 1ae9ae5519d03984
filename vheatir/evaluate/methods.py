"""What `vheatir evaluate --method` can restore with: our networks, or non-local means to compare with."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from skimage.restoration import denoise_nl_means

from vheatir import weights as store
from vheatir.errors import UserError
from vheatir.evaluate.protocol import Method
from vheatir.image_io.arrays import to_float, to_uint8
from vheatir.restore.defaults import GOOD_QUALITY
from vheatir.restore.restorer import Restorer
from vheatir.utils.files import sha256

CLASSIC = ("nlm", "bm3d")
ASSUMED_SIGMA = 5  # of photographs, for the classic methods


def nlm(image: np.ndarray, sigma: float) -> np.ndarray:
    """Non-local means with the true sigma: the classical baseline (scikit-image, fast mode).

    Patches 5x5, search distance 6, h = 0.6 sigma: the settings of scikit-image's own example for a known sigma.
    """
    if sigma == 0:
        return image
    deviation = sigma / 255.0
    options = {"patch_size": 5, "patch_distance": 6, "h": 0.6 * deviation, "sigma": deviation, "fast_mode": True}
    return denoise_nl_means(image, **options, channel_axis=-1 if image.ndim == 3 else None)


def nlm_of_photographs(image: np.ndarray, sigma: float) -> np.ndarray:
    """OpenCV's non-local means for color photographs with 8 bits: h = sigma, patches 7x7, search window 21x21."""
    found = cv2.fastNlMeansDenoisingColored(cv2.cvtColor(to_uint8(image), cv2.COLOR_RGB2BGR), None, sigma, sigma, 7, 21)
    return to_float(cv2.cvtColor(found, cv2.COLOR_BGR2RGB))


def bm3d(image: np.ndarray, sigma: float) -> np.ndarray:
    """BM3D with sigma given, by the package bm3d of its authors (non-commercial use), color as its `bm3d_rgb`."""
    try:
        import bm3d as package
    except ImportError:
        raise UserError("--method bm3d needs the package bm3d; run `pip install bm3d`") from None
    if sigma == 0:
        return image
    run = package.bm3d_rgb if image.ndim == 3 else package.bm3d
    return np.clip(run(image, sigma / 255.0), 0, 1).astype(np.float32)


def open_method(
    name: str,
    task: str,
    gray: bool,
    weights: str | Path | None,
    device: str | None,
    tile: int | None,
    precision: str = "float32",
    ensemble: bool = False,
) -> tuple[Method, dict[str, Any]]:
    """A method by its name, and what metadata says about it.

    Args:
        name: "vheatir", "nlm" or "bm3d".
        task: "denoise", "jpeg" or "photo".
        gray: whether gray images are restored; chooses the default weights.
        weights: shipped name or file for "vheatir"; None for the task's own.
        device: torch device for "vheatir"; None for CUDA where there is one.
        tile: side of the tiles in pixels, 0 for whole images, None to choose by size and memory.
        precision: of the products of "vheatir": "float32", "bf16" or "auto", see `Restorer`.
        ensemble: "vheatir" gives the mean over eight flips and rotations.

    Raises:
        UserError: an unknown name, arguments that do not belong to the method, or unusable weights.
    """
    if name in CLASSIC:
        if task == "jpeg":
            raise UserError(f"--method {name} removes noise and does not apply to --task jpeg; leave --method out")
        if weights is not None or device is not None or tile is not None or precision != "float32" or ensemble:
            options = "--weights, --device, --tile, --precision, --ensemble"
            raise UserError(f"--method {name} takes none of {options}; leave them out")
        sigma_used = "told the true sigma" if task == "denoise" else "with an assumed sigma"
        if name == "bm3d":
            return bm3d, {"method": f"bm3d {sigma_used}", "weights": None}
        run = nlm if task == "denoise" else nlm_of_photographs
        return run, {"method": f"nlm: non-local means {sigma_used}", "weights": None}
    if name != "vheatir":
        raise UserError(f"unknown method {name!r}; known: vheatir, {', '.join(CLASSIC)}")
    path = store.find(weights if weights is not None else store.DEFAULTS[task]["gray" if gray else "color"])
    restorer = Restorer(task, weights=path, device=device, tile=tile, ensemble=ensemble, precision=precision)
    if restorer.metadata["color"] == "gray" and not gray:
        raise UserError(f"{path}: these weights are for gray images; evaluate them with --gray")
    about = {"method": "vheatir", "weights": {"name": path.stem, "sha256": sha256(path)}}
    about |= {"device": str(restorer.device), "tile": tile, "precision": "bf16" if restorer.bf16 else "float32"}
    about |= {"ensemble": ensemble}

    def method(image: np.ndarray, level: float) -> np.ndarray:
        if task == "jpeg" and level is not None and level >= GOOD_QUALITY:  # as `vheatir restore` does
            return image
        return restorer.restore(image, level=level if restorer.takes_level else None)

    return method, about
