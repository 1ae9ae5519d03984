"""Control, many files, manifest and URLs: what the user asks for is done, shown and written down, each input once."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from vheatir.cli import main as vheatir_main
from vheatir.data.degradations import jpeg_roundtrip
from vheatir.errors import UserError
from vheatir.image_io import Image, read_image, write_image
from vheatir.restore.jobs import Job, plan_jobs
from vheatir.restore.locations import Url, existing, fetched, stored
from vheatir.restore.manifest import Manifest
from vheatir.restore.one_file import Outcome
from vheatir.restore.progress import ConsoleProgress

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def files(tmp_path_factory, tiny):
    folder = tmp_path_factory.mktemp("weights")
    return {
        "denoise": tiny.write_weights(folder / "denoise.safetensors"),
        "jpeg": tiny.write_weights(folder / "jpeg.safetensors", "jpeg"),
        "level": tiny.write_weights(folder / "level.safetensors", level_map=True),
    }


@pytest.fixture
def command(files, tmp_path, monkeypatch):
    """`vheatir restore` in an empty folder; returns the exit status."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments, task="denoise", weights=None):
        fixed = ["--task", task, "--weights", str(files[weights or task]), "--device", "cpu"]
        return vheatir_main(["restore", *map(str, arguments), *fixed])

    return call


@pytest.fixture
def memory():
    """The root of an empty in-memory file system as a URL."""
    import fsspec

    file_system = fsspec.filesystem("memory")
    file_system.store.clear()
    file_system.pseudo_dirs[:] = [""]
    yield "memory://bucket"
    file_system.store.clear()


def photo():
    import skimage.data

    return skimage.data.astronaut()[:200, :200]


def lines(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_the_noise_level_is_shown(command, capfd):
    noisy = photo() / 255 + np.random.default_rng(0).normal(0, 25 / 255, photo().shape)
    write_image("in.tif", Image(noisy.astype(np.float32), bit_depth=32))
    assert command("in.tif", "-o", "out") == 0
    shown = next(line for line in capfd.readouterr().err.splitlines() if line.startswith("in.tif: noise level"))
    assert float(shown.split()[3]) == pytest.approx(25, abs=2) and "(estimated)" in shown
    assert command("in.tif", "-o", "out", "--overwrite", "--quiet") == 0
    assert "noise" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("name", "options", "shown"),
    [
        ("in.jpg", {"quality": 34}, "JPEG quality 34 (from the file)"),
        ("in.jpg", {"qtables": [[7] * 64, [9] * 64]}, "(nearest tables)"),
        ("in.png", {}, "(estimated)"),
        ("plain.png", {}, "no trace of JPEG found"),
    ],
)
def test_the_jpeg_quality_is_read_or_estimated_and_shown(command, capfd, name, options, shown):
    image = photo()
    if name == "in.png":
        image = jpeg_roundtrip(image, 34)
    elif name == "plain.png":
        image = np.clip(image + np.random.default_rng(0).normal(0, 5, image.shape), 0, 255).astype(np.uint8)
    Pillow.fromarray(image).save(name, **options)
    assert command(name, "-o", "out", task="jpeg") == 0
    assert shown in (said := capfd.readouterr().err)
    if name == "in.png":
        assert 33 <= int(said.split("JPEG quality ")[1].split()[0]) <= 35


def test_good_jpeg_files_are_left_as_they_are(command, capfd):
    Pillow.fromarray(photo()).save("good.jpg", quality=97)
    Pillow.fromarray(photo()).save("fair.jpg", quality=94)
    assert command("good.jpg", "fair.jpg", "-o", "out", task="jpeg") == 0
    said = capfd.readouterr().err
    assert said.count("left as it is") == 1 and "JPEG quality 97 (from the file)" in said
    assert "`vheatir restore --quality 94` restores it" in said  # which is true for the page of `serve` too
    assert Path("out/good.jpg").read_bytes() == Path("good.jpg").read_bytes()
    assert Path("out/fair.jpg").read_bytes() != Path("fair.jpg").read_bytes()
    assert command("good.jpg", "-o", "good.png", task="jpeg") == 0
    assert np.array_equal(read_image("good.png").pixels, read_image("good.jpg").pixels)
    assert command("good.jpg", "-o", "all", "--quality", "94", task="jpeg") == 0
    assert not np.array_equal(read_image("all/good.jpg").pixels, read_image("good.jpg").pixels)
    assert command("good.jpg", "-o", "noise", task="denoise") == 0
    assert not np.array_equal(read_image("noise/good.jpg").pixels, read_image("good.jpg").pixels)


def test_sigma_is_for_weights_that_take_a_level_and_blind_weights_say_so(command, capfd, tiny):
    tiny.image("in.png", (40, 40, 3))
    results = []
    for number, options in enumerate((["--sigma", "5"], ["--sigma", "50"], [])):
        assert command("in.png", "-o", f"level{number}", *options, weights="level") == 0
        results.append(read_image(f"level{number}/in.png").pixels)
    assert "noise level 50 (given)" in capfd.readouterr().err
    assert np.abs(results[0] - results[1]).max() > 0 and np.abs(results[1] - results[2]).max() > 0
    for number, options in enumerate((["--sigma", "5"], [])):
        assert command("in.png", "-o", f"blind{number}", *options) == 0
    assert "blind: --sigma and --quality have no effect" in capfd.readouterr().err
    assert Path("blind0/in.png").read_bytes() == Path("blind1/in.png").read_bytes()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--sigma", "300"], "between 0 and 255"),
        (["--quality", "30"], "does not belong to the task denoise"),
        (["--strength", "1.5"], "strength must lie between 0"),
        (["--strength", "nan"], "strength must lie between 0"),
        (["--workers", "0"], "at least 1"),
        (["--max-megapixels", "nan"], "above 0"),
    ],
    ids=str,
)
def test_unsuitable_controls_are_refused_before_anything_is_done(command, capfd, tiny, options, reason):
    tiny.image("in.png")
    assert command("in.png", "-o", "out", *options) == 2
    assert reason in capfd.readouterr().err and not Path("out").exists()


def test_strength_and_ensemble_reach_the_files(command, tiny):
    source = read_image(tiny.image("in.png", (30, 40, 3), depth=16)).pixels
    results = {}
    for name, options in {
        "full": [],
        "half": ["--strength", "0.5"],
        "eight": ["--ensemble"],
        "none": ["--strength", "0"],
    }.items():
        assert command("in.png", "-o", name, *options) == 0
        results[name] = read_image(f"{name}/in.png").pixels
    np.testing.assert_array_equal(results["none"], source)
    inside = (results["full"] > 0) & (results["full"] < 1)  # clipping comes last
    np.testing.assert_allclose(results["half"][inside], (0.5 * (source + results["full"]))[inside], atol=2e-5)
    assert np.abs(results["eight"] - results["full"]).max() > 1e-3


@pytest.mark.parametrize("workers", [1, 3])
def test_any_number_of_workers_gives_the_same_files(command, tiny, workers):
    for number in range(7):
        tiny.image(f"in/{number}.png", (20 + 9 * number, 30, 3))
    assert command("in", "-o", "one", "--workers", "1") == 0
    assert command("in", "-o", "out", "--workers", workers) == 0
    for path in sorted(Path("one").iterdir()):
        assert path.read_bytes() == (Path("out") / path.name).read_bytes()


def test_every_input_stands_in_the_manifest_exactly_once(command, tiny, capfd):
    names = [f"in/{number}.png" for number in range(5)]
    for name in names:
        tiny.image(name, (20, 20, 3))
    Path("in/3.png").write_bytes(b"no image")
    tiny.image("out/1.png", (3, 3))
    assert command("in", "-o", "out", "--manifest", "list.jsonl") == 1
    found = {line["input"]: line for line in lines("list.jsonl")}
    assert list(found) == names and len(lines("list.jsonl")) == 5
    assert [found[name]["status"] for name in names] == ["done", "kept", "done", "failed", "done"]
    assert "3.png" in found[names[3]]["message"] and "noise level" in found[names[0]]["level"]
    tiny.image("in/3.png", (20, 20, 3))
    assert command("in", "-o", "out", "--manifest", "list.jsonl") == 0
    assert [line["status"] for line in lines("list.jsonl")] == ["done", "kept", "done", "done", "done"]
    assert not Path("list.jsonl.journal").exists()


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_after_a_kill_the_same_command_does_the_rest_and_the_manifest_is_whole(command, files, tiny):
    count = 30
    for number in range(count):
        tiny.image(f"in/{number:02}.png", (150, 150, 3))
    call = [sys.executable, "-m", "vheatir", "restore", "in", "-o", "out", "--manifest", "list.jsonl", "--workers", "1"]
    call += ["--task", "denoise", "--weights", str(files["denoise"]), "--device", "cpu"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    running = subprocess.Popen(call, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300  # a busy machine may take minutes to start
    while len(list(Path("out").glob("*.png"))) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    running.kill()
    running.wait()
    killed_at = {path.name: path.stat().st_mtime_ns for path in Path("out").glob("*.png")}
    assert 4 <= len(killed_at) < count
    assert len({line["input"] for line in lines("list.jsonl")}) == len(lines("list.jsonl")) == count
    assert command("in", "-o", "out", "--manifest", "list.jsonl") == 0
    found = lines("list.jsonl")
    assert len({line["input"] for line in found}) == len(found) == count
    assert {line["status"] for line in found} <= {"done", "kept"}
    assert sum(line["status"] == "kept" for line in found) <= 1, "at most the file that the kill came between"
    assert all(Path("out", name).stat().st_mtime_ns == when for name, when in killed_at.items())
    assert not Path(".list.jsonl.lock").exists()


def test_the_journal_of_a_killed_run_is_taken_in_and_its_torn_line_left_out(tmp_path):
    jobs = [Job(tmp_path / f"{n}.png", tmp_path / "out" / f"{n}.png") for n in range(3)]
    manifest = Manifest(tmp_path / "list.jsonl", jobs, [])
    manifest.record(jobs[0], Outcome("done", level="x"))
    manifest._lock.release()  # as a kill does
    with open(tmp_path / "list.jsonl.journal", "a") as journal:
        journal.write('{"input": "torn')
    again = Manifest(tmp_path / "list.jsonl", jobs, kept=[jobs[0]])
    again.close()
    assert [line["status"] for line in lines(tmp_path / "list.jsonl")] == ["done", "open", "open"]


def test_the_manifest_keeps_one_line_for_an_input_however_it_is_written(command, tiny, tmp_path, capfd):
    tiny.image("in/sub/a.png")
    for spelling in ("in", tmp_path / "in", "in/../in"):
        assert command(spelling, "-o", "out", "--manifest", "list.jsonl") == 0
    assert [line["status"] for line in lines("list.jsonl")] == ["done"]
    before = Path("list.jsonl").read_bytes()
    assert command("in", "-o", "other", "--manifest", "list.jsonl") == 2, "the same input would stand there twice"
    assert command("in", "in/sub/a.png", "-o", "both", "--manifest", "new.jsonl") == 2
    assert "a manifest of its own" in capfd.readouterr().err
    assert Path("list.jsonl").read_bytes() == before and not Path("new.jsonl").exists()
    assert not list(Path().glob("*/**/*.tmp")) and not Path("other/sub").exists()


def test_runs_in_several_folders_share_a_manifest(command, tiny, tmp_path, monkeypatch):
    for _ in range(2):
        for year in ("2025", "2026"):
            (tmp_path / year).mkdir(exist_ok=True)
            monkeypatch.chdir(tmp_path / year)
            tiny.image("a.png")
            assert command("a.png", "-o", "out", "--manifest", "../list.jsonl") == 0
        found = lines(tmp_path / "list.jsonl")
        assert [(Path(line["folder"]).name, line["input"], line["status"]) for line in found] == [
            ("2025", "a.png", "done"),
            ("2026", "a.png", "done"),
        ]


def test_a_file_that_is_no_manifest_is_not_replaced(command, tiny, capfd):
    tiny.image("in.png")
    Path("notes.txt").write_text("my notes\n")
    assert command("in.png", "-o", "out", "--manifest", "notes.txt") == 2
    assert Path("notes.txt").read_text() == "my notes\n" and "line 1 is not one of a manifest" in capfd.readouterr().err
    Path("notes.txt").write_text("[" * 100_000)
    assert command("in.png", "-o", "out", "--manifest", "notes.txt") == 2
    assert "line 1 is not one of a manifest" in capfd.readouterr().err


def test_two_runs_do_not_share_a_manifest(command, tiny, tmp_path, capfd):
    tiny.image("in/a.png")
    tiny.image("in/b.png")
    assert command("in/a.png", "-o", "out", "--manifest", "list.jsonl") == 0
    job = Job(Path("in/c.png"), Path("out/c.png"))
    other = Manifest(tmp_path / "list.jsonl", [job], [])
    other.record(job, Outcome("done"))
    assert command("in", "-o", "out", "--manifest", "list.jsonl") == 2
    assert "the manifest is in use by process" in capfd.readouterr().err and tiny.below("out") == ["a.png"]
    assert other.close() is None
    assert [line["input"] for line in lines("list.jsonl")] == ["in/a.png", "in/c.png"]
    assert command("in", "-o", "out", "--manifest", "list.jsonl") == 0
    assert [line["status"] for line in lines("list.jsonl")] == ["done", "done", "done"]
    assert not Path(".list.jsonl.lock").exists()


@pytest.mark.parametrize("room_at_the_end", [True, False])
def test_a_disk_that_fills_costs_the_manifest_only(room_at_the_end, command, tiny, monkeypatch, capsys):
    """Files may grow to 4000 bytes from the first file on: results do, the manifest and its journal do not."""
    resource = pytest.importorskip("resource", reason="limits of POSIX")
    names = [f"{number:02}{'x' * 200}.png" for number in range(20)]
    for name in names:
        tiny.image(f"in/{name}", (8, 8, 3))
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    begin, end = ConsoleProgress.begin, ConsoleProgress.end

    def lower(self, jobs):
        begin(self, jobs)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, former[1]))

    def lift(self):
        end(self)
        if room_at_the_end:
            resource.setrlimit(resource.RLIMIT_FSIZE, former)

    monkeypatch.setattr(ConsoleProgress, "begin", lower)
    monkeypatch.setattr(ConsoleProgress, "end", lift)
    try:
        status = command("in", "-o", "out", "--manifest", "list.jsonl", "--workers", "1", "--quiet")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)
    said = capsys.readouterr().err
    assert tiny.below("out") == names and status == (0 if room_at_the_end else 1)
    assert said.count("list.jsonl: the manifest cannot be written: File too large") == (not room_at_the_end)
    assert Path("list.jsonl.journal").exists() == (not room_at_the_end)
    monkeypatch.setattr(ConsoleProgress, "begin", begin)
    assert command("in", "-o", "out", "--manifest", "list.jsonl") == 0
    found = lines("list.jsonl")
    assert [line["input"] for line in found] == [f"in/{name}" for name in names]
    assert {line["status"] for line in found} == ({"done"} if room_at_the_end else {"done", "kept"})


def test_urls_as_inputs_and_output(command, tiny, memory):
    import fsspec

    file_system = fsspec.filesystem("memory")
    for name in ("a.png", "sub/b.tif", "sub/.hidden.png", "c.txt"):
        local = tiny.image(Path("local") / name) if not name.endswith("txt") else Path("local/c.txt")
        local.write_bytes(b"text") if name.endswith("txt") else None
        file_system.makedirs("/bucket/in/sub", exist_ok=True)
        file_system.put_file(str(local), f"/bucket/in/{name}")
    assert command(f"{memory}/in", "-o", f"{memory}/out", "--manifest", "list.jsonl") == 0
    assert sorted(file_system.find("/bucket/out")) == ["/bucket/out/a.png", "/bucket/out/sub/b.tif"]
    assert command("local/a.png", "-o", "plain") == 0
    assert file_system.cat("/bucket/out/a.png") == Path("plain/a.png").read_bytes()
    assert [line["status"] for line in lines("list.jsonl")] == ["done", "done"]
    file_system.rm("/bucket/out/a.png")
    before = file_system.modified("/bucket/out/sub/b.tif")
    assert command(f"{memory}/in", "-o", f"{memory}/out") == 0
    assert file_system.exists("/bucket/out/a.png") and file_system.modified("/bucket/out/sub/b.tif") == before
    assert command(f"{memory}/in/*.png", "-o", "down") == 0
    assert tiny.below("down") == ["a.png"]


@pytest.mark.parametrize(
    ("inputs", "out", "reason"),
    [
        (["memory://bucket/none"], "out", "no such file"),
        (["memory://bucket/in/*.tif"], "out", "no images"),
        (["nonsense://bucket/a.png"], "out", "nonsense"),
        (["memory://bucket/in"], "memory://bucket/in", "is an input and would be overwritten"),
        (["memory://bucket/in/*.png"], "memory://bucket/in", "is an input and would be overwritten"),
        (["memory://bucket/in", "memory://bucket/in/a.png", "memory://bucket/two/a.png"], "out", "both be written"),
    ],
    ids=str,
)
def test_doubtful_urls_are_refused_before_anything_is_done(tiny, memory, tmp_path, monkeypatch, inputs, out, reason):
    import fsspec

    monkeypatch.chdir(tmp_path)
    file_system = fsspec.filesystem("memory")
    for name in ("in/a.png", "two/a.png"):
        file_system.pipe_file(f"/bucket/{name}", tiny.image("a.png").read_bytes())
    with pytest.raises(UserError, match=reason):
        plan_jobs(inputs, out)


def test_damage_behind_a_url_names_the_url_and_uploads_that_fail_leave_nothing(
    memory, tmp_path, monkeypatch, command, capfd
):
    import fsspec

    file_system = fsspec.filesystem("memory")
    file_system.pipe_file("/bucket/in/bad.png", b"no image")
    assert command("memory://bucket/in/bad.png", "-o", "memory://bucket/out") == 1
    said = capfd.readouterr().err.replace("\n", " ")
    assert said.count("memory://bucket/in/bad.png") == 1 and tempfile.gettempdir() not in said
    Pillow.new("RGBA", (12, 10)).save("clear.png")
    assert command("clear.png", "-o", "memory://bucket/out.jpg") == 1
    assert "clear.png: memory://bucket/out.jpg: JPEG cannot hold transparency" in capfd.readouterr().err
    with pytest.raises(UserError, match=r"memory://bucket/none\.png"), fetched(Url("memory://bucket/none.png")):
        pass

    def fail(*_arguments, **_options):
        raise OSError("the connection is gone")

    monkeypatch.setattr(type(file_system), "mv", fail)
    with pytest.raises(UserError, match="connection is gone"), stored(Url("memory://bucket/out/x.png")) as local:
        local.write_bytes(b"x")
    assert file_system.find("/bucket/out") == []
    assert existing([Url("memory://bucket/out/x.png")], Url("memory://bucket/out")) == set()


def test_ctrl_c_stops_between_tiles_and_closes_the_manifest(command, tiny, monkeypatch, capfd):
    for number in range(3):
        tiny.image(f"in/{number}.png", (300, 300, 3))
    from vheatir.restore.progress import ConsoleProgress

    def interrupted(*_arguments, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(ConsoleProgress, "ended", interrupted)
    assert command("in", "-o", "out", "--tile", "64", "--workers", "2", "--manifest", "list.jsonl") == 130
    assert "interrupted" in capfd.readouterr().err
    assert len(lines("list.jsonl")) == 3 and not list(Path("out").glob(".*"))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("restore-")]


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_that_ends_a_batch_leaves_no_copies_of_images_behind(command, tiny, monkeypatch, capfd, name):
    import fsspec

    from vheatir.restore.restorer import Restorer

    tiny.image("a.png", (300, 300, 3))
    fsspec.filesystem("memory").put_file("a.png", "/signals/a.png")
    number = getattr(signal, name)
    Path("temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(Path("temporary").absolute()))
    patch = Restorer._patch

    def killed(*arguments, **options):
        assert list(Path("temporary").iterdir()), "the file was fetched"
        os.kill(os.getpid(), number)
        return patch(*arguments, **options)

    monkeypatch.setattr(Restorer, "_patch", killed)
    fallen_back = []
    former = signal.signal(number, lambda *_: fallen_back.append(1))
    try:
        assert command("memory://signals/a.png", "-o", "out", "--tile", "64") == 130
        assert fallen_back == [] and "interrupted" in capfd.readouterr().err
        assert not list(Path("temporary").iterdir()) and not list(Path("out").iterdir())
        os.kill(os.getpid(), number)
        assert fallen_back == [1], "the handler is that of before"
    finally:
        signal.signal(number, former)


def test_lines_of_progress_where_there_is_no_terminal(command, tiny, monkeypatch, capfd):
    from vheatir.restore import progress

    monkeypatch.setattr(progress, "_REPORT_SECONDS", 0.0)
    for number in range(3):
        tiny.image(f"in/{number}.png", (40, 40, 3))
    assert command("in", "-o", "out") == 0
    assert "minutes left" in capfd.readouterr().err


def test_help_imports_no_torch():
    code = "import sys\nfrom vheatir.cli import main\ntry: main(['restore', '--help'])\n"
    code += "except SystemExit: print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "False"
