"""The page: what it does without a browser, and end to end in a headless one."""

import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data
from PIL import Image, ImageCms, ImageOps

from vheatir import serve
from vheatir.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
ODD = ROOT / "tests" / "data" / "odd"


@pytest.fixture
def image(tmp_path):
    """A noisy photograph, 16 bits."""
    clean = skimage.data.chelsea()[60:156, 100:212, ::-1].astype(np.float64) * 257
    noisy = clean + np.random.default_rng(0).normal(0, 25 * 257, clean.shape)
    path = tmp_path / "Katze ä.png"
    assert cv2.imwrite(str(path), np.rint(noisy.clip(0, 65535)).astype(np.uint16))
    return path


class TestPage:
    @pytest.fixture
    def page(self, tmp_path):
        (tmp_path / "root").mkdir()
        return serve.Page(tmp_path / "root", max_pixels=20_000, device="cpu")

    def test_it_describes_restores_shows_and_forgets(self, page, image):
        text = page.describe(str(image), "denoise")
        assert text.startswith("112 x 96 pixels, 16 bits, color; noise level 2")
        shares = []
        held = page.restore(str(image), "denoise", 1.0, False, shares.append)
        assert shares[-1] == 1 and "noise level" in held["said"]
        result = cv2.imread(str(held["result"]), cv2.IMREAD_UNCHANGED)
        assert result.dtype == np.uint16 and result.shape == (96, 112, 3)
        before, after = page.view(held["folder"], 1, 0.5, 0.5)
        noisy = cv2.cvtColor(cv2.imread(str(image), cv2.IMREAD_UNCHANGED), cv2.COLOR_BGR2RGB)
        np.testing.assert_allclose(before, noisy / 257, atol=0.51)
        clean = skimage.data.chelsea()[60:156, 100:212].astype(float)
        assert ((after - clean) ** 2).mean() < ((before - clean) ** 2).mean() / 5
        page.forget(held)
        page.forget(None)
        assert not list(page.root.iterdir())

    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
    def test_it_shows_images_upright(self, page, tmp_path, orientation, suffix):
        exif = Image.Exif()
        exif[274] = orientation
        path = tmp_path / f"in{suffix}"
        Image.fromarray(skimage.data.chelsea()[60:100, 100:160]).save(path, exif=exif, lossless=True)
        with Image.open(path) as image:
            expected = np.asarray(ImageOps.exif_transpose(image))
        held = page.restore(str(path), "denoise", 0.0, False)
        before, after = page.view(held["folder"], 1, 0.5, 0.5)
        np.testing.assert_array_equal(before, expected)
        assert before.shape == after.shape and np.abs(before.astype(int) - after).mean() < 3

    def test_it_shows_the_photo_of_a_phone_upright(self, page):
        held = page.restore(str(ODD / "serve" / "exif_orientation6.jpg"), "denoise", 0.0, False)
        before, after = page.view(held["folder"], 1, 0.5, 0.5)
        assert before.shape == after.shape == (96, 72, 3)

    @pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
    def test_it_shows_the_colors_of_the_profile(self, page, tmp_path, mode):
        """A profile whose red and blue stand in each other's place, or a far brighter gray: seen at once."""
        profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
        for a, b in ((b"rXYZ", b"bXYZ"),):
            first, second = profile.index(a), profile.index(b)
            profile[first : first + 4], profile[second : second + 4] = b, a
        color = np.full((20, 30, 3), (200, 40, 60), np.uint8)
        image = Image.fromarray(color).convert(mode)
        image.save(tmp_path / "in.png", icc_profile=bytes(profile))
        held = page.restore(str(tmp_path / "in.png"), "denoise", 0.0, False)
        before, after = page.view(held["folder"], 1, 0.5, 0.5)
        expected = np.asarray(image.convert("RGB")) if mode == "L" else color[..., ::-1]  # no profile for gray
        assert np.abs(before.astype(int) - expected).max() <= 2
        np.testing.assert_array_equal(before, after)

    def test_zoom_shows_a_part_pixel_by_pixel(self, page, image):
        held = page.restore(str(image), "denoise", 0.0, False)
        whole, same = page.view(held["folder"], 1, 0, 0)
        np.testing.assert_array_equal(whole, same)  # strength 0
        part, _ = page.view(held["folder"], 4, 1, 0)
        assert part.shape == (96, 112, 3)
        np.testing.assert_array_equal(part, whole[:24, -28:].repeat(4, 0).repeat(4, 1))

    def test_a_large_image_is_shown_smaller(self):
        assert serve._part(np.zeros((400, 3200, 3), np.uint8), 1, 0, 0).shape == (200, 1600, 3)

    def test_too_large_and_broken_images_are_refused_and_leave_nothing(self, page, tmp_path):
        big, broken = tmp_path / "big.png", tmp_path / "broken.png"
        assert cv2.imwrite(str(big), np.zeros((200, 101, 3), np.uint8))
        broken.write_bytes(b"no image")
        with pytest.raises(UserError, match="pixels"):
            page.describe(str(big), "denoise")
        for path in (big, broken):
            with pytest.raises(UserError):
                page.restore(str(path), "jpeg", 1.0, False)
        assert not list(page.root.iterdir())

    def test_the_restorers_used_last_are_kept_whoever_asks(self, page, monkeypatch):
        """Also by several threads at once."""
        made = []

        class Slow:
            def __init__(self, task, **how):
                time.sleep(0.001)
                made.append(task)

        monkeypatch.setattr(serve, "Restorer", Slow)
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(page.restorer, ["denoise"] * 50, [0.1 * (number % 9) for number in range(50)]))
        assert all(isinstance(one, Slow) for one in found) and len(page._restorers) == 4
        kept = page.restorer("photo")
        made.clear()
        for number in range(9):
            page.restorer("jpeg", number / 10)
            assert page.restorer("photo") is kept
        assert made == ["jpeg"] * 9

    def test_an_open_page_keeps_its_result_and_says_that_its_upload_is_gone(self, page, image):
        gradio = pytest.importorskip("gradio", reason="pip install 'vheatir[serve]'")
        app = serve.build(page)
        (held,) = (block for block in app.blocks.values() if isinstance(block, gradio.State))
        assert held.time_to_live == 24 * 3600
        (look,) = {one.fn for one in app.fns.values() if one.name == "looked_at"}
        assert look(str(image), "Remove Gaussian noise").startswith("112 x 96 pixels")
        image.unlink()
        with pytest.raises(gradio.Error, match=r"Katze ä\.png is no longer here, .* drop it again"):
            look(str(image), "Remove Gaussian noise")


class TestCommand:
    @pytest.mark.parametrize(
        ("arguments", "expected"),
        [
            (["--port", "0"], "--port"),
            (["--max-megapixels", "-1"], "--max-megapixels"),
            (["--host", "203.0.113.1"], "cannot listen"),
        ],
    )
    def test_wrong_arguments_are_named(self, arguments, expected):
        with pytest.raises(UserError, match=expected):
            serve.main(arguments)

    def test_a_taken_port_is_named(self):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            with pytest.raises(UserError, match=f"{port}.*another --port"):
                serve.main(["--port", str(port)])
            with pytest.raises(UserError, match=f"127.0.0.1:{port}.*another --port"):  # as gradio would, later
                serve.check_address("127.0.0.2", port)


@pytest.fixture
def server(tmp_path):
    """Address of a running server, and its log."""
    pytest.importorskip("gradio", reason="pip install 'vheatir[serve]'")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path / "server.log"
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with log.open("wb") as file:
        command = [sys.executable, "-m", "vheatir", "serve", "--port", str(port), "--max-megapixels", "1"]
        process = subprocess.Popen(command, stdout=file, stderr=file, env=environment, cwd=tmp_path)
    try:
        yield f"http://127.0.0.1:{port}", process, log
    finally:
        process.kill()
        process.wait()


def _reachable(address, process, log):
    for _ in range(240):
        assert process.poll() is None, log.read_text()
        try:
            return urllib.request.urlopen(address, timeout=5).status == 200
        except OSError:
            time.sleep(0.5)
    raise AssertionError(f"no answer from {address}: {log.read_text()}")


def _uploaded(address, **headers):
    """The status that a server answers to an upload."""
    body = b'--X\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\nhello\r\n--X--\r\n'
    headers = {"Content-Type": "multipart/form-data; boundary=X", **headers}
    request = urllib.request.Request(f"{address}gradio_api/upload", body, headers)
    try:
        return urllib.request.urlopen(request, timeout=20).status
    except urllib.error.HTTPError as error:
        return error.code


def _refused_by_gradio(monkeypatch):
    """What it does where its server takes longer than three seconds for the page."""
    gradio = pytest.importorskip("gradio", reason="pip install 'vheatir[serve]'")
    monkeypatch.setattr(gradio.networking, "url_ok", lambda url: False)


def _started(monkeypatch, *further):
    """What `main` returns, with any free port."""
    monkeypatch.setattr(serve.Page, "restorer", lambda *_: None)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return serve.main(["--device", "cpu", "--port", str(port), *further])


def _is_served(address):
    try:
        return urllib.request.urlopen(address, timeout=20).status == 200
    except OSError:
        return False


def test_a_busy_machine_may_answer_late(monkeypatch):
    """The page is served and opened although gradio waited for it in vain."""
    gradio = pytest.importorskip("gradio", reason="pip install 'vheatir[serve]'")
    _refused_by_gradio(monkeypatch)
    opened = []
    answers = []
    monkeypatch.setattr("webbrowser.open", opened.append)

    def blocked(app):
        answers.append(_is_served(app.local_url))
        app.close(verbose=False)
        raise KeyboardInterrupt

    monkeypatch.setattr(gradio.Blocks, "block_thread", blocked)
    assert _started(monkeypatch, "--open") == 0
    assert answers == [True] and len(opened) == 1 and not _is_served(opened[0])


def test_a_server_that_never_answers_ends_with_advice(monkeypatch):
    _refused_by_gradio(monkeypatch)

    def ask(address, timeout):
        asked.append(address)
        raise TimeoutError("timed out")

    asked = []
    with monkeypatch.context() as patched, pytest.raises(UserError, match=r"does not answer.*busy.*try again"):
        patched.setattr("urllib.request.urlopen", ask)
        _started(monkeypatch)
    assert len(asked) == 1 and not _is_served(asked[0])


def test_a_server_that_starts_too_late_ends_with_advice(monkeypatch):
    class App:
        def launch(self, **_):
            raise OSError("Cannot find empty port in range: 7860-7860.")

    monkeypatch.setattr(serve, "build", lambda page: App())
    with pytest.raises(UserError, match=r"did not start at 127\.0\.0\.1:\d+.*busy.*another --port"):
        _started(monkeypatch)


def _serve_until(look, monkeypatch, host="127.0.0.1"):
    """Serve the page in this process until `look`, which gets it and its address, has returned."""
    if importlib.util.find_spec("gradio") is None:  # not imported yet: the environment of `main` matters to it
        pytest.skip("pip install 'vheatir[serve]'")
    monkeypatch.setattr(serve.Page, "restorer", lambda *_: None)
    build = serve.build

    def built(page):
        app = build(page)
        launch = app.launch

        def launched(**options):
            _, address, _ = launch(**options, prevent_thread_lock=True, quiet=True)
            look(page, address)
            app.close(verbose=False)

        monkeypatch.setattr(app, "launch", launched)
        return app

    monkeypatch.setattr(serve, "build", built)
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as free:
        try:
            free.bind((host, 0))
        except OSError:
            pytest.skip(f"this machine has no address {host}")
        port = free.getsockname()[1]
    assert serve.main(["--device", "cpu", "--host", host, "--port", str(port)]) == 0


def test_pages_of_other_sites_send_nothing(monkeypatch):
    """A browser on this machine would carry it in; it says whose page sends, other programs say nothing."""
    answers = []

    def look(page, address):
        assert urllib.request.urlopen(address, timeout=20).status == 200
        for site in ("cross-site", "same-site", "same-origin"):
            answers.append(_uploaded(address, **{"Sec-Fetch-Site": site}))
            answers.append(len(list(page.root.rglob("a.png"))))
        answers.append(_uploaded(address))

    _serve_until(look, monkeypatch)
    assert answers == [403, 0, 403, 0, 200, 1, 200]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_it_starts_where_a_proxy_is_set_and_by_both_protocols(host, monkeypatch):
    """gradio asks its own server whether it is there."""
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "of.mine")
    monkeypatch.delenv("NO_PROXY", raising=False)
    answers = []
    _serve_until(
        lambda page, address: answers.append(urllib.request.urlopen(address, timeout=20).status), monkeypatch, host
    )
    assert answers == [200] and os.environ["no_proxy"] == "of.mine" and "NO_PROXY" not in os.environ


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize("number", ["SIGTERM", "SIGHUP"])
def test_images_are_deleted_when_the_server_is_stopped(number, monkeypatch, image, tmp_path):
    """Signals that come while the page is served, and again while it is cleaned up."""
    seen = []

    class App:
        def launch(self, *, allowed_paths, **_):
            (folder,) = map(Path, allowed_paths)
            shutil.copy(image, folder / "upload.png")
            seen.append(folder)
            os.kill(os.getpid(), getattr(signal, number))
            time.sleep(10)
            raise AssertionError("the signal did not interrupt")

    monkeypatch.setattr(serve, "build", lambda page: App())
    monkeypatch.setattr(serve.Page, "restorer", lambda *_: None)
    monkeypatch.setattr(serve, "check_address", lambda *_: None)
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    removed = tempfile.TemporaryDirectory.cleanup

    def cleanup(self):
        os.kill(os.getpid(), signal.SIGTERM)
        removed(self)

    monkeypatch.setattr(tempfile.TemporaryDirectory, "cleanup", cleanup)
    fallen_back = []
    numbers = (signal.SIGTERM, signal.SIGHUP)
    former = [signal.signal(each, lambda *_: fallen_back.append(1)) for each in numbers]
    try:
        assert serve.main(["--device", "cpu"]) == 0
        assert len(seen) == 1 and not seen[0].exists() and fallen_back == []
        os.kill(os.getpid(), getattr(signal, number))
        assert fallen_back == [1], "the handlers are those of before"
    finally:
        for each, handler in zip(numbers, former, strict=True):
            signal.signal(each, handler)


def test_a_image_is_restored_compared_and_downloaded_in_a_browser(server, image, tmp_path):
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    browsers = filter(None, map(shutil.which, ("chromium-headless-shell", "chromium", "google-chrome")))
    browser_path = next(browsers, None)
    if browser_path is None:
        pytest.skip("needs a Chromium on the PATH")
    address, process, log = server
    assert _reachable(address, process, log)
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    playwright.expect.set_options(timeout=90_000)  # a busy machine
    with playwright.sync_playwright() as play:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
        browser = play.chromium.launch(executable_path=browser_path, args=flags)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(90_000)
        asked = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address)
        page.locator("#upload input[type=file]").set_input_files(str(image))
        found = page.locator("#found textarea, #found input")
        playwright.expect(found).to_have_value(re.compile(r"112 x 96 pixels, 16 bits, color; noise"))
        page.locator("#restore").click()
        playwright.expect(page.locator("#said textarea, #said input")).to_have_value(re.compile("noise level"))
        shown = page.locator("#slider img")
        playwright.expect(shown).to_have_count(2)
        sources = [shown.nth(number).get_attribute("src") for number in range(2)]
        with page.expect_download() as download:
            page.locator("#download").click()
        download.value.save_as(tmp_path / "download.png")
        page.screenshot(path=os.environ.get("VHEATIR_SCREENSHOT") or tmp_path / "page.png")
        page.locator("#upload button[aria-label*='lear' i], #upload button[aria-label*='remove' i]").first.click()
        page.locator("#upload input[type=file]").set_input_files(str(broken))
        playwright.expect(page.get_by_text("broken.png").last).to_be_visible()
        playwright.expect(page.locator(".toast-body").first).to_be_visible()
        message = page.locator(".toast-body").first.inner_text()
        browser.close()
    assert "PNG" in message and "Traceback" not in message and "/" not in message.split("broken.png")[0]
    assert all(url.startswith((address, "data:", "blob:")) for url in asked), asked
    assert len(set(sources)) == 2 and all(".png" in source for source in sources)
    result = cv2.imread(str(tmp_path / "download.png"), cv2.IMREAD_UNCHANGED)
    assert result.dtype == np.uint16 and result.shape == (96, 112, 3)
    clean = skimage.data.chelsea()[60:156, 100:212, ::-1] * 257.0
    noisy = cv2.imread(str(image), cv2.IMREAD_UNCHANGED).astype(float)
    assert ((result - clean) ** 2).mean() < ((noisy - clean) ** 2).mean() / 5
