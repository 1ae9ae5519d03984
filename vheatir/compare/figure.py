"""The figure of `vheatir compare`: crops of each image beside the truth, with error maps and spectra below.

Laid out in pixels, so that every pixel of a crop is a square of `zoom` pixels of the figure.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from vheatir.image_io.arrays import gray_opencv
from vheatir.metrics.fidelity import Scores
from vheatir.utils.files import in_figure

DPI = 150
PANEL = 240  # pixels that the longer side of a crop fills at least; a caption needs as many
# pixels: between panels, of a line of text, of the column of color bars
_GAP = 10
_LINE = 22
_BAR = 100
_FONT = 8  # points
_PLOT = (58, 52)  # pixels left and below of a plot for its labels

Crop = tuple[int, int, int, int]  # x, y, width, height in pixels


@dataclass(frozen=True)
class Shown:
    """One version of an image: its name, its pixels as uint8 HWC or HW, its metrics (none for the truth)."""

    name: str
    pixels: np.ndarray
    scores: Scores | None
    degraded: bool = False  # the input itself


@dataclass(frozen=True)
class Row:
    """One image: what stands under it, the truth, its versions and the crop that is enlarged."""

    title: str
    clean: np.ndarray
    shown: Sequence[Shown]
    crop: Crop

    def versions(self) -> list[Shown]:
        """All versions, the truth last."""
        return [*self.shown, Shown("truth", self.clean, None)]


def cut(image: np.ndarray, crop: Crop) -> np.ndarray:
    """The part of an image (H, W[, C]) inside a crop."""
    x, y, width, height = crop
    return image[y : y + height, x : x + width]


def error_map(image: np.ndarray, clean: np.ndarray) -> np.ndarray:
    """Absolute error in 8-bit steps, the mean of the channels: float64 (H, W) of two uint8 images of one shape."""
    difference = np.abs(image.astype(np.float64) - clean)
    return difference if difference.ndim == 2 else difference.mean(2)


def log_spectrum(image: np.ndarray) -> np.ndarray:
    """log10 of the power spectrum of the luma of a uint8 image (H, W[, 3]), frequency 0 in the middle: (H, W).

    The mean is taken off and a Hann window applied, so that neither it nor the image's rim fills the axes; the power
    is divided by the window's energy, which gives white noise of variance v (8-bit steps) the value log10(v).
    """
    luma = (image if image.ndim == 2 else gray_opencv(image)).astype(np.float64)
    window = np.hanning(luma.shape[0])[:, None] * np.hanning(luma.shape[1])
    power = np.abs(np.fft.fftshift(np.fft.fft2((luma - luma.mean()) * window))) ** 2 / np.square(window).sum()
    return np.log10(power + 1e-6)


def radial_mean(spectrum: np.ndarray, bins: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Frequencies in cycles per pixel (0 to 0.5) and the mean of a log spectrum (H, W) over rings around the middle."""
    y, x = (np.fft.fftshift(np.fft.fftfreq(side)) for side in spectrum.shape)
    radius = np.hypot(y[:, None], x)
    ring = np.minimum((radius * 2 * bins).astype(int), bins)  # the last takes the corners, and is left out
    sums = np.bincount(ring.ravel(), spectrum.ravel(), bins + 1)
    counts = np.bincount(ring.ravel(), minlength=bins + 1)
    filled = counts[:bins] > 0
    return ((np.arange(bins) + 0.5) / (2 * bins))[filled], sums[:bins][filled] / counts[:bins][filled]


def caption(scores: Scores, with_blocks: bool) -> str:
    """PSNR and SSIM, and PSNR-B where blocks are the matter."""
    text = f"{scores['psnr']:.2f} dB  {scores['ssim']:.4f}"
    return f"{text}  B {scores['psnrb']:.2f}" if with_blocks else text


class _Sheet:
    """Panels placed in pixels from the upper left corner; `draw` makes the figure when the size is known."""

    def __init__(self):
        self.panels = []
        self.texts = []
        self.width = 0
        self.height = 0

    def panel(self, x: float, y: float, width: float, height: float, fill) -> None:
        """`fill(axes)` will draw into this box."""
        self.panels.append((x, y, width, height, fill))
        self.width, self.height = max(self.width, x + width), max(self.height, y + height)

    def text(self, x: float, y: float, text: str, **style) -> None:
        self.texts.append((x, y, text, style))
        self.height = max(self.height, y + _LINE)

    def draw(self) -> Figure:
        width = self.width + _GAP
        height = self.height + _GAP
        figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
        for x, y, wide, high, fill in self.panels:
            fill(figure.add_axes((x / width, 1 - (y + high) / height, wide / width, high / height)))
        for x, y, text, style in self.texts:
            options = {"fontsize": _FONT, "ha": "center", "va": "top"} | style
            figure.text(x / width, 1 - y / height, text, **options)
        return figure


def _shown(image: np.ndarray, **options: Any) -> Callable[[Axes], None]:
    given = {"cmap": "gray", "vmin": 0, "vmax": 255} | options

    def fill(axes: Axes) -> None:
        axes.imshow(image, **given)
        axes.set(xticks=[], yticks=[])

    return fill


def _whole(row: Row):
    def fill(axes: Axes) -> None:
        axes.imshow(row.clean, cmap="gray", vmin=0, vmax=255)
        x, y, width, height = row.crop
        axes.add_patch(Rectangle((x - 0.5, y - 0.5), width, height, fill=False, color="red", linewidth=1))
        axes.set(xticks=[], yticks=[])

    return fill


def _bar(norm: Normalize, cmap: str, label: str, extend: str = "neither"):
    def fill(axes: Axes) -> None:
        bar = axes.figure.colorbar(ScalarMappable(norm, cmap), cax=axes, extend=extend)
        bar.set_label(label, fontsize=_FONT)
        axes.tick_params(labelsize=_FONT)

    return fill


def _curves(spectra: dict[str, np.ndarray]):
    def fill(axes: Axes) -> None:
        for name, spectrum in spectra.items():
            color = "black" if name == "truth" else None  # None: the next one of the cycle
            axes.plot(*radial_mean(spectrum), label=in_figure(name), linewidth=1, color=color)
        axes.set_xlabel("cycles / pixel", fontsize=_FONT)
        axes.set_ylabel("log10 power", fontsize=_FONT)
        axes.tick_params(labelsize=_FONT)
        axes.legend(fontsize=_FONT - 3, frameon=False, labelspacing=0.1, handlelength=1)

    return fill


def draw(rows: Sequence[Row], *, errors: bool, spectra: bool, blocks: bool, zoom: int | None = None) -> Figure:
    """The figure.

    Args:
        rows: the images, each with the same versions in the same order.
        errors: a line of error maps below each image's crops, all on one scale.
        spectra: a line of log power spectra of the whole images, all on one scale, and their radial means.
        blocks: PSNR-B too.
        zoom: figure pixels for each pixel of a crop; chosen by default.
    """
    sheet = _Sheet()
    lines = 1 + errors + spectra
    zooms = [zoom or -(-PANEL // max(row.crop[2:])) for row in rows]
    sizes = [(row.crop[2] * scale, row.crop[3] * scale) for row, scale in zip(rows, zooms, strict=True)]
    column = max(PANEL, *(width for width, _ in sizes)) + _GAP
    overviews = [
        min(round(high * row.clean.shape[1] / row.clean.shape[0]), 2 * high)
        for row, (_, high) in zip(rows, sizes, strict=True)
    ]
    first = max(*overviews, 1.3 * PANEL if spectra else 0.8 * PANEL) + 2 * _GAP
    bar_x = first + column * len(rows[0].versions())
    maps = [[error_map(cut(v.pixels, row.crop), cut(row.clean, row.crop)) for v in row.shown] for row in rows]
    # The input is often far worse than the rest and would leave one color for all of them.
    restored = [
        one for row, found in zip(rows, maps, strict=True) for v, one in zip(row.shown, found) if not v.degraded
    ]
    pooled = np.concatenate([one.ravel() for one in restored or maps[0]])
    largest = max(float(np.quantile(pooled, 0.995)), 1.0)
    y = _GAP
    for number, version in enumerate(rows[0].versions()):
        sheet.text(first + column * number + sizes[0][0] / 2, y, version.name, weight="bold", parse_math=False)
    y += _LINE
    for row, (wide, high), overview, found in zip(rows, sizes, overviews, maps, strict=True):
        sheet.panel((first - _GAP - overview) / 2, y, overview, high, _whole(row))
        sheet.text((first - _GAP) / 2, y + high + 3, row.title, parse_math=False)  # dollars of a file's name stay
        for number, version in enumerate(row.versions()):
            x = first + column * number
            sheet.panel(x, y, wide, high, _shown(cut(version.pixels, row.crop), interpolation="none"))
            if version.scores is not None:
                sheet.text(x + wide / 2, y + high + 3, caption(version.scores, blocks))
        y += high + _LINE + _GAP
        if errors:
            for number, one in enumerate(found):
                fill = _shown(one, cmap="inferno", vmin=0, vmax=largest, interpolation="none")
                sheet.panel(first + column * number, y, wide, high, fill)
            label = "absolute error, 8-bit steps"
            sheet.panel(bar_x, y, 14, high, _bar(Normalize(0, largest), "inferno", label, "max"))
            y += high + _GAP
        if spectra:
            y += _add_spectra(sheet, row, y, (wide, high), first, column) + _GAP
        y += _GAP if lines > 1 else 0
    sheet.width = bar_x + (_BAR if lines > 1 else 0)
    return sheet.draw()


def _add_spectra(sheet: _Sheet, row: Row, y: float, size: tuple[int, int], first: float, column: float) -> float:
    """One line of spectra and the plot of their radial means; returns its height in pixels."""
    wide, high = (max(side, PANEL // 2) for side in size)  # of the whole image, however flat the crop: labels fit
    found = {version.name: log_spectrum(version.pixels) for version in row.versions()}
    low, top = np.quantile(found["truth"], [0.01, 0.9999])
    for number, spectrum in enumerate(found.values()):
        fill = _shown(spectrum, cmap="viridis", vmin=low, vmax=top, aspect="auto")
        sheet.panel(first + column * number, y, wide, high, fill)
    bar_x = first + column * len(found)
    sheet.panel(bar_x, y, 14, high, _bar(Normalize(low, top), "viridis", "log10 power", "both"))
    left, below = _PLOT
    sheet.panel(_GAP + left, y, first - 3 * _GAP - left, high - below, _curves(found))
    return high
