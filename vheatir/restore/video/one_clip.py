"""One clip restored into another: frames through the network in order, segments on the disk, the result at the end."""

import hashlib
import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import vheatir.restore.video.encoding as encoding
from vheatir.errors import UserError
from vheatir.restore.one_file import FileOptions, Outcome
from vheatir.restore.restorer import Restorer
from vheatir.restore.video.formats import container_of
from vheatir.restore.video.reading import Clip, Frame
from vheatir.restore.video.segments import FRAMES, Segments, replace_synced
from vheatir.utils.files import sha256

_FORMAT = 4  # of segments and their state: raised where older ones can no longer be gone on from


def restore_clip(
    restorer: Restorer,
    source: Path,
    target: Path,
    options: FileOptions,
    on_share: Callable[[float], None] | None = None,
) -> Outcome:
    """Restore one clip into another; whatever goes wrong is raised, and leaves the target alone.

    Frames pass one by one: memory does not grow with the length. What is done stays in a hidden folder beside the
    target, `.vheatir-….clip`, from which the same call goes on after a kill; it is removed with the last step.

    Args:
        restorer: what restores, for the tasks photo and denoise.
        source: clip.
        target: file to write, a container of `vheatir.restore.video.formats`; its folder exists.
        options: see `FileOptions`.
        on_share: called with the share done, from 0 to 1; what it raises stops the work.

    Raises:
        UserError: the clip cannot be read, restored by this task, or written.
    """
    begun = time.monotonic()
    container = container_of(target)
    restorer = restorer.for_clips()
    if restorer.task == "jpeg":
        raise UserError(f"{source}: the task jpeg is for JPEG images; take photo or denoise for a clip")
    clip = Clip(source, options.max_pixels)
    notes = [*clip.notes, *encoding.check_shape(clip, container, target)]
    notes += [f"{what} left out" for what in encoding.check_sound(clip, container, target)]
    level, text = _level(restorer, clip, options)
    encoder = encoding.Encoder(clip, container, options.crf)
    segments = Segments(target, _key(restorer, source, target, level, options))
    finished = False
    try:
        before = len(segments.done())
        if before:
            notes.append(f"went on after {before * FRAMES} frames of an earlier run")
        _fill(restorer, clip, level, encoder, segments, on_share)
        encoding.join(segments.unfinished(), container, segments.done(), clip)
        notes += encoding.lost_metadata(segments.unfinished(), clip)
        replace_synced(segments.unfinished(), target)
        finished = True
    finally:
        segments.release(remove=finished)
    if clip.damaged:
        notes.append(f"{len(clip.damaged)} frames were damaged and concealed by the decoder")
    if clip.jumps:
        notes.append(f"its times begin anew in {len(clip.jumps)} places and were made to go on")
    if lost := clip.lost():
        notes.append(lost)
    return Outcome("done", level=text, notes=notes, seconds=round(time.monotonic() - begun, 3))


def _fill(
    restorer: Restorer,
    clip: Clip,
    level: float | None,
    encoder: encoding.Encoder,
    segments: Segments,
    on_share: Callable[[float], None] | None,
) -> None:
    """Restore and write the segments that are missing."""
    number = len(segments.done())

    def told(done: float) -> None:
        if on_share is not None:
            on_share(done / max(clip.count, math.ceil(done), 1))

    frames = restored_frames(restorer, clip, level, number * FRAMES, told)
    for frame in frames:
        rest = itertools.islice(frames, FRAMES - 1)
        encoder.write(segments.unfinished(), itertools.chain([frame], rest))
        segments.finish(number)
        number += 1


def restored_frames(
    restorer: Restorer, clip: Clip, level: float | None, first: int, on_frames: Callable[[float], None]
) -> Iterator[Frame]:
    """Restored frames from number `first` on.

    Args:
        restorer: what restores.
        clip: the source.
        level: for weights that take one.
        first: number of a frame.
        on_frames: called with the number of frames that are done, and the share of the one at work.
    """
    width = restorer.frames
    around = windows(clip.frames(max(first - width // 2, 0)), width, min(first, width // 2))
    for number, window in enumerate(around, first):

        def told(share: float, done: int = number) -> None:
            on_frames(done + share)

        restored = restorer.restore_clip([frame.pixels for frame in window], level=level, on_tile=told)
        yield replace(window[width // 2], pixels=restored)


def windows(frames: Iterator[Frame], width: int, skipped: int = 0) -> Iterator[list[Frame]]:
    """For each frame those around it, itself in the middle; beyond the ends frames are mirrored.

    Args:
        frames: in order.
        width: of a window, an odd number.
        skipped: so many frames at the beginning have no window of their own.
    """
    half = width // 2
    held: dict[int, Frame] = {}
    read = 0
    ended = False
    for number in itertools.count(skipped):
        while not ended and read <= number + half:
            frame = next(frames, None)
            if frame is None:
                ended = True
            else:
                held[read] = frame
                read += 1
        if number >= read:
            return
        places = range(number - half, number + half + 1)
        yield [held[_mirrored(place, read if ended else None)] for place in places]
        held.pop(number - half, None)


def _mirrored(place: int, count: int | None) -> int:
    """A place within 0 .. count - 1, mirrored at both ends; count None for an end that is far away."""
    if count == 1:
        return 0
    while place < 0 or (count is not None and place >= count):
        place = -place if place < 0 else 2 * (count or 0) - 2 - place
    return place


def _level(restorer: Restorer, clip: Clip, options: FileOptions) -> tuple[float | None, str]:
    """The level for the network, the same for all frames, and what is shown of it: that of the first frame."""
    if options.level is not None and restorer.takes_level:
        return options.level, f"noise level {options.level:g} (given)"
    pixels = next(clip.frames()).pixels
    level = restorer.measure(lambda start, stop: (pixels[start:stop], None), pixels.shape)
    return (level if restorer.takes_level else None), f"noise level {level:.1f} (estimated in the first frame)"


def _key(restorer: Restorer, source: Path, target: Path, level: float | None, options: FileOptions) -> dict:
    """What the segments of a result depend on."""
    weights = hashlib.sha256()
    for name, value in sorted(restorer.network.state_dict().items()):
        weights.update(name.encode())
        weights.update(value.cpu().numpy().tobytes())
    return {
        "format": _FORMAT,
        "source": sha256(source),  # not its date, which is new at each run where it is fetched from a URL
        "suffix": target.suffix.lower(),
        "task": restorer.task,
        "weights": weights.hexdigest(),
        "level": level,
        "shares": [restorer.strength, restorer.luma, restorer.chroma],
        "ensemble": restorer.ensemble,
        "bf16": restorer.bf16,
        "crf": options.crf,
        "frames": restorer.frames,
    }
