"""`vheatir serve`: a local page on which an image is restored, compared with its input and downloaded."""

import argparse
import contextlib
import http.client
import logging
import os
import shutil
import socket
import tempfile
import threading
import urllib.request
import webbrowser
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from vheatir.errors import UserError
from vheatir.image_io import open_image
from vheatir.image_io.formats import written_name
from vheatir.image_io.view import as_shown
from vheatir.restore.defaults import PRECISIONS, TASKS
from vheatir.restore.one_file import FileOptions, find_level, restore_file
from vheatir.restore.restorer import Restorer
from vheatir.utils.signals import stopped_by_signals

logger = logging.getLogger("vheatir.serve")

LOOPBACK = ("127.0.0.1", "localhost", "::1")
_LABELS = {"Clean up a photograph": "photo", "Remove Gaussian noise": "denoise", "Remove JPEG artifacts": "jpeg"}
_UPLOAD = "Image (PNG, JPEG, TIFF, BMP, WebP, HEIC, AVIF, camera RAW)"
_SHOWN = 1600  # pixels of the longer side that the page gets; the download has all of them
_KEPT_SECONDS = 3600  # uploads, and copies for the page, are deleted at the next full hour after this time
_MOST_SECONDS = 24 * 3600  # results of a page that stays open are kept for
_ANSWER_SECONDS = 60  # that the server has for its first page
_WAITING = 8  # requests in the queue; more are asked to come back


class Page:
    """What the page does, apart from how it looks. One image is restored at a time.

    Args:
        root: folder for results, deleted with the server.
        max_pixels: larger images are refused.
        device: torch device; a GPU when there is one by default.
        precision: "float32", "bf16" or "auto", see `Restorer`.
    """

    def __init__(self, root: Path, max_pixels: int, device: str | None = None, precision: str = "float32"):
        self.root = root
        self.options = FileOptions(max_pixels=max_pixels)
        self.device = device
        self.precision = precision
        self._restorers: dict[tuple[str, float, bool], Restorer] = {}
        self._lock = threading.Lock()

    def restorer(self, task: str, strength: float = 1.0, ensemble: bool = False) -> Restorer:
        key = (task, round(float(strength), 2), bool(ensemble))
        with self._lock:  # images of several pages are described at once
            found = self._restorers.pop(key, None)
            if found is None:
                how = {"device": self.device, "precision": self.precision}
                found = Restorer(task, strength=key[1], ensemble=key[2], **how)
            self._restorers[key] = found  # the last one is the one used last
            while len(self._restorers) > 4:  # every strength is a key of its own
                self._restorers.pop(next(iter(self._restorers)))
        return found

    def describe(self, path: str, task: str) -> str:
        """Size, depth and estimated noise level or JPEG quality, in a sentence."""
        stored = open_image(path, max_pixels=self.options.max_pixels, by_rows=self.options.by_rows)
        try:
            level = find_level(self.restorer(task), stored, None).text
            kind = "gray" if stored.colors == 1 else "color"
            alpha = " with alpha" if stored.has_alpha else ""
            return f"{stored.width} x {stored.height} pixels, {stored.bit_depth} bits, {kind}{alpha}; {level}"
        finally:
            stored.close()

    def restore(self, path: str, task: str, strength: float, ensemble: bool, on_tile=None) -> dict[str, Any]:
        """Restore one file.

        Args:
            path: of the file.
            task: "denoise" or "jpeg".
            strength: from 0 (the input) to 1 (fully restored).
            ensemble: mean over eight flips and rotations.
            on_tile: called with the share done, from 0 to 1.

        Returns:
            {"folder": of the result, "result": its file, "said": what to say about it}.
        """
        folder = Path(tempfile.mkdtemp(dir=self.root))
        try:
            source = Path(path)
            target = Path(written_name(folder / f"{source.stem[:80]}_{task}{source.suffix.lower()}"))
            outcome = restore_file(self.restorer(task, strength, ensemble), source, target, self.options, on_tile)
            for name, file in (("before", source), ("after", target)):
                np.save(folder / f"{name}.npy", _shown(file, self.options))
        except BaseException:
            shutil.rmtree(folder)
            raise
        said = "; ".join([outcome.level, f"{outcome.seconds:.1f} s", *outcome.notes])
        return {"folder": folder, "result": target, "said": said}

    def view(self, folder: Path, zoom: float, across: float, down: float) -> tuple[np.ndarray, np.ndarray]:
        """Before and after, 8 bits, as the page shows them: a part of the image, enlarged pixel by pixel.

        Args:
            folder: of a result.
            zoom: 1 shows the whole image.
            across: where the part lies, from 0 (left) to 1 (right).
            down: the same from 0 (top) to 1 (bottom).
        """
        images = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("before", "after"))
        before, after = (_part(image, zoom, across, down) for image in images)
        return before, after

    def forget(self, held: dict[str, Any] | None) -> None:
        """Delete the files of one result."""
        if held:
            shutil.rmtree(held["folder"], ignore_errors=True)


def _shown(path: Path, options: FileOptions) -> np.ndarray:
    stored = open_image(path, max_pixels=options.max_pixels)
    try:
        return as_shown(stored)
    finally:
        stored.close()


def _part(image: np.ndarray, zoom: float, across: float, down: float) -> np.ndarray:
    height, width = (max(1, round(side / max(1.0, zoom))) for side in image.shape[:2])
    top = round((image.shape[0] - height) * down)
    left = round((image.shape[1] - width) * across)
    part = np.ascontiguousarray(image[top : top + height, left : left + width])
    scale = min(max(1.0, zoom), _SHOWN / max(height, width))
    if scale == 1:
        return part
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return cv2.resize(part, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST)


class OwnPageOnly:
    """ASGI middleware that refuses what pages of other sites send: a browser here would carry their uploads in.

    Browsers say where a request comes from (the header Sec-Fetch-Site of Fetch Metadata, W3C); programs say nothing.

    Args:
        app: the application behind it.
    """

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        sites = {value for name, value in scope.get("headers", ()) if name == b"sec-fetch-site"}
        reads = scope.get("method") in (None, "GET", "HEAD", "OPTIONS")
        if reads or sites <= {b"same-origin", b"none"}:
            await self.app(scope, receive, send)
            return
        plain = [(b"content-type", b"text/plain; charset=utf-8")]
        await send({"type": "http.response.start", "status": 403, "headers": plain})
        await send({"type": "http.response.body", "body": b"Only this server's own page may send anything here.\n"})


def guarded() -> dict[str, Any]:
    """What `launch` hands to the server's application."""
    from starlette.middleware import Middleware

    return {"middleware": [Middleware(OwnPageOnly)]}


def build(page: Page):  # long function: one layout, whose handlers share gradio and the page
    """The Gradio app."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported; the page works without a network
    import gradio as gr

    progress = gr.Progress()  # gradio finds it among the defaults of a function

    def in_its_words(action, *arguments):
        """The action, its errors in the page's words; what nobody foresaw goes to the server's log."""
        try:
            return action(*arguments)
        except (UserError, ValueError, MemoryError) as error:
            file = Path(arguments[0])
            text = str(error).replace(f"{file.parent}{os.sep}", "") or "not enough memory"
            text = (
                text if file.exists() else f"{file.name} is no longer here, uploads are kept for an hour; drop it again"
            )
            raise gr.Error(text, duration=None) from error
        except Exception as error:
            logger.exception("failed on %s", Path(arguments[0]).name)
            raise gr.Error("This image could not be restored; the server's log says why.", duration=None) from error

    def looked_at(path, label):
        return in_its_words(page.describe, path, _LABELS[label]) if path else ""

    def restored(path, label, strength, ensemble, held, zoom, across, down, progress=progress):
        if not path:
            raise gr.Error("Drop an image first.")

        def done(share: float) -> None:
            progress(share, desc="restoring")

        former, held = held, in_its_words(page.restore, path, _LABELS[label], strength, ensemble, done)
        page.forget(former)
        return held, page.view(held["folder"], zoom, across, down), str(held["result"]), held["said"]

    def moved(held, zoom, across, down):
        return page.view(held["folder"], zoom, across, down) if held else None

    with gr.Blocks(title="vHeatIR", delete_cache=(_KEPT_SECONDS, _KEPT_SECONDS)) as app:
        # Called an hour after the page was left; programs never say that they leave.
        held = gr.State(None, time_to_live=_MOST_SECONDS, delete_callback=page.forget)
        gr.Markdown("# vHeatIR\nImage restoration by heat conduction. Images stay on this machine.")
        with gr.Row():
            with gr.Column(scale=1):
                upload = gr.File(
                    label=_UPLOAD,
                    type="filepath",
                    elem_id="upload",
                )
                task = gr.Radio(list(_LABELS), value=next(iter(_LABELS)), label="Task", elem_id="task")
                found = gr.Textbox(label="Found", interactive=False, elem_id="found")
                strength = gr.Slider(0, 1, 1, step=0.05, label="Strength: 0 the input, 1 fully restored")
                ensemble = gr.Checkbox(label="Mean over 8 flips and rotations (better, 8 times slower)")
                button = gr.Button("Restore", variant="primary", elem_id="restore")
                download = gr.DownloadButton("Download, with bit depth and metadata", elem_id="download")
                said = gr.Textbox(label="Done", interactive=False, elem_id="said")
            with gr.Column(scale=3):
                slider = gr.ImageSlider(label="Before and after", format="png", type="numpy", elem_id="slider")
                zoom = gr.Slider(1, 16, 1, step=0.5, label="Zoom", elem_id="zoom")
                across = gr.Slider(0, 1, 0.5, label="Across")
                down = gr.Slider(0, 1, 0.5, label="Down")
        looks = {"fn": looked_at, "inputs": [upload, task], "outputs": found, "api_visibility": "private"}
        upload.change(**looks)
        task.change(**looks)
        where = [zoom, across, down]
        button.click(
            restored,
            [upload, task, strength, ensemble, held, *where],
            [held, slider, download, said],
            concurrency_limit=1,
            api_visibility="private",
        )
        for control in where:
            control.release(moved, [held, *where], slider, api_visibility="private")
    return app.queue(max_size=_WAITING, default_concurrency_limit=2)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "vheatir serve",
        description="Open a page on this machine: drop an image, restore it, compare, download.",
        epilog="The page needs no network. Others can reach it only where --host says so; it asks for no password.",
    )
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine only)")
    add("--port", type=int, default=7860, help="default: %(default)s")
    add("--device", help="torch device (default: a GPU when there is one)")
    add("--precision", choices=PRECISIONS, default="float32", help="of the products (default: %(default)s)")
    add("--max-megapixels", type=float, default=40, metavar="N", help="refuse larger images (default: %(default)s)")
    add("--max-megabytes", type=float, default=200, metavar="N", help="refuse larger files (default: %(default)s)")
    add("--open", action="store_true", help="open the page in the browser")
    return parser


def check_address(host: str, port: int) -> None:
    """UserError where this machine cannot listen there."""
    if not 0 < port < 65536:
        raise UserError(f"--port must lie between 1 and 65535, got {port}")
    for address in dict.fromkeys((host, LOOPBACK[0])):  # wherever it listens, gradio refuses a port that is taken here
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        try:
            with socket.socket(family) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((address, port))
        except OSError as error:
            text = f"cannot listen on {address}:{port}: {error.strerror or error}; choose another --port or --host"
            raise UserError(text) from None


@contextlib.contextmanager
def _without_proxies() -> Iterator[None]:
    """Within it no request goes through a proxy: gradio asks its own server whether it is there, and ends if it is not.

    A proxy cannot reach this machine's own address, and a SOCKS one needs a library that is not installed.
    """
    names = ("no_proxy", "NO_PROXY")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "*"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _serve(app: Any, root: str, *, host: str, port: int, max_megabytes: float, opened: bool) -> None:
    """Serve the page until it is interrupted; UserError where its server does not start or does not answer."""
    host = f"[{host}]" if ":" in host else host  # as in addresses
    try:
        app.launch(
            server_name=host,
            server_port=port,
            max_file_size=f"{round(max_megabytes * 1e6)}b",
            allowed_paths=[root],
            inbrowser=opened,
            share=False,
            footer_links=[],
            app_kwargs=guarded(),
        )
    except OSError as error:  # gradio waits for the server, for 5 seconds
        text = f"the page's server did not start at {host}:{port}: this machine is very busy, or another "
        raise UserError(f"{text}program took the port; try again, or choose another --port") from error
    except ValueError:
        # gradio wants an answer from its own server within 3 seconds, which a busy machine may not give.
        if not app.is_running:
            raise
        _check_answer(app)
        if opened:
            webbrowser.open(app.local_url)
        app.block_thread()


def _check_answer(app: Any) -> None:
    """End the server with a UserError where it does not answer this machine."""
    try:
        with urllib.request.urlopen(app.local_url, timeout=_ANSWER_SECONDS):
            pass
    except (OSError, http.client.HTTPException) as error:
        app.close(verbose=False)
        text = f"the page's server does not answer at {app.local_url}: {error}; this machine is very busy, or keeps "
        text += "programs from reaching its own addresses; try again, or choose another --host"
        raise UserError(text) from error


def main(argv: list[str]) -> int:
    """Entry of `vheatir serve`; Ctrl-C, SIGTERM and SIGHUP end it, with the images that it holds."""
    arguments = _parser().parse_args(argv)
    for name, value in (("megapixels", arguments.max_megapixels), ("megabytes", arguments.max_megabytes)):
        if not 0 < value < 1e6:
            raise UserError(f"--max-{name} must be above 0, got {value}")
    check_address(arguments.host, arguments.port)
    logging.basicConfig(format="%(message)s")
    with stopped_by_signals(), _without_proxies(), tempfile.TemporaryDirectory(prefix="vheatir-") as root:
        os.environ["GRADIO_TEMP_DIR"] = str(Path(root) / "uploads")  # deleted with the results when the server ends
        page = Page(Path(root), round(arguments.max_megapixels * 1e6), arguments.device, arguments.precision)
        for task in TASKS:  # missing weights and unusable devices show before the page opens
            page.restorer(task)
        try:
            app = build(page)
        except ImportError as error:
            raise UserError(f"{error}; install the page's library: pip install 'vheatir[serve]'") from error
        if arguments.host not in LOOPBACK:
            logger.warning("anyone who can reach %s can use this page; it asks for no password", arguments.host)
        with contextlib.suppress(KeyboardInterrupt):
            _serve(
                app,
                root,
                host=arguments.host,
                port=arguments.port,
                max_megabytes=arguments.max_megabytes,
                opened=arguments.open,
            )
    return 0
