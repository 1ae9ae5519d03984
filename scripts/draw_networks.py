"""Draws the operator and the networks as SVG: docs/images/operator.svg, vheatir.svg and vheatunet.svg.

    python scripts/draw_networks.py [--out docs/images]

Standard library only. The sizes of the U-shaped network are those of options/denoise_light.yml.
"""

import argparse
from pathlib import Path
from xml.sax.saxutils import escape

ROOT = Path(__file__).resolve().parent.parent
CONV, HEAT, PLAIN, IO = "#cfe3f5", "#f9d5bb", "#eeeeee", "#ffffff"  # fills: convolution, heat, other, image
BOX_H = 40


class Drawing:
    """Boxes, arrows and labels on a white ground; lengths in pixels."""

    def __init__(self, width: int, height: int, title: str):
        self.parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
            ' font-family="Helvetica, Arial, sans-serif" font-size="13" text-anchor="middle">',
            f"<title>{escape(title)}</title>",
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
            '<path d="M0 0L8 4L0 8z" fill="#444"/></marker></defs>',
            f'<rect width="{width}" height="{height}" fill="white"/>',
        ]

    def box(self, x: float, y: float, width: float, lines: str, fill: str, height: float = BOX_H) -> None:
        """A box with its upper left corner at (x, y); `lines` are split at newlines."""
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="4" fill="{fill}" stroke="#444"/>'
        )
        self.text(x + width / 2, y + height / 2, lines)

    def text(self, x: float, y: float, lines: str, size: int = 13, fill: str = "#111") -> None:
        """Centered lines around (x, y)."""
        rows = lines.split("\n")
        for row, line in enumerate(rows):
            at = y + (row - (len(rows) - 1) / 2) * (size + 3) + size * 0.35
            self.parts.append(f'<text x="{x:g}" y="{at:g}" font-size="{size}" fill="{fill}">{escape(line)}</text>')

    def arrow(self, *points: tuple[float, float], dashed: bool = False) -> None:
        """A line through the points with a tip at the last."""
        path = "L".join(f"{x:g} {y:g}" for x, y in points)
        dash = ' stroke-dasharray="4 3"' if dashed else ""
        self.parts.append(f'<path d="M{path}" fill="none" stroke="#444"{dash} marker-end="url(#tip)"/>')

    def chain(
        self, x: float, y: float, boxes: list[tuple[str, str, int]], gap: float = 26
    ) -> list[tuple[float, float]]:
        """Boxes (text, fill, width) from left to right with arrows between; returns (left, right) of each."""
        edges = []
        for lines, fill, width in boxes:
            if edges:
                self.arrow((edges[-1][1], y + BOX_H / 2), (x, y + BOX_H / 2))
            self.box(x, y, width, lines, fill)
            edges.append((x, x + width))
            x += width + gap
        return edges

    def add(self, x: float, y: float) -> None:
        """A circled plus sign at (x, y)."""
        self.parts.append(f'<circle cx="{x:g}" cy="{y:g}" r="9" fill="white" stroke="#444"/>')
        self.text(x, y, "+", 15)

    def svg(self) -> str:
        return "\n".join([*self.parts, "</svg>", ""])


def draw_operator() -> str:
    drawing = Drawing(760, 190, "The heat conduction operator")
    y = 60
    edges = drawing.chain(
        20,
        y,
        [
            ("x\n(B, H, W, C)", IO, 100),
            ("DCT-II\nover H and W", CONV, 120),
            ("multiply each\nfrequency", HEAT, 130),
            ("inverse DCT\nover H and W", CONV, 120),
            ("y\n(B, H, W, C)", IO, 100),
        ],
        gap=34,
    )
    middle = sum(edges[2]) / 2
    drawing.box(middle - 120, 130, 240, "decay = exp(-k (w_h² + w_w²))\n(H, W, C), diffusivity k ≥ 0", PLAIN)
    drawing.arrow((middle, 130), (middle, y + BOX_H))
    drawing.text(380, 24, "Heat conduction: every position is mixed with all others in O(N log N)", 15)
    return drawing.svg()


def draw_vheatir() -> str:
    drawing = Drawing(900, 400, "The network VHeatIR")
    drawing.text(450, 22, "VHeatIR", 16)
    y = 70
    edges = drawing.chain(
        16,
        y,
        [
            ("image", IO, 60),
            ("3 × 3", CONV, 60),
            ("residual\nheat group", HEAT, 90),
            ("…", PLAIN, 34),
            ("residual\nheat group", HEAT, 90),
            ("norm, 3 × 3", CONV, 90),
            ("3 × 3\nfrom zero", CONV, 84),
            ("restored", IO, 76),
        ],
        gap=38,
    )
    line = y + BOX_H / 2
    for left, right, height in ((edges[1][1], edges[6][0], 44), (edges[0][1], edges[7][0], 132)):
        top = y - 18 if height == 44 else y + 66
        start, end = left + 12, right - 18
        drawing.arrow((start, line), (start, top), (end, top), (end, line + (-9 if top < line else 9)))
        drawing.add(end, line)
    note = "with downscale > 1: pixel unshuffle before the first and pixel shuffle after the last convolution"
    drawing.text(450, 158, note, 12)

    drawing.text(450, 200, "Block of a group: x + heat layer(norm(x)), then x + MLP(norm(x))", 13)
    drawing.text(450, 226, "Heat layer:", 13)
    y = 250
    edges = drawing.chain(
        60,
        y,
        [
            ("depthwise\n3 × 3", CONV, 80),
            ("linear\nC → 2C", PLAIN, 70),
            ("heat\nconduction", HEAT, 96),
            ("norm", PLAIN, 56),
            ("multiply", PLAIN, 76),
            ("linear\nC → C", PLAIN, 70),
        ],
        gap=44,
    )
    split, product = edges[1][1] + 14, sum(edges[4]) / 2
    drawing.arrow((split, y + 20), (split, y + 66), (product, y + 66), (product, y + BOX_H))
    drawing.text((split + product) / 2, y + 78, "SiLU(z)", 12)
    drawing.box(180, 350, 330, "k = ReLU(linear(frequency embedding)) → decay", PLAIN, 34)
    heat = sum(edges[2]) / 2
    drawing.arrow((heat, 350), (heat, y + BOX_H), dashed=True)
    return drawing.svg()


def _blocks(number: int) -> str:
    return "1 block" if number == 1 else f"{number} blocks"


def draw_vheatunet() -> str:
    drawing = Drawing(900, 560, "The network VHeatUNet")
    drawing.text(450, 22, "VHeatUNet, as in options/denoise_light.yml", 16)
    rows = [("H × W, 32 channels", 1, 1), ("H/2 × W/2, 64", 1, 2), ("H/4 × W/4, 128", 3, 2)]
    for stage, (size, down, up) in enumerate(rows):
        color = HEAT if stage == 2 else PLAIN
        y, left, right = 60 + 80 * stage, 170 + 60 * stage, 640 - 60 * stage
        drawing.box(left, y, 110, f"{_blocks(down)}\n{size.split(',')[0]}", color)
        drawing.box(right, y, 110, _blocks(up), color)
        drawing.arrow((left + 110, y + 20), (right, y + 20), dashed=True)
        drawing.text((left + right + 110) / 2, y + 10, f"added, {size.split(', ')[1]}", 12)
        below = y + 80 if stage < 2 else y + 74
        drawing.arrow((left + 80, y + BOX_H), (left + 80, below))
        drawing.text(left - 26, y + 62, "2 × 2, stride 2", 11)
        drawing.arrow((right + 30, below), (right + 30, y + BOX_H))
        drawing.text(right + 122, y + 62, "linear, pixel shuffle", 11)
    drawing.box(330, 294, 250, "2 blocks, H/8 × W/8, 256 channels", HEAT)
    drawing.chain(16, 60, [("image", IO, 56), ("3 × 3", CONV, 56)], gap=16)
    drawing.arrow((144, 80), (170, 80))
    drawing.chain(772, 60, [("3 × 3", CONV, 44), ("+ image", IO, 62)], gap=16)
    drawing.arrow((750, 80), (772, 80))

    drawing.text(450, 372, "Block: both branches are added to their input, scaled per channel from zero", 13)
    norm, wide, narrow = ("norm", PLAIN, 52), ("linear\nC → 2C", PLAIN, 66), ("linear\nC → C", PLAIN, 66)
    depthwise, gate = ("depthwise\n3 × 3", CONV, 76), ("multiply\nhalves", PLAIN, 68)
    attention = ("heat attention\n(orange stages)", HEAT, 112)
    drawing.chain(100, 396, [norm, wide, depthwise, gate, attention, narrow], gap=28)
    drawing.chain(100, 452, [norm, wide, gate, narrow], gap=34)
    note = "Heat attention: y · linear(heat conduction of y), one learned diffusivity k for each channel"
    drawing.text(450, 522, note, 13)
    return drawing.svg()


DRAWINGS = {"operator.svg": draw_operator, "vheatir.svg": draw_vheatir, "vheatunet.svg": draw_vheatunet}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images", help="folder for the drawings")
    out = parser.parse_args(argv).out
    out.mkdir(parents=True, exist_ok=True)
    for name, draw in DRAWINGS.items():
        (out / name).write_text(draw(), encoding="utf-8")


if __name__ == "__main__":
    main()
