"""Restored frames into segments of a clip, and segments with the sound of the source into the result."""

import heapq
import io
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from vheatir.errors import UserError
from vheatir.restore.video.colors import from_rgb
from vheatir.restore.video.formats import WRITTEN, Container
from vheatir.restore.video.reading import WHOLE, Clip, Frame, interpolation, unscaled_range

_BETWEEN = "nut"  # container of the segments: it keeps any unit of time
_DESCRIBED = ("language", "title", "handler_name", "comment")  # tags of a stream that stay true
_LEAST_STEP = Fraction(1, 1000)  # seconds between packets of sound: the unit of Matroska
_UNSEEN = Fraction(1, 100)  # by which pixels may differ from squares: codecs and players round sizes
_ROOMIEST = (".mkv", ".mov", ".mp4", ".webm")  # what can hold most kinds of sound first
_QUICKTIME = ("mp4", "mov")
_OF_CONTAINER = frozenset(
    {"major_brand", "minor_version", "compatible_brands", "encoder", "duration"}
)  # not the clip's
_OF_PHONES = "com."  # begins keys such as com.apple.quicktime.location.ISO6709 and com.android.version


class Encoder:
    """Frames of a clip encoded as its container wants them.

    No frame waits for a later one (no B-frames), so that segments which are encoded one by one follow each other.

    Args:
        clip: where the frames come from.
        container: of the result.
        crf: constant quality of the encoder; lower is better and larger.

    Raises:
        UserError: this PyAV has no such encoder, or one that cannot hold the clip's bits.
    """

    def __init__(self, clip: Clip, container: Container, crf: float):
        try:
            codec = clip.av.Codec(container.encoder, "w")
        except clip.av.codec.codec.UnknownCodecError as error:
            raise UserError(
                f"this PyAV has no encoder {container.encoder}, which {container.format} files need; install PyAV's "
                "own wheels, or write another kind of file"
            ) from error
        able = [known.name for known in codec.video_formats or ()]
        if able and clip.look.pixel_format not in able:
            raise UserError(
                f"{clip.path}: the encoder {container.encoder} of this PyAV cannot hold {clip.look.coding.bits} bits "
                f"({clip.look.pixel_format}) in a {container.format} file; write a .mkv file"
            )
        self.clip = clip
        self.container = container
        self.crf = crf

    def write(self, path: Path, frames: Iterable[Frame]) -> None:
        """Write a segment.

        Args:
            path: of the file.
            frames: one after the other, at least one; each is encoded before the next is asked for.

        Raises:
            UserError: the encoder refuses.
        """
        with self._errors(), self.clip.av.open(str(path), "w", format=_BETWEEN) as output:
            stream = self._stream(output)
            for frame in frames:
                output.mux(stream.encode(self._stored(frame)))
            output.mux(stream.encode(None))

    def _stream(self, output: Any) -> Any:
        look = self.clip.look
        options = {**self.container.options, "crf": f"{self.crf:g}"}
        stream = output.add_stream(self.container.encoder, rate=self.clip.rate, options=options)
        context = stream.codec_context
        stream.width = look.width
        stream.height = look.height
        stream.pix_fmt = look.pixel_format
        context.time_base = self.clip.time_base
        stream.time_base = self.clip.time_base
        context.max_b_frames = 0
        mark(context, self.clip)
        return stream

    def _stored(self, frame: Frame) -> Any:
        """A frame as the encoder takes it."""
        look = self.clip.look
        planes = from_rgb(frame.pixels, look.coding)
        planes = planes if planes.dtype == np.uint8 else planes.transpose(1, 2, 0)
        whole = self.clip.av.VideoFrame.from_ndarray(np.ascontiguousarray(planes), format=WHOLE[look.coding.bits])
        whole.colorspace = look.coding.matrix
        whole.color_primaries = look.primaries
        whole.color_trc = look.transfer
        whole.color_range = look.coding.color_range
        stored = whole.reformat(
            format=look.pixel_format,
            interpolation=interpolation(self.clip.av),
            src_color_range=unscaled_range(look.coding),
            dst_color_range=unscaled_range(look.coding),
        )
        stored.color_range = look.coding.color_range
        stored.pts = frame.pts
        stored.time_base = self.clip.time_base
        if frame.duration:
            stored.duration = frame.duration
        return stored

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except self.clip.av.error.FFmpegError as error:
            raise UserError(f"{self.clip.path}: its frames cannot be encoded ({error})") from error


def mark(context: Any, clip: Clip) -> None:
    """Tell an encoder or a stream which colors and pixels it holds.

    Args:
        context: PyAV's, of the codec.
        clip: whose they are.
    """
    look = clip.look
    context.color_range = look.coding.color_range
    context.color_primaries = look.primaries
    context.color_trc = look.transfer
    context.colorspace = look.coding.matrix
    if look.aspect:
        context.sample_aspect_ratio = look.aspect


def join(target: Path, container: Container, segments: Sequence[Path], clip: Clip) -> None:
    """Write a whole clip: the frames of segments, the sound and the metadata of the source.

    Args:
        target: file to write.
        container: what it is.
        segments: files of `Encoder`, in order.
        clip: the source.

    Raises:
        UserError: something cannot be written.
    """
    av = clip.av
    try:
        with (
            av.open(str(clip.path)) as source,
            av.open(str(segments[0])) as first,
            av.open(str(target), "w", format=container.format, options=_options(container, source)) as output,
        ):
            output.metadata.update(_metadata(source))
            video = output.add_stream_from_template(first.streams.video[0], opaque=True)
            mark(video.codec_context, clip)
            video.codec_context.framerate = clip.rate
            if clip.look.display is not None:
                video.set_display_matrix(clip.look.display)
            output.set_chapters(source.chapters())
            _describe(video, clip.video_of(source))
            known = _known_sound(source)
            sound = {one.index: output.add_stream_from_template(one, opaque=True) for one in known}
            for one in known:
                _describe(sound[one.index], one)
            packets = [_lasting(_frames(av, segments, video), clip.last * clip.time_base)]
            if sound:
                packets.append(_sound(source, sound, clip))
            for _, packet in heapq.merge(*packets, key=lambda timed: timed[0]):
                output.mux(packet)
    except (av.error.FFmpegError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{clip.path}: the restored clip cannot be written ({reason})") from error


def _metadata(source: Any) -> dict[str, str]:
    """What a file says of the clip, not of the container that it is."""
    return {key: value for key, value in source.metadata.items() if key.lower() not in _OF_CONTAINER}


def _options(container: Container, source: Any) -> dict[str, str]:
    """Of the writer. Keys of any name have a place of their own in MP4 and MOV, beside the usual one for a few."""
    if container.format not in _QUICKTIME:
        return {}
    any_key = any(key.lower().startswith(_OF_PHONES) for key in source.metadata)
    return {"movflags": "faststart" + "+use_metadata_tags" * any_key}


def lost_metadata(target: Path, clip: Clip) -> list[str]:
    """What of a file's metadata its container did not take, in words.

    Args:
        target: the whole clip, as `join` wrote it.
        clip: the source.
    """
    with clip.av.open(str(target)) as output, clip.av.open(str(clip.path)) as source:
        kept = {key.lower() for key in output.metadata}
        lost = [key for key in _metadata(source) if key.lower() not in kept]
    return [f"metadata that the file cannot hold: {', '.join(sorted(lost))}; left out"] if lost else []


def _describe(stream: Any, source: Any) -> None:
    """Give a stream the language, title and purpose of its source."""
    found = dict(source.metadata)
    if "name" in found:  # as MP4 calls the title
        found.setdefault("title", found["name"])
    stream.metadata.update({key: value for key, value in found.items() if key.lower() in _DESCRIBED})
    stream.disposition = source.disposition


def _frames(av: Any, segments: Sequence[Path], stream: Any) -> Iterator[tuple[Fraction, Any]]:
    """Packets of all segments, with their times in seconds."""
    for path in segments:
        with av.open(str(path)) as segment:
            for packet in segment.demux(video=0):
                if packet.size:
                    # Frames are never reordered. FFmpeg does not know that of segments of 7 frames, which have no dts.
                    packet.dts = packet.pts
                    time = packet.pts * packet.time_base
                    packet.stream = stream
                    yield time, packet


def _lasting(timed: Iterator[tuple[Fraction, Any]], last: Fraction) -> Iterator[tuple[Fraction, Any]]:
    """Packets of frames that last until the next one, the last one so many seconds: segments keep times alone."""
    held = next(timed, None)
    while held is not None:
        time, packet = held
        held = next(timed, None)
        seconds = last if held is None else held[0] - time
        packet.duration = round(seconds / packet.time_base)
        yield time, packet


def _sound(source: Any, streams: dict[int, Any], clip: Clip) -> Iterator[tuple[Fraction, Any]]:
    """Packets of all audio streams, likewise."""
    continued = {index: _Continued(clip) for index in streams}
    for packet in source.demux([source.streams[index] for index in streams]):
        if packet.dts is not None:
            index = packet.stream.index
            if clip.jumps:
                continued[index].set_time(packet)
            if clip.late:
                added = round(clip.late * clip.time_base / packet.time_base)
                packet.dts += added
                packet.pts = None if packet.pts is None else packet.pts + added
            time = packet.dts * packet.time_base
            packet.stream = streams[index]
            yield time, packet


def _known_sound(source: Any) -> list[Any]:
    """The audio streams whose codec FFmpeg knows; others, such as Apple's spatial sound, cannot be copied."""
    return [stream for stream in source.streams.audio if stream.codec_context is not None]


class _Continued:
    """Times of an audio stream that go on where they begin anew, by as much as those of the frames do."""

    def __init__(self, clip: Clip):
        self.clip = clip
        self.jumps = 0
        self.stored: int | None = None
        self.written: int | None = None

    def set_time(self, packet: Any) -> None:
        """Give a packet the time at which it is written."""
        if self.stored is not None and 2 * (self.stored - packet.dts) > (packet.duration or 0):
            self.jumps = min(self.jumps + 1, len(self.clip.jumps))
        self.stored = packet.dts
        added = self.clip.jumps[self.jumps - 1] * self.clip.time_base if self.jumps else 0
        time = packet.dts + round(added / packet.time_base)
        if self.written is not None:  # sound may be longer than its frames; containers take rising times only
            time = max(time, self.written + math.ceil(_LEAST_STEP / packet.time_base))
        packet.pts = packet.dts = self.written = time


def check_shape(clip: Clip, container: Container, target: Path) -> list[str]:
    """What of the pixels' shape is not kept, in words; before anything is restored.

    H.264 holds their aspect itself. VP9 leaves it to the container, whose field PyAV cannot set.

    Args:
        clip: the source.
        container: of the result.
        target: its file, for messages.

    Raises:
        UserError: the result would look squeezed.
    """
    aspect = clip.look.aspect
    if container is not WRITTEN[".webm"] or aspect in (None, 1):
        return []
    shape = f"its pixels, {aspect.numerator}:{aspect.denominator} wide,"
    if abs(aspect - 1) > _UNSEEN:
        raise UserError(
            f"{target}: {shape} would be square in a .webm file, and the clip would look squeezed; write a .mkv file"
        )
    return [f"{shape} become square"]


def check_sound(clip: Clip, container: Container, target: Path) -> list[str]:
    """What of a source's streams is not kept, in words; before anything is restored.

    Args:
        clip: the source.
        container: of the result.
        target: its file, for messages.

    Raises:
        UserError: the container cannot hold the sound of the source.
    """
    av = clip.av
    with av.open(str(clip.path)) as source:
        sound = _known_sound(source)
        for stream in sound:
            refused = _refusal(av, stream, container)
            if refused is not None:
                able = (suffix for suffix in _ROOMIEST if not any(_refusal(av, one, WRITTEN[suffix]) for one in sound))
                suffix = next(able, None)
                advice = f"write a {suffix} file" if suffix else "convert its sound first, to FLAC in a .mkv file"
                name = stream.codec_context.name
                raise UserError(f"{target}: cannot hold sound in {name}; {advice} ({refused})") from refused
        unknown = len(source.streams.audio) - len(sound)
        other = [one.type for one in source.streams if one.type not in ("audio", "video")]
        if "data" in other and "mp4" in source.format.name and source.chapters():
            other.remove("data")  # the chapters, which are kept
        more = len(source.streams.video) - 1
        left = [f"{_streams(unknown)} of sound in a codec that is not known"] if unknown else []
        left += [f"{_streams(len(other))} of neither video nor audio"] if other else []
        return left + ([f"{_streams(more)} of further video"] if more else [])


def _refusal(av: Any, stream: Any, container: Container) -> Exception | None:
    """Why a container cannot hold a stream of sound, by its header; None where it can."""
    try:
        with av.open(io.BytesIO(), "w", format=container.format) as output:
            output.add_stream_from_template(stream, opaque=True)
            output.start_encoding()
    except (av.error.FFmpegError, ValueError) as error:
        return error
    return None


def _streams(count: int) -> str:
    return "1 stream" if count == 1 else f"{count} streams"
