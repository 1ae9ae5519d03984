"""Which files are clips, and what is written of them; loads neither PyAV nor PyTorch."""

from pathlib import PurePath
from typing import NamedTuple

from vheatir.errors import UserError
from vheatir.image_io.formats import FORMATS
from vheatir.image_io.formats import written_name as written_image_name
from vheatir.restore.locations import Location


class Container(NamedTuple):
    """What a clip is written as.

    Attributes:
        format: FFmpeg's name of the container.
        encoder: of the frames.
        options: of the encoder, beside the quality.
    """

    format: str
    encoder: str
    options: dict[str, str]


_H264 = ("libx264", {"preset": "fast"})
_VP9 = ("libvpx-vp9", {"b": "0", "deadline": "good", "cpu-used": "4", "auto-alt-ref": "0", "lag-in-frames": "0"})
WRITTEN = {
    ".mp4": Container("mp4", *_H264),
    ".m4v": Container("mp4", *_H264),
    ".mov": Container("mov", *_H264),
    ".mkv": Container("matroska", *_H264),
    ".webm": Container("webm", *_VP9),
}
_READ = (".avi", ".3gp", ".flv", ".m2ts", ".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".wmv")
_WRITTEN_AS = ".mkv"  # what is only read
CLIPS = (*WRITTEN, *_READ)
RESTORED = (*FORMATS, *CLIPS)  # suffixes of all that is restored


def is_clip(where: Location | PurePath) -> bool:
    """Whether a file's suffix is that of a clip."""
    return where.suffix.lower() in CLIPS


def written_name(path: PurePath) -> PurePath:
    """The name of the result made from an image or a clip: its own, with another suffix where that is only read."""
    if not is_clip(path):
        return written_image_name(path)
    return path if path.suffix.lower() in WRITTEN else path.with_suffix(_WRITTEN_AS)


def container_of(path: PurePath) -> Container:
    """What a clip with this name is written as; UserError where its suffix is none that is written."""
    try:
        return WRITTEN[path.suffix.lower()]
    except KeyError:
        raise UserError(
            f"{path}: clips are written as {', '.join(WRITTEN)}, not {path.suffix!r}; give such a name"
        ) from None
