"""The protocol of the published tables: how a clean image is read, degraded, restored and scored.

docs/evaluation.md describes it. `vheatir evaluate`, `vheatir compare`, `vheatir receptive-field` and the validation of
trainings use these pieces.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vheatir.data.degradations import add_gaussian_noise, jpeg_roundtrip
from vheatir.data.sources import SUFFIXES
from vheatir.errors import UserError
from vheatir.image_io import decode_image, decode_opencv_gray
from vheatir.image_io.arrays import luma_bt601, to_float, to_uint8
from vheatir.image_io.formats import FORMATS
from vheatir.metrics.fidelity import WINDOW, scores, scores_of_degraded
from vheatir.utils.run_metadata import prepare_output

Method = Callable[[np.ndarray, float], np.ndarray]  # (degraded float image, level) -> restored float image in [0, 1]
ExtraMetrics = Callable[[np.ndarray, np.ndarray], dict[str, float]]  # (uint8 image, clean one) -> metrics by name

FIGURE_SUFFIXES = (".png", ".pdf", ".svg")  # of the figures that commands draw
# of images that are measured; RAW is left out, which is no image, but what a development of it gives
READ = SUFFIXES | {suffix for suffix, kind in FORMATS.items() if kind != "RAW"}
NOISE_SEED = 0  # of every image, so that an image's noise depends on its size alone
LEVELS = {"denoise": (15, 25, 50), "jpeg": (10, 20, 30, 40), "photo": (0,)}  # 0: as photographed
LEVEL_NAMES = {"denoise": "sigma", "jpeg": "quality", "photo": "sigma"}
METRICS = ("psnr", "ssim", "psnrb")
PROTOCOL = {
    "denoise": "white Gaussian noise, numpy RandomState(0) for each image, drawn on HWC RGB (or HW) in [0, 1], neither "
    "clipped nor rounded, also where the input is measured; gray: OpenCV's gray read",
    "jpeg": "OpenCV JPEG, color in 4:2:0; gray: BT.601 luma rounded to uint8 (gray files as they are), one plane",
    "photo": "pairs NAME_real.* and NAME_mean.*: one photograph and the mean of many, both 8 bits, RGB",
}
COMMON_PROTOCOL = "restored image clamped, times 255, rounded to uint8; border 0; mean of the images' figures"


class Source(Protocol):
    """What `read_clean` needs of an `ImageSource`."""

    def describe(self, key: str) -> str: ...

    def read_native(self, key: str) -> np.ndarray: ...

    def read_opencv_gray(self, key: str) -> np.ndarray: ...


def read_clean(source: Source, key: str, task: str, gray: bool) -> np.ndarray:
    """A clean test image as the protocol of `task` reads it: uint8, HWC RGB or, when `gray`, HW.

    Gray of a color file is what OpenCV's gray read gives for denoising, and rounded BT.601 luma for JPEG.

    Args:
        source: of the images.
        key: of the image.
        task: "denoise", "jpeg" or "photo".
        gray: HW instead of HWC.
    """
    image = source.read_native(key)
    if not gray:
        return image if image.ndim == 3 else np.repeat(image[:, :, None], 3, axis=2)
    if image.ndim == 2:
        return image
    if task == "jpeg":
        return luma_bt601(image)
    return source.read_opencv_gray(key)


@dataclass(frozen=True)
class _ImageFile:
    """One image file, with the three methods of `ImageSource` that `read_clean` calls."""

    path: Path

    def describe(self, key: str) -> str:
        return str(self.path)

    def read_native(self, key: str) -> np.ndarray:
        return decode_image(self._content(), str(self.path))

    def read_opencv_gray(self, key: str) -> np.ndarray:
        return decode_opencv_gray(self._content(), str(self.path))

    def _content(self) -> bytes:
        try:
            return self.path.read_bytes()
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read ({error.strerror}); give the name of an image") from error


def read_clean_file(path: Path, task: str, gray: bool) -> np.ndarray:
    """A clean image as `vheatir evaluate` reads it: uint8, HWC RGB or, when `gray`, HW.

    Args:
        path: of the image.
        task: "denoise", "jpeg" or "photo".
        gray: HW instead of HWC.

    Raises:
        UserError: missing, unreadable, or too small for SSIM.
    """
    image = read_clean(_ImageFile(path), path.name, task, gray)
    if min(image.shape[:2]) < WINDOW:
        raise UserError(f"{path}: {image.shape[1]}x{image.shape[0]} pixels; SSIM needs {WINDOW}x{WINDOW}")
    return image


def degrade(clean: np.ndarray, task: str, level: float) -> np.ndarray:
    """The test input for a clean uint8 image: float32 of the same shape, noise not clipped, JPEG in steps of 1/255.

    Args:
        clean: HWC RGB or HW, uint8.
        task: "denoise" or "jpeg".
        level: sigma on the 0-255 scale, or a whole quality from 1 to 100.

    Raises:
        ValueError: unknown task, or a quality that JPEG does not have.
    """
    if task == "denoise":
        return add_gaussian_noise(to_float(clean), level, np.random.RandomState(NOISE_SEED))
    if task == "jpeg":
        if not float(level).is_integer():
            raise ValueError(f"quality must be a whole number from 1 to 100, got {level}")
        return to_float(jpeg_roundtrip(clean, int(level)))
    raise ValueError(f"unknown task {task!r}; known: {', '.join(LEVELS)}")


def evaluate_image(
    clean: np.ndarray,
    task: str,
    level: float,
    method: Method | None,
    extra_metrics: ExtraMetrics | None = None,
    *,
    photographed: np.ndarray | None = None,
) -> tuple[dict[str, Any], np.ndarray | None]:
    """Degrade, restore and score one clean image.

    Args:
        clean: uint8, HWC RGB or HW.
        task: "denoise", "jpeg" or "photo".
        level: sigma on the 0-255 scale, or JPEG quality; for photographs the sigma that classic methods assume.
        method: what restores; None measures the degraded input only.
        extra_metrics: measured beside PSNR, SSIM and PSNR-B; those of a noisy input are of the 8-bit image that a
            viewer shows, clipped and rounded.
        photographed: for "photo" the input itself, uint8 of the shape of `clean`.

    Returns:
        {"input": metrics, "restored": metrics or None, "seconds": time of the method}, and the restored uint8 image or
        None.

    Raises:
        ValueError: the method returned another shape or type.
    """
    degraded = degrade(clean, task, level) if photographed is None else to_float(photographed)
    noisy = task == "denoise" and level > 0  # without noise float32 would round an image equal to the clean one
    before = scores_of_degraded(degraded, clean) if noisy else scores(to_uint8(degraded), clean)
    before = {**before, **(extra_metrics(to_uint8(degraded), clean) if extra_metrics else {})}
    if method is None:
        return {"input": before, "restored": None, "seconds": 0.0}, None
    start = time.perf_counter()
    output = method(degraded, level)
    seconds = time.perf_counter() - start
    if not isinstance(output, np.ndarray) or output.dtype.kind != "f":
        got = f"an array of {output.dtype}" if isinstance(output, np.ndarray) else type(output).__name__
        raise ValueError(f"the method returned {got}, expected a NumPy array of floats in [0, 1]")
    if output.shape != clean.shape:
        raise ValueError(f"the method returned shape {output.shape} for an image of {clean.shape}, expected the same")
    restored = to_uint8(output)
    after = {**scores(restored, clean), **(extra_metrics(restored, clean) if extra_metrics else {})}
    return {"input": before, "restored": after, "seconds": seconds}, restored


def mean_scores(items: Sequence[dict[str, float]]) -> dict[str, float]:
    """The mean of each metric over images; infinite where one image's is."""
    return {name: math.fsum(item[name] for item in items) / len(items) for name in items[0]}


def check_figure_files(out: Sequence[Path], images: Sequence[Path]) -> None:
    """Refuse files that are no figures, and such as images were named by mistake; make their folders.

    Args:
        out: where one figure goes, once in each format.
        images: that are read, none of which it may replace.

    Raises:
        UserError: another suffix, one suffix twice, or one of the images.
    """
    for number, path in enumerate(out):
        if path.suffix not in FIGURE_SUFFIXES:
            raise UserError(f"{path}: a figure's name ends in {', '.join(FIGURE_SUFFIXES)}")
        if any(other.suffix == path.suffix for other in out[:number]):
            raise UserError(
                f"-o {' '.join(map(str, out))}: two {path.suffix} files for one figure; name images to read before "
                "the options, and one file to write for each format"
            )
        _refuse_replacing(path, images, "the figure")
    for path in out:
        prepare_output(path)


def check_json_file(path: Path, images: Sequence[Path]) -> None:
    """Refuse a file for numbers that is one of the images, named by mistake; make its folder.

    Args:
        path: where the numbers go.
        images: that are read.

    Raises:
        UserError: one of the images, or nothing can be written there.
    """
    _refuse_replacing(path, images, "the JSON file")
    prepare_output(path)


def _refuse_replacing(path: Path, images: Sequence[Path], what: str) -> None:
    if path.exists() and any(image.exists() and path.samefile(image) for image in images):
        raise UserError(f"{path}: is an image to read, which {what} would replace; choose another name")
