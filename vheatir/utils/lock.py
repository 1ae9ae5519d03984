"""A lock that the operating system drops with its process, so that nothing is left to clean up after a kill.

Not `filelock`, though torch brings it: its locks do not say who holds them, children inherit them by fork (loader
workers that outlive a killed trainer would keep its run locked), and several processes cannot ask its `FileLock` at
once whether somebody holds it.
"""

import contextlib
import logging
import os
import socket
import time
from pathlib import Path
from weakref import WeakSet

from vheatir.errors import UserError

try:
    import fcntl
except ImportError:  # Windows has other locks
    fcntl = None

_logger = logging.getLogger("vheatir")
_held: "WeakSet[Lock]" = WeakSet()


class Lock:
    """Exclusive use of something, for as long as this process lives or until `release`.

    It is the open file that is locked, not its existence: a file that was left behind locks nothing. Loader workers,
    which outlive a killed parent for some seconds, do not inherit it. Where the file system knows no locks there is
    none, and a warning.

    Args:
        path: lock file; made when missing, says who holds it, removed by `release`.
        what: named in the error.
        advice: ends the error.

    Raises:
        UserError: another process holds it.
    """

    def __init__(self, path: Path, what: str, advice: str):
        self.path = path
        self._descriptor = _open(path)
        try:
            while _take(self._descriptor, path, what, advice) and not _is_at(self._descriptor, path):
                self._forget()  # its holder released it, and so removed it, between our opening and locking
                self._descriptor = _open(path)
        except UserError:
            self._forget()
            raise
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        try:
            os.ftruncate(self._descriptor, 0)
            os.write(self._descriptor, f"process {os.getpid()} on {socket.gethostname()} since {since}".encode())
        except OSError:  # as on a full disk
            self.release()
            raise
        _held.add(self)

    def release(self) -> None:
        """Give it up; nothing happens the second time."""
        if self._descriptor is None:
            return
        if fcntl is None:  # Windows removes no open file, and nobody can lock it in between
            self._forget()
            with contextlib.suppress(PermissionError):  # another process has opened it too, and will remove it
                self.path.unlink(missing_ok=True)
            return
        try:
            self.path.unlink(missing_ok=True)
        finally:
            self._forget()

    def _forget(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def refuse_if_held(path: Path, what: str, advice: str) -> None:
    """Raise the UserError of `Lock` where another process holds it; several may ask at once.

    Args:
        path: the lock file.
        what: it guards, for the message.
        advice: what the user can do.
    """
    if path.exists():
        descriptor = _open(path)
        try:
            _take(descriptor, path, what, advice, shared=True)
        finally:
            os.close(descriptor)


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)


def _take(descriptor: int, path: Path, what: str, advice: str, shared: bool = False) -> bool:
    """Lock an open file; False where there are no locks."""
    try:
        if fcntl is None:
            raise OSError("no fcntl on this system")
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(descriptor, 1000).decode(errors="replace") or "another process"
        raise UserError(f"{what} is in use by {holder}; {advice}") from None
    except OSError as error:
        _logger.warning("%s cannot be locked (%s): see that no second process uses %s", path, error, what)
        return False
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _forget_all() -> None:
    for lock in list(_held):
        lock._forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
