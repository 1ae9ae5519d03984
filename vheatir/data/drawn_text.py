"""Text and shapes drawn on training crops: screenshots, pages, captions and signs, which sets of photographs lack."""

import string
from functools import cache

import cv2
import numpy as np
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont

_LETTERS = string.ascii_lowercase * 3 + string.ascii_uppercase + string.digits + "  .,:;-+=/()%&?!@#"
_SMALLEST = 8  # pixels, height of letters
_LARGEST = 48
_LONGEST = 40  # letters of a line
_STROKED_FONTS = (cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_DUPLEX, cv2.FONT_HERSHEY_COMPLEX, cv2.FONT_HERSHEY_TRIPLEX)
_STROKED_HEIGHT = 22  # pixels, of their letters at scale 1


def draw_text(image_u8: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A copy of a crop with lines of text and shapes on it, in half of the cases on a page of one or two colors.

    Args:
        image_u8: (H, W, 3) RGB or (H, W) gray, uint8.
        rng: chooses everything: letters, sizes from 8 to 48 pixels, colors, angles.
    """
    height, width = image_u8.shape[:2]
    canvas = _page(height, width, rng) if rng.random() < 0.5 else _color_of(image_u8).copy()
    for _ in range(int(rng.integers(4))):
        _draw_shape(canvas, rng)
    size = _SMALLEST * (_LARGEST / _SMALLEST) ** rng.random()
    color = _strong_color(rng)
    angle = float(rng.uniform(-90, 90)) if rng.random() < 0.3 else 0.0
    top = int(rng.integers(-int(size), height))
    spacing = size * rng.uniform(1.1, 2.0)
    for line in range(int(rng.integers(1, 9))):
        color = _strong_color(rng) if rng.random() < 0.2 else color
        place = (int(rng.integers(-width // 2, width)), round(top + line * spacing))
        mask = _written(height, width, place, size, rng)
        if angle:
            turn = cv2.getRotationMatrix2D((width / 2, height / 2), angle, 1)
            mask = cv2.warpAffine(mask, turn, (width, height), flags=cv2.INTER_LINEAR)
        share = mask[..., None].astype(np.float32) / 255
        canvas = np.rint(canvas + share * (color.astype(np.float32) - canvas)).astype(np.uint8)
    return cv2.cvtColor(canvas, cv2.COLOR_RGB2GRAY) if image_u8.ndim == 2 else canvas


def _color_of(image_u8: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(image_u8, cv2.COLOR_GRAY2RGB) if image_u8.ndim == 2 else image_u8


def _page(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """One color, most often a light or a dark gray, or a gradient between two."""
    kind = rng.random()
    if kind < 0.6:
        gray = int(rng.integers(225, 256)) if rng.random() < 0.7 else int(rng.integers(0, 60))
        return np.full((height, width, 3), gray, np.uint8)
    first, last = rng.integers(0, 256, (2, 3))
    if kind < 0.85:
        last = first
    share = np.linspace(0, 1, height)[:, None, None]
    return np.rint(np.broadcast_to(first + share * (last - first), (height, width, 3))).astype(np.uint8)


def _strong_color(rng: np.random.Generator) -> np.ndarray:
    """Black, white, or any color: RGB."""
    kind = rng.random()
    if kind < 0.3:
        return np.zeros(3, np.uint8)
    return np.full(3, 255, np.uint8) if kind < 0.5 else rng.integers(0, 256, 3).astype(np.uint8)


def _draw_shape(canvas: np.ndarray, rng: np.random.Generator) -> None:
    """A line, a frame, a filled box, a disk or a triangle, with or without smooth edges."""
    height, width = canvas.shape[:2]
    color = [int(value) for value in _strong_color(rng)]
    points = np.stack([rng.integers(0, width, 3), rng.integers(0, height, 3)], axis=1)
    first, second = (tuple(map(int, point)) for point in points[:2])
    smooth = cv2.LINE_AA if rng.random() < 0.5 else cv2.LINE_8
    thick = int(rng.integers(1, 4))
    kind = int(rng.integers(5))
    if kind == 0:
        cv2.line(canvas, first, second, color, thick, smooth)
    elif kind in (1, 2):
        cv2.rectangle(canvas, first, second, color, thick if kind == 1 else cv2.FILLED, smooth)
    elif kind == 3:
        cv2.circle(canvas, first, int(rng.integers(2, max(3, min(height, width) // 3))), color, cv2.FILLED, smooth)
    else:
        cv2.fillPoly(canvas, [points.astype(np.int32)], color, smooth)


def _written(height: int, width: int, place: tuple[int, int], size: float, rng: np.random.Generator) -> np.ndarray:
    """uint8 (height, width), 255 where ink is: one line of random letters in one of five fonts.

    Args:
        height: of the crop.
        width: likewise.
        place: x and y of the line's upper left corner, perhaps outside the crop.
        size: of the letters, pixels.
        rng: chooses letters and font.
    """
    letters = "".join(rng.choice(list(_LETTERS), int(rng.integers(3, _LONGEST))))
    if rng.random() < 0.6:
        mask = Pillow.new("L", (width, height))
        ImageDraw.Draw(mask).text(place, letters, fill=255, font=_font(round(size)))
        return np.array(mask)
    mask = np.zeros((height, width), np.uint8)
    font = _STROKED_FONTS[int(rng.integers(len(_STROKED_FONTS)))]
    thick = int(rng.integers(1, max(2, round(size / 10) + 1)))
    at = (place[0], place[1] + round(size))  # OpenCV takes the base line
    return cv2.putText(mask, letters, at, font, size / _STROKED_HEIGHT, 255, thick, cv2.LINE_AA)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """Pillow's own outline font."""
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise RuntimeError("this Pillow is built without FreeType, which text_probability needs; install a wheel of it")
    return font
