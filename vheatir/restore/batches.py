"""One network for many threads: small images go through it in batches, several at a time; others one by one.

A small image on all cores is mostly waiting of the cores for each other. So each batch gets its share of the threads,
as many batches run as there are lanes, and whoever finds a free lane takes the waiting images of its own size along.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

BATCH_PIXELS = 256 * 256  # of a batch together; larger images are no small ones

Run = Callable[[Tensor, Sequence[float | None]], Tensor]


class _Ticket:
    """An image that waits for its result."""

    def __init__(self, image: Tensor, level: float | None):
        self.image = image
        self.level = level
        self.result: Tensor | None = None
        self.error: Exception | None = None
        self.taken = False

    @property
    def done(self) -> bool:
        return self.result is not None or self.error is not None

    @property
    def kind(self) -> tuple:
        return self.image.shape, self.level is None


class Batches:
    """Calls a function for several threads; without `lanes` for one at a time, each image alone.

    Args:
        run: takes images (B, C, H, W) on the CPU and the level of each, from 0 to 1; returns as many of the same size.
    """

    def __init__(self, run: Run):
        self._run = run
        self._changed = threading.Condition()
        self._waiting: list[_Ticket] = []
        self._alone_waiting = 0
        self._one_alone = False
        self._busy = 0  # lanes in use
        self._lanes = 1
        self._threads = 0  # PyTorch's, where lanes share them; 0: left as they are

    @contextmanager
    def lanes(self, count: int) -> Iterator[None]:
        """For the length of a block, up to `count` batches of small images at a time.

        PyTorch's number of threads is then set in the threads that call; that of the thread which enters stays.
        """
        threads = torch.get_num_threads()
        count = min(count, threads)
        if count < 2:
            yield
            return
        self._lanes = count
        self._threads = threads
        try:
            yield
        finally:
            self._lanes = 1
            self._threads = 0
            torch.set_num_threads(threads)  # what threads that begin later start with

    def call(self, image: Tensor, level: float | None, *, whole: bool) -> Tensor:
        """The result for (1, C, H, W), of the same size.

        Args:
            image: the image or a tile of it.
            level: for networks that take one.
            whole: whether it is a whole image; tiles of one follow each other and gain nothing here.

        Raises:
            Exception: what the function raised for this image; others are not touched by it.
        """
        if self._lanes < 2 or not whole or image.shape[-2] * image.shape[-1] > BATCH_PIXELS:
            with self._alone():
                return self._run(image, [level])
        ticket = _Ticket(image, level)
        batch = self._own_or_batch(ticket)
        if batch:
            try:
                self._set_threads(self._threads and max(1, self._threads // self._lanes))
                self._answer(batch)
            finally:
                with self._changed:
                    self._busy -= 1
                    self._changed.notify_all()
        if ticket.error is not None:
            raise ticket.error
        assert ticket.result is not None, "a ticket ends with a result or an error"
        return ticket.result

    def _own_or_batch(self, ticket: _Ticket) -> list[_Ticket]:
        """What this thread is to compute, with a lane for it; nothing where another thread has done it."""
        with self._changed:
            self._waiting.append(ticket)
            try:
                self._changed.wait_for(lambda: ticket.done or (not ticket.taken and self._is_free()))
            except BaseException:  # Ctrl-C
                if not ticket.taken:
                    self._waiting.remove(ticket)
                raise
            if ticket.done:
                return []
            most = max(1, BATCH_PIXELS // (ticket.image.shape[-2] * ticket.image.shape[-1]))
            alike = [one for one in self._waiting if one is not ticket and one.kind == ticket.kind]
            batch = [ticket, *alike[: most - 1]]
            for one in batch:
                one.taken = True
                self._waiting.remove(one)
            self._busy += 1
            return batch

    def _is_free(self) -> bool:
        return self._busy < self._lanes and not self._one_alone and not self._alone_waiting

    def _answer(self, batch: list[_Ticket]) -> None:
        """Compute a batch; where that fails each image alone, so that an error stays with its image."""
        if len(batch) > 1:
            try:
                results = self._run(torch.cat([one.image for one in batch]), [one.level for one in batch])
            except Exception:
                results = None  # found again below, by the image that it belongs to
            if results is not None:
                for one, result in zip(batch, results.split(1), strict=True):
                    one.result = result
                return
        for one in batch:
            try:
                one.result = self._run(one.image, [one.level])
            except Exception as error:
                one.error = error

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with self._changed:
            self._alone_waiting += 1
            try:
                self._changed.wait_for(lambda: self._busy == 0 and not self._one_alone)
            finally:
                self._alone_waiting -= 1
                self._changed.notify_all()
            self._one_alone = True
        try:
            self._set_threads(self._threads)
            yield
        finally:
            with self._changed:
                self._one_alone = False
                self._changed.notify_all()

    @staticmethod
    def _set_threads(count: int) -> None:
        if count and torch.get_num_threads() != count:
            torch.set_num_threads(count)
