"""Text restored: pages, a dark screen, small colored letters and a caption, as JPEG of five qualities and clean.

    python benchmarks/text_crops.py --json results/text_crops.json -o docs/images/text_crops.webp

The letters are those of DejaVu, which comes with matplotlib; training draws others (vheatir.data.drawn_text). A caption
is on a photograph of scikit-image; this one and another without text are the control. PSNR in dB over the three
channels of 256x384 pixels, 8 bits; JPEG is Pillow's with 4:2:0. The sheet shows quality 30 as it came, restored by
`jpeg` and by `photo`, and the truth.
"""

import argparse
import io
import sys
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import skimage.data
from photo_crops import Row, psnr, save_below, sheet
from PIL import Image, ImageDraw, ImageFont

from vheatir import Restorer
from vheatir.cli import run
from vheatir.image_io import to_float, to_uint8
from vheatir.utils.run_metadata import prepare_output, run_metadata, write_json

_HEIGHT, _WIDTH = 256, 384
_QUALITIES = (10, 30, 50, 75, 90)
_SHOWN, _SIDE = 30, 176  # quality and pixels of the crops
_MOST_BYTES = 300_000
_TEXT = (
    "Heat flows from warm to cold, and in time every difference is gone. What is left of a frequency after a while "
    "is an exponential of its square, 0123456789, so that fine detail goes first & broad shading last. "
)


def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf", size)


def _page(background: str, colors: tuple[str, ...], size: int, name: str = "DejaVuSans") -> np.ndarray:
    """uint8 RGB of a page full of text, whose lines take the colors in turn."""
    image = Image.new("RGB", (_WIDTH, _HEIGHT), background)
    draw, font = ImageDraw.Draw(image), _font(name, size)
    for line, top in enumerate(range(4, _HEIGHT, size + 6)):
        start = 37 * line % len(_TEXT)
        draw.text((6, top), (_TEXT + _TEXT)[start : start + 80], colors[line % len(colors)], font)
    return np.asarray(image)


def _photograph(name: str) -> np.ndarray:
    return np.ascontiguousarray(getattr(skimage.data, name)()[40 : 40 + _HEIGHT, 60 : 60 + _WIDTH])


def _captioned() -> np.ndarray:
    image = Image.fromarray(_photograph("coffee"))
    draw, font = ImageDraw.Draw(image), _font("DejaVuSans-Bold", 22)
    draw.text((60, 12), "COFFEE AT 8 O'CLOCK", "white", font, stroke_width=2, stroke_fill="black")
    draw.text((150, 222), "photo: R. Michals", "yellow", _font("DejaVuSans", 12))
    return np.asarray(image)


def scenes() -> dict[str, np.ndarray]:
    """What is restored, by its name."""
    return {
        "black on white, 13 pixels": _page("white", ("black",), 13),
        "light on dark, 14 pixels": _page("#1e1e28", ("#e6e6e6", "#7fd0ff", "#ffb86c"), 14, "DejaVuSansMono"),
        "red and blue on white, 11 pixels": _page("white", ("#c80000", "#0030c0"), 11),
        "caption on a photograph": _captioned(),
        "coffee, no text": _photograph("coffee"),
        "chelsea, no text": _photograph("chelsea"),
    }


def as_jpeg(image_u8: np.ndarray, quality: int) -> np.ndarray:
    """The image through a JPEG file of that quality."""
    file = io.BytesIO()
    Image.fromarray(image_u8).save(file, "JPEG", quality=quality, subsampling="4:2:0")
    return np.asarray(Image.open(file))


def measured(
    truth: np.ndarray, restorers: dict[str, Restorer], qualities: list[int]
) -> tuple[dict[str, Any], list[np.ndarray]]:
    """PSNR at each quality before and after, of the clean image after; and the crops of the sheet.

    Args:
        truth: uint8 RGB.
        restorers: by their task.
        qualities: of JPEG.
    """
    found: dict[str, Any] = {}
    crops: list[np.ndarray] = []
    for quality in sorted({*qualities, _SHOWN}):
        seen = as_jpeg(truth, quality)
        results = {task: to_uint8(restorer.restore(to_float(seen))) for task, restorer in restorers.items()}
        found[str(quality)] = {"input": psnr(seen, truth)} | {task: psnr(one, truth) for task, one in results.items()}
        if quality == _SHOWN:
            crops = [one[:_SIDE, :_SIDE] for one in (seen, *results.values(), truth)]
    found["clean"] = {
        task: psnr(to_uint8(restorer.restore(to_float(truth))), truth) for task, restorer in restorers.items()
    }
    return found, crops


def main(argv: list[str]) -> int:
    """Entry."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, help="WebP file to write the sheet to")
    parser.add_argument("--json", type=Path, required=True, help="where to write the figures")
    parser.add_argument("--qualities", type=int, nargs="+", default=_QUALITIES, help="of JPEG (default: %(default)s)")
    parser.add_argument("--jpeg-weights", metavar="NAME", help="others than those of the task jpeg")
    parser.add_argument("--photo-weights", metavar="NAME", help="others than those of the task photo")
    arguments = parser.parse_args(argv)
    prepare_output(arguments.json)
    restorers = {
        "jpeg": Restorer("jpeg", arguments.jpeg_weights),
        "photo": Restorer("photo", arguments.photo_weights),
    }
    results, rows = {}, []
    for title, truth in scenes().items():
        results[title], crops = measured(truth, restorers, arguments.qualities)
        if "no text" not in title:
            rows.append(Row(title, crops))
        for level, scores in results[title].items():
            sys.stdout.write(f"{title}, {level}: {', '.join(f'{name} {db:.2f}' for name, db in scores.items())}\n")
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        save_below(sheet(rows, ("JPEG of quality 30", "jpeg", "photo", "truth")), arguments.output, _MOST_BYTES)
    write_json(arguments.json, {"scenes": results, "metadata": run_metadata(["python", *sys.argv])})
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
