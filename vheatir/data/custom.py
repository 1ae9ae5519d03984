"""A degradation of one's own: one method to write, everything else as in the built-in sets."""

import numpy as np

from vheatir.data.datasets import SyntheticDataset
from vheatir.errors import UserError
from vheatir.image_io.arrays import to_float

_MOST = 8.0  # mean magnitude; images in [0, 1] stay far below it under any noise, those in 0 .. 255 above


class DegradationDataset(SyntheticDataset):
    """Clean images, degraded by the `degrade` of a subclass; see docs/howto.md.

    A subclass names its options in `OPTIONS` (with those of this class) and reads them in `__init__`, where each
    problem is a `UserError`. In a file given with `--plugin`, it is known by its name as `datasets.*.type`.
    """

    def __init__(self, opt: dict):
        super().__init__(opt)
        if self.level_map:
            raise UserError(f"level_map: {type(self).__name__} has no level; leave it out")

    def degrade(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The degraded image, of the same shape and scale, in floats.

        image: float32 HWC RGB or HW gray in [0, 1]: a crop in training, a whole image otherwise. Draw all that is
        random from `rng`: then a resumed run sees what it would have seen, and validation the same images each time.
        """
        raise NotImplementedError(f"{type(self).__name__} must define degrade(image, rng)")

    def _degrade(self, image: np.ndarray, rng: np.random.Generator | None, size: int | None = None):
        clean = to_float(image)
        degraded = self.degrade(clean.copy(), np.random.default_rng(0) if rng is None else rng)
        self._check(degraded, clean.shape)
        return degraded.astype(np.float32), clean, 0.0, {}

    def _check(self, degraded: np.ndarray, shape: tuple[int, ...]) -> None:
        """UserError for what a network would train on without complaint, but to no use."""
        name = f"{type(self).__name__}.degrade"
        if not isinstance(degraded, np.ndarray) or degraded.shape != shape:
            got = getattr(degraded, "shape", type(degraded).__name__)
            raise UserError(f"{name} gave {got}, expected an array {shape} like its input")
        if not np.issubdtype(degraded.dtype, np.floating):
            raise UserError(f"{name} gave {degraded.dtype} values, expected floats in [0, 1]; divide by 255 at its end")
        if not np.isfinite(degraded).all():
            raise UserError(f"{name} gave NaN or infinity, expected finite values in [0, 1]")
        if (mean := float(np.abs(degraded).mean())) > _MOST:
            raise UserError(
                f"{name} gave values of {mean:.3g} in the mean, expected [0, 1]; divide by the value of white"
            )
