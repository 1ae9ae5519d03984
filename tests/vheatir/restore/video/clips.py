"""Small clips to make and to read back."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

av = pytest.importorskip("av", reason="clips need PyAV: pip install 'vheatir[video]'")

SIZE = (32, 48)
TICKS = Fraction(1, 600)
RATES = {"pcm_bluray": 48000}  # that are taken


def picture(number, size=SIZE):
    """Bands of color that move by a pixel a frame, uint8."""
    height, width = size
    x = np.arange(width) + number
    rows = np.linspace(60, 200, height)[:, None]
    bands = np.stack([np.where(x // 12 % 2, 200, 60)] * height)
    return np.stack([bands, np.broadcast_to(rows, size), np.full(size, 90 + 3 * number)], -1).astype(np.uint8)


def make(path, count=10, size=SIZE, times=None, sound=False, pixel_format="yuv444p", codec="libx264", **tags):
    """A small clip with so many tracks of sound.

    `tags` are set on the encoder, `display` on the stream; `container` has the options of the container, `flags` is one
    of them; `tone` is the codec of the sound; `dress` is called with the container; `last` is how long the last frame
    is shown.
    """
    display, tone_codec = tags.pop("display", None), tags.pop("tone", "aac")
    dress = tags.pop("dress", None)
    last = tags.pop("last", None)
    container = tags.pop("container", {}) | ({"movflags": tags.pop("flags")} if "flags" in tags else {})
    times = [20 * number for number in range(count)] if times is None else times
    with av.open(str(path), "w", options=container) as output:
        stream = output.add_stream(codec, rate=30, options={"crf": "4"} if codec == "libx264" else {})
        stream.width, stream.height, stream.pix_fmt = size[1], size[0], pixel_format
        stream.codec_context.time_base = TICKS
        for name, value in tags.items():
            setattr(stream.codec_context, name, value)
        if display is not None:
            stream.set_display_rotation(display)
        tones = [output.add_stream(tone_codec, rate=RATES.get(tone_codec, 8000)) for _ in range(sound)]
        if dress is not None:
            dress(output)
        for number, time in enumerate(times):
            rgb = av.VideoFrame.from_ndarray(picture(number, size), format="rgb24")
            rgb.colorspace = tags.get("colorspace", 2)
            frame = rgb.reformat(format=pixel_format, src_color_range=2, dst_color_range=tags.get("color_range"))
            frame.pts, frame.time_base = time, TICKS
            output.mux(stream.encode(frame))
        packets = stream.encode(None)
        if last is not None:
            packets[-1].duration = round(last * TICKS / packets[-1].time_base)
        output.mux(packets)
        for tone in tones:
            wave = np.sin(np.arange(2048) / 5)[None]
            if tone_codec == "flac" or tone_codec.startswith("pcm"):
                samples = av.AudioFrame.from_ndarray((wave * 9999).astype(np.int16), "s16", "mono")
                samples.pts = 0
            else:
                samples = av.AudioFrame.from_ndarray(wave.astype(np.float32), "fltp", "mono")
            samples.rate = RATES.get(tone_codec, 8000)
            output.mux(tone.encode(samples))
            output.mux(tone.encode(None))
    return Path(path)


def read(path):
    """Times in seconds, frames in RGB, the video stream's facts, and the bytes of all audio packets."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
        first = frames[0]
        facts = {
            "rate": stream.average_rate,
            "aspect": stream.sample_aspect_ratio,
            "rotation": first.rotation,
            "format": first.format.name,
            "tags": tuple(map(int, (first.color_range, first.color_primaries, first.color_trc, first.colorspace))),
        }
    with av.open(str(path)) as container:
        sound = [bytes(one) for one in container.demux(audio=0) if one.size] if container.streams.audio else []
    pixels = np.stack([frame.to_ndarray(format="rgb24") for frame in frames])
    return [frame.pts * frame.time_base for frame in frames], pixels, facts, sound


def hidden():
    return sorted(path.name for path in Path().iterdir() if path.name.startswith(".vheatir-"))
