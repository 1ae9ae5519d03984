"""Frames of a clip as RGB, one after the other, and all that has to be carried over to the result."""

import itertools
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from vheatir.errors import UserError
from vheatir.image_io.optional import library
from vheatir.restore.video.colors import BT709, FULL, LIMITED, Coding, to_rgb

WHOLE = {8: "yuv444p", 10: "yuv444p16le"}  # bits of a sample: format in which all planes have the size of the frame
_EIGHT_BITS = 8
_MOST_BITS = 10  # of H.264 and VP9 as they are written here
_USUAL_RATE = 25  # frames per second, where a file says nothing
_LOST_SECONDS = Fraction(1, 4)  # and frames, that may lie between the last frame and the stated length
_LOST_FRAMES = 3
_BACK = 2  # frames by which times must go back to count as beginning anew
_CLOCK = re.compile(r"(\d+):(\d{2}):(\d{2}(?:\.\d+)?)")
_DISPLAY = "DISPLAYMATRIX"
_HDR = ("MASTERING_DISPLAY_METADATA", "CONTENT_LIGHT_LEVEL", "DYNAMIC_HDR_PLUS", "DOVI_METADATA")


@dataclass(frozen=True)
class Look:
    """How the frames of a clip are stored and shown.

    Attributes:
        width: in pixels, as stored.
        height: likewise.
        pixel_format: FFmpeg's name of the one to write.
        coding: matrix and range of the colors.
        primaries: of the colors, by FFmpeg's numbers.
        transfer: characteristic, likewise.
        aspect: width of a pixel over its height; None where nothing is said.
        display: the matrix that turns the frames when they are shown, nine integers; None for none.
    """

    width: int
    height: int
    pixel_format: str
    coding: Coding
    primaries: int
    transfer: int
    aspect: Fraction | None
    display: tuple[int, ...] | None


@dataclass(frozen=True)
class Frame:
    """A frame on its way.

    Attributes:
        pixels: float32 (H, W, 3), RGB in [0, 1]; beyond where the file has numbers below black or above white.
        pts: when it is shown, in units of the clip's time base.
        duration: how long, likewise; 0 where that is not known.
    """

    pixels: np.ndarray
    pts: int
    duration: int


class Clip:
    """A clip in a file: what it is, and the frames of its first video stream.

    Args:
        path: of the file.
        max_pixels: frames of more are refused.

    Attributes:
        look: how frames are stored and shown.
        rate: frames per second, on average.
        time_base: seconds, the unit of times.
        count: frames as the file says, or as follows from its length; 0 where nothing is known.
        notes: what is not kept.
        damaged: numbers of the frames, of those that were read, of which the decoder had to conceal parts.
        breaks_off: whether the last packet could not be decoded.
        stated: length of the video in seconds, as the file says; None where it does not.
        length: of what was read so far, likewise.
        late: what is added to all times, in units of the time base, where the first one lies before zero, as where the
            clock of a broadcast runs over; segments and many players know no such times.
        last: how long the frame that was read last is shown, in units of the time base.
        jumps: what is added to times, in units of the time base, since the first, second ... place where they begin
            anew, as they do in several .mts files put together.

    Raises:
        UserError: PyAV is missing, or this is no clip that can be read.
    """

    def __init__(self, path: Path, max_pixels: int):
        self.path = path
        self.av: Any = library("av", "video", str(path))
        self.notes: list[str] = []
        self.damaged: set[int] = set()
        self.breaks_off = False
        self.length = Fraction(0)
        self.last = 0
        self.jumps: list[int] = []
        with self._opened() as (container, stream):
            with self._errors("its first frame cannot be decoded"):
                first = next(container.decode(stream), None)
            if first is None:
                raise UserError(f"{path}: its video stream holds no frame that can be decoded; the file is damaged")
            if first.width * first.height > max_pixels:
                raise UserError(
                    f"{path}: frames of {first.width}x{first.height} pixels, more than the limit of "
                    f"{max_pixels / 1e6:g} megapixels; raise the limit if the file can be trusted"
                )
            self.look = self._look(first, stream)
            self.rate: Fraction = stream.average_rate or stream.guessed_rate or Fraction(_USUAL_RATE)
            self.time_base: Fraction = stream.time_base or 1 / self.rate
            self.late = max(0, -(first.pts or 0))
            self.count = self._count(container, stream)
            self._may_jump = bool(self.av.format.Flags.ts_discont & self.av.format.Flags(container.format.flags))
            # Matroska counts from 0, not from the first frame, and has one length for all streams beside the tags.
            self._from_zero = "matroska" in container.format.name
            self._start = 0 if self._from_zero else self._start_of(first, stream)
            self.stated = _stated(stream, by_tag_only=self._from_zero and len(container.streams) > 1)

    @contextmanager
    def _opened(self) -> Iterator[tuple[Any, Any]]:
        """Container and video stream, at the first frame."""
        # Off is PyAV's default, but torchvision up to 0.24 turns its log on. A decoder's thread that logs waits for
        # Python's lock, which the main thread holds while it waits for that thread to end: neither goes on.
        self.av.logging.set_level(None)
        with self._errors("is no clip that can be read"):
            container = self.av.open(str(self.path))
        with container:
            stream = self.video_of(container)
            if stream is None:
                raise UserError(f"{self.path}: holds no video stream; give a file with one")
            # Threads of frames lose several where the last packet is cut, and one thread is fast beside the network.
            stream.thread_type = "SLICE"
            yield container, stream

    def video_of(self, container: Any) -> Any:
        """The first stream of moving images in a container of PyAV, None where there is none; covers are none."""
        cover = self.av.stream.Disposition.attached_pic
        return next((one for one in container.streams.video if not one.disposition & cover), None)

    @contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except (self.av.error.FFmpegError, OSError, ValueError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"{self.path}: {what} ({reason}); the file is damaged or of an unknown kind") from error

    def _look(self, frame: Any, stream: Any) -> Look:
        if max(part.bits for part in frame.format.components) > _MOST_BITS:
            self.notes.append(f"{frame.format.name} is written with {_MOST_BITS} bits")
        # The alpha of VP8 and VP9 is a picture of its own, which FFmpeg's decoders pass over.
        beside = {key.lower(): value for key, value in stream.metadata.items()}.get("alpha_mode") == "1"
        if beside or any(part.is_alpha for part in frame.format.components):
            self.notes.append("transparency is not kept")
        if frame.interlaced_frame:
            self.notes.append("the frames are interlaced and restored as they are; better deinterlace them before")
        kinds = {str(part.type).rpartition(".")[2] for part in frame.side_data}
        if kinds & set(_HDR):
            self.notes.append("metadata of HDR beside the color tags is not kept")
        if "SPHERICAL" in kinds or _is_stereo(frame):
            self.notes.append("what it says of 360 degree or stereo views is not kept; players will show it flat")
        display = None
        if _DISPLAY in kinds:
            display = tuple(np.frombuffer(bytes(frame.side_data[_DISPLAY]), np.int32).tolist())
        color_range = int(frame.color_range)
        matrix = int(frame.colorspace)
        if _has_no_differences(frame.format):
            color_range = LIMITED
            matrix = BT709
        elif frame.format.name.startswith("yuvj"):
            color_range = FULL
        return Look(
            width=frame.width,
            height=frame.height,
            pixel_format=pixel_format(frame.format, frame.width, frame.height),
            coding=Coding(matrix, color_range, _bits(frame.format), frame.height),
            primaries=int(frame.color_primaries),
            transfer=int(frame.color_trc),
            aspect=stream.sample_aspect_ratio or None,
            display=display,
        )

    def _start_of(self, first: Any, stream: Any) -> int | None:
        """When a recording that may begin amid others begins, in units of the time base, with a note on what is lost.

        Its first frames cannot be decoded where those are missing from which they were predicted.
        """
        if not self._may_jump or stream.start_time is None or first.pts is None:
            return None
        missing = (first.pts - stream.start_time) * self.time_base
        if missing > max(_LOST_SECONDS, _LOST_FRAMES / self.rate):
            text = f"its first {float(missing):.1f} s hold no frame that can be decoded"
            self.notes.append(f"{text}, as where a recording was cut; they are left out")
        return stream.start_time

    def _count(self, container: Any, stream: Any) -> int:
        if stream.frames:
            return stream.frames
        if stream.duration:
            return round(stream.duration * self.time_base * self.rate)
        return round(Fraction(container.duration or 0, self.av.time_base) * self.rate)

    def lost(self) -> str | None:
        """What to say where frames that the file should have are missing at its end; else None."""
        if self.stated is None or self.stated - self.length <= max(_LOST_SECONDS, _LOST_FRAMES / self.rate):
            return "its last frame cannot be decoded; the file is damaged" if self.breaks_off else None
        return (
            f"its frames end after {float(self.length):.1f} of {float(self.stated):.1f} s; the file is damaged or was "
            "not copied to its end"
        )

    def frames(self, first: int = 0) -> Iterator[Frame]:
        """Frames in the order in which they are shown, from number `first` on.

        Raises:
            UserError: a frame cannot be decoded, or has another size than the first.
        """
        self.jumps = []
        step = max(round(1 / (self.rate * self.time_base)), 1)
        times = _Times(step, self.jumps if self._may_jump else None)
        begin = math.inf if self._start is None else self._start
        with self._opened() as (container, stream):
            decoded = self._decoded(container, stream)
            for number in itertools.count():
                with self._errors(f"frame {number} cannot be decoded"):
                    frame = next(decoded, None)
                if frame is None:
                    return
                self._check_size(frame, number)
                pts = times.next(frame.pts)
                begin = min(begin, pts)
                self.last = frame.duration or step
                self.length = (pts + self.last - int(begin)) * self.time_base
                if frame.is_corrupt:
                    self.damaged.add(number)
                if number >= first:
                    with self._errors(f"the colors of frame {number} cannot be converted"):
                        pixels = self._rgb(frame)
                    yield Frame(pixels, pts + self.late, frame.duration or 0)

    def _decoded(self, container: Any, stream: Any) -> Iterator[Any]:
        """Frames of PyAV; without that of the last packet where a file breaks off within it."""
        failed = None
        for packet in container.demux(stream):
            if failed is not None and packet.size:  # there is more: the damage lies amid the clip
                raise failed
            try:
                found = packet.decode()
            except self.av.error.InvalidDataError as error:
                if not packet.size:
                    raise
                failed = error
                continue
            yield from found
        self.breaks_off = failed is not None

    def _check_size(self, frame: Any, number: int) -> None:
        if (frame.width, frame.height) != (self.look.width, self.look.height):
            raise UserError(
                f"{self.path}: frame {number} has {frame.width}x{frame.height} pixels, the first one "
                f"{self.look.width}x{self.look.height}; cut the clip where its size changes"
            )

    def _rgb(self, frame: Any) -> np.ndarray:
        if _has_no_differences(frame.format):
            return _rgb_as_stored(frame)
        coding = self.look.coding
        color_range = unscaled_range(coding)
        planes = frame.to_ndarray(
            format=WHOLE[coding.bits],
            interpolation=interpolation(self.av),
            src_color_range=color_range,
            dst_color_range=color_range,
        )
        return to_rgb(planes if coding.bits == _EIGHT_BITS else planes.transpose(2, 0, 1), coding)


class _Times:
    """Times of frames, made rising where a file's are not.

    Args:
        step: from one frame to the next, on average.
        jumps: receives what is added where times begin anew; None where they cannot.
    """

    def __init__(self, step: int, jumps: list[int] | None):
        self.step = step
        self.jumps = jumps
        self.last: int | None = None
        self.interval = step

    def next(self, stored: int | None) -> int:
        """The time of the next frame; `stored` is what the file says."""
        expected = 0 if self.last is None else self.last + self.interval
        time = stored
        if time is not None and self.jumps:
            time += self.jumps[-1]
        if time is not None and self.last is not None:
            if self.jumps is not None and time <= self.last - _BACK * self.step:
                self.jumps.append(expected - (time - (self.jumps[-1] if self.jumps else 0)))
                time = expected
            time = max(time, self.last + 1)  # containers take rising times only
            self.interval = time - self.last
        self.last = expected if time is None else time
        return self.last


def _stated(stream: Any, *, by_tag_only: bool) -> Fraction | None:
    """Length of a video stream in seconds by the tag that writers of Matroska leave, or by its header."""
    if found := _CLOCK.fullmatch(stream.metadata.get("DURATION", "")):
        hours, minutes, seconds = found.groups()
        return 3600 * int(hours) + 60 * int(minutes) + Fraction(seconds)
    if stream.duration and not by_tag_only:
        return stream.duration * stream.time_base
    return None


def _is_stereo(frame: Any) -> bool:
    """Whether a frame says that it holds two views; the first number of what it says is 0 for one view."""
    found = [bytes(part)[:4] for part in frame.side_data if str(part.type).endswith("STEREO3D")]
    return any(any(kind) for kind in found)


def unscaled_range(coding: Coding) -> int:
    """The range that swscale is told of both sides, so that it leaves numbers as they are.

    Between 10 and 16 bits it shifts numbers of the limited range by 6 bits, and stretches those of the full one.
    """
    return coding.color_range if coding.bits == _EIGHT_BITS else LIMITED


def interpolation(av: Any) -> Any:
    """How swscale brings color planes to the size of the frame and back."""
    kinds = av.video.reformatter.Interpolation
    return kinds.BICUBIC | kinds.FULL_CHR_H_INT | kinds.FULL_CHR_H_INP | kinds.ACCURATE_RND


def pixel_format(stored: Any, width: int, height: int) -> str:
    """The pixel format to write for frames of another, with 8 or 10 bits to a sample.

    Args:
        stored: PyAV's format of the frames.
        width: of a frame in pixels.
        height: likewise.
    """
    is_gray = not stored.is_rgb and not stored.has_palette and len(stored.components) <= 2
    narrow = is_gray
    low = is_gray
    if not _has_no_differences(stored):
        narrow = stored.components[1].width < width
        low = stored.components[1].height < height
    kind = "444"
    if narrow and width % 2 == 0:
        kind = "420" if low and height % 2 == 0 else "422"
    return f"yuv{kind}p" + ("10le" if _bits(stored) > _EIGHT_BITS else "")


def _bits(stored: Any) -> int:
    """Of a sample as it is written."""
    return _EIGHT_BITS if max(part.bits for part in stored.components) <= _EIGHT_BITS else _MOST_BITS


def _rgb_as_stored(frame: Any) -> np.ndarray:
    """Float32 (H, W, 3), white 1, of a frame of RGB or gray.

    Not by luma of the limited range: swscale rounds 8 bits to fewer steps, and makes more bits 0.4 % too bright.
    """
    bits = min(max(part.bits for part in frame.format.components), 16)  # more: floats
    if bits <= _EIGHT_BITS:
        return frame.to_ndarray(format="rgb24").astype(np.float32) / 255
    white = 65535 if frame.format.is_rgb else (2**bits - 1) << (16 - bits)  # swscale shifts gray
    return frame.to_ndarray(format="rgb48le").astype(np.float32) / white  # planar formats wrap around in some cases


def _has_no_differences(stored: Any) -> bool:
    """Whether a format is RGB or gray, not luma and color differences."""
    return stored.is_rgb or stored.has_palette or len(stored.components) <= 2
