"""What `vheatir evaluate --method` can restore with: our networks, or non-local means to compare with."""

from pathlib import Path
from typing import Any

import numpy as np
from skimage.restoration import denoise_nl_means

from vheatir import weights as store
from vheatir.errors import UserError
from vheatir.evaluate.protocol import Method
from vheatir.restore.restorer import Restorer
from vheatir.utils.files import sha256


def nlm(image: np.ndarray, sigma: float) -> np.ndarray:
    """Non-local means told the true sigma: the classical baseline (scikit-image, fast mode).

    Patches 5x5, search distance 6, h = 0.6 sigma: the settings of scikit-image's own example for a known sigma.
    """
    if sigma == 0:
        return image
    deviation = sigma / 255.0
    options = {"patch_size": 5, "patch_distance": 6, "h": 0.6 * deviation, "sigma": deviation, "fast_mode": True}
    return denoise_nl_means(image, **options, channel_axis=-1 if image.ndim == 3 else None)


def open_method(
    name: str, task: str, gray: bool, weights: str | Path | None, device: str | None, tile: int | None
) -> tuple[Method, dict[str, Any]]:
    """A method by its name, and what metadata says about it.

    Args:
        name: "vheatir" or "nlm".
        task: "denoise" or "jpeg".
        gray: whether gray images are restored; chooses the default weights.
        weights: shipped name or file for "vheatir"; None for the task's own.
        device: torch device for "vheatir"; None for CUDA where there is one.
        tile: side of the tiles in pixels, 0 for whole images, None to choose by size and memory.

    Raises:
        UserError: an unknown name, arguments that do not belong to the method, or unusable weights.
    """
    if name == "nlm":
        if task != "denoise":
            raise UserError("--method nlm removes noise, with nothing to offer for --task jpeg; leave --method out")
        if weights is not None or device is not None or tile is not None:
            raise UserError("--method nlm takes none of --weights, --device, --tile; leave them out")
        return nlm, {"method": "nlm: non-local means told the true sigma", "weights": None}
    if name != "vheatir":
        raise UserError(f"unknown method {name!r}; known: vheatir, nlm")
    path = store.find(weights if weights is not None else store.DEFAULTS[task]["gray" if gray else "color"])
    restorer = Restorer(task, weights=path, device=device, tile=tile)
    if restorer.metadata["color"] == "gray" and not gray:
        raise UserError(f"{path}: these weights are for gray images; evaluate them with --gray")
    about = {"method": "vheatir", "weights": {"name": path.stem, "sha256": sha256(path)}}
    about |= {"device": str(restorer.device), "tile": tile}

    def method(image: np.ndarray, level: float) -> np.ndarray:
        return restorer.restore(image, level=level if restorer.takes_level else None)

    return method, about
