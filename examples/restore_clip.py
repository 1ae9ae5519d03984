"""Restore a clip: a photograph that a camera pans over, with noise in every frame, in a file of MP4.

Needs `pip install 'vheatir[video]' scikit-image`. Takes about ten seconds on one processor core.
"""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import skimage.data

import vheatir
from vheatir.metrics.fidelity import psnr


def write(path: Path, frames: list[np.ndarray]) -> None:
    """uint8 frames (H, W, 3) as H.264, 24 to a second."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=Fraction(24), options={"crf": "1"})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv444p"
        for frame in frames:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        output.mux(stream.encode(None))


def read(path: Path) -> list[np.ndarray]:
    """uint8 frames (H, W, 3)."""
    with av.open(str(path)) as clip:
        return [frame.to_ndarray(format="rgb24") for frame in clip.decode(video=0)]


def main(folder: Path, size: int = 192, count: int = 12, sigma: float = 25.0) -> tuple[float, float]:
    """Mean PSNR in dB of the frames before and after restoring `folder`/noisy.mp4 to `folder`/restored.mp4."""
    photo = skimage.data.chelsea()
    clean = [photo[:size, 2 * number : 2 * number + size] for number in range(count)]
    rng = np.random.default_rng(0)
    noisy = [np.rint((frame + rng.normal(0, sigma, frame.shape)).clip(0, 255)).astype(np.uint8) for frame in clean]
    write(folder / "noisy.mp4", noisy)

    vheatir.restore(folder / "noisy.mp4", folder / "restored.mp4", task="denoise")  # stays where it exists already

    before, after = (
        float(np.mean([psnr(frame, target) for frame, target in zip(read(folder / name), clean, strict=True)]))
        for name in ("noisy.mp4", "restored.mp4")
    )
    print(f"noisy {before:.2f} dB, restored {after:.2f} dB")
    return before, after


if __name__ == "__main__":
    main(Path())
