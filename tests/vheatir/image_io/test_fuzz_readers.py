"""The readers fuzzed within a fixed budget: whatever the bytes, an image or a UserError that names the file."""

import io
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image as Pillow

from vheatir.errors import UserError
from vheatir.image_io import decode_image, open_image

pytest.importorskip("hypothesis", reason="fuzzing needs hypothesis: pip install 'vheatir[dev]'")
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

ODD = Path(__file__).parents[2] / "data" / "odd"
BUDGET = 60  # examples for each kind of file, always the same ones
MAX_PIXELS = 10**6


def seed_file(kind):
    if kind in ODD_SEEDS:
        return ODD_SEEDS[kind].read_bytes()
    rng, file = np.random.default_rng(0), io.BytesIO()
    color = rng.integers(0, 256, (12, 10, 3), dtype=np.uint8)
    deep = rng.integers(0, 65536, (12, 10, 3), dtype=np.uint16)
    if kind.startswith("tiff"):
        options = {
            "tiff16": {"rowsperstrip": 5},
            "tiff zlib": {"rowsperstrip": 4, "compression": "zlib", "predictor": True},
            "tiff tiles": {"tile": (16, 16)},
            "tiff exif": {"extratags": [(274, 3, 1, 6, True), (306, 2, 20, "2024:05:01 12:00:00", True)]},
        }[kind]
        tifffile.imwrite(file, deep, photometric="rgb", metadata=None, **options)
    elif kind == "png16":
        from vheatir.image_io.png import write_png

        write_png(file, deep.shape, 16, [deep], [])
    elif kind == "palette":
        Pillow.fromarray(color).quantize(8).save(file, "PNG", transparency=2)
    else:
        exif = Pillow.Exif()
        exif[0x0112] = 6
        Pillow.fromarray(color).save(file, kind, **({} if kind == "BMP" else {"exif": exif}))
    return file.getvalue()


ODD_SEEDS = {f"{path.parent.name}/{path.name}": path for path in sorted(ODD.glob("*/*.*"))}
KINDS = {
    "PNG": ".png",
    "png16": ".png",
    "palette": ".png",
    "JPEG": ".jpg",
    "WEBP": ".webp",
    "BMP": ".bmp",
    "tiff16": ".tif",
    "tiff zlib": ".tif",
    "tiff tiles": ".tif",
    "tiff exif": ".tif",
} | {kind: path.suffix for kind, path in ODD_SEEDS.items()}
EDITS = st.lists(
    st.one_of(
        st.tuples(st.just("set"), st.integers(0, 10**4), st.binary(min_size=1, max_size=4)),
        st.tuples(st.just("insert"), st.integers(0, 10**4), st.binary(min_size=1, max_size=16)),
        st.tuples(st.just("delete"), st.integers(0, 10**4), st.integers(1, 40)),
        st.tuples(st.just("cut"), st.integers(1, 10**4), st.none()),
    ),
    min_size=1,
    max_size=4,
)


def edited(data, edits):
    data = bytearray(data)
    for act, position, value in edits:
        at = position % max(len(data), 1)
        if act == "set":
            data[at : at + len(value)] = value
        elif act == "insert":
            data[at:at] = value
        elif act == "delete":
            del data[at : at + value]
        else:
            del data[at:]
    return bytes(data)


@pytest.mark.parametrize("kind", KINDS)
def test_edited_files(tmp_path, kind):
    whole, path = seed_file(kind), tmp_path / f"fuzzed{KINDS[kind]}"

    @settings(
        max_examples=BUDGET, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(edits=EDITS)
    def check(edits):
        path.write_bytes(edited(whole, edits))
        for by_rows in (None, 0) if path.suffix == ".tif" else (None,):
            try:
                stored = open_image(path, max_pixels=MAX_PIXELS, by_rows=by_rows)
                assert stored.height * stored.width <= MAX_PIXELS
                values, _ = stored.floats(0, stored.height)
                assert values.shape == (stored.height, stored.width, stored.colors) and values.dtype == np.float32
                stored.close()
            except UserError as error:
                assert path.name in str(error)
        try:
            image = decode_image(path.read_bytes(), path.name)
            assert image.dtype == np.uint8 and image.ndim in (2, 3)
        except UserError as error:
            assert path.name in str(error)

    check()


@pytest.mark.parametrize("suffix", sorted(set(KINDS.values())))
def test_bytes_that_are_no_image(tmp_path, suffix):
    path = tmp_path / f"fuzzed{suffix}"

    @settings(
        max_examples=BUDGET, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(start=st.sampled_from([b"", *(seed_file(kind)[:16] for kind in KINDS)]), rest=st.binary(max_size=200))
    def check(start, rest):
        path.write_bytes(start + rest)
        with pytest.raises(UserError, match="fuzzed"):
            open_image(path, max_pixels=MAX_PIXELS).floats(0, 1)

    check()
