"""What `vheatir evaluate --method` can restore with: our networks, or non-local means to compare with."""

from collections.abc import Callable
from typing import Any

import numpy as np

from vheatir.errors import UserError
from vheatir.utils.files import sha256

Method = Callable[[np.ndarray, float], np.ndarray]  # (degraded float image, level) -> restored float image in [0, 1]


def nlm(image: np.ndarray, sigma: float) -> np.ndarray:
    """Non-local means told the true sigma: the classical baseline (scikit-image, fast mode).

    Patches 5x5, search distance 6, h = 0.6 sigma: the settings of scikit-image's own example for a known sigma.
    """
    from skimage.restoration import denoise_nl_means

    if sigma == 0:
        return image
    deviation = sigma / 255.0
    options = {"patch_size": 5, "patch_distance": 6, "h": 0.6 * deviation, "sigma": deviation, "fast_mode": True}
    return denoise_nl_means(image, **options, channel_axis=-1 if image.ndim == 3 else None)


def open_method(
    name: str, task: str, gray: bool, weights: str | None, device: str | None, tile: int | None
) -> tuple[Method, dict[str, Any]]:
    """The method of `--method` and what the metadata says about it."""
    if name == "nlm":
        if task != "denoise":
            raise UserError("--method nlm removes noise, with nothing to offer for --task jpeg; leave --method out")
        if weights is not None or device is not None or tile is not None:
            raise UserError("--method nlm takes none of --weights, --device, --tile; leave them out")
        return nlm, {"method": "nlm: non-local means told the true sigma", "weights": None}
    from vheatir import weights as files
    from vheatir.restore.restorer import Restorer

    path = files.find(weights if weights is not None else files.DEFAULTS[task]["gray" if gray else "color"])
    restorer = Restorer(task, weights=path, device=device, tile=tile)
    if restorer.metadata["color"] == "gray" and not gray:
        raise UserError(f"{path}: these weights are for gray images; evaluate them with --gray")
    about = {"method": "vheatir", "weights": {"name": path.stem, "sha256": sha256(path)}}
    given = (lambda level: level) if restorer.takes_level else (lambda level: None)
    return lambda image, level: restorer.restore(image, level=given(level)), about | {
        "device": str(restorer.device),
        "tile": tile,
    }
