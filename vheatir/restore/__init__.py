"""`vheatir restore`: images through a network, one or many.

`vheatir.restore("in.jpg", "out.jpg", task="denoise")` is the function of the command, see
`vheatir.restore.api.restore`; `vheatir.Restorer` restores arrays.
"""

from typing import TYPE_CHECKING

from vheatir.utils.lazy import callable_package

if TYPE_CHECKING:
    from vheatir.restore.api import restore

TASKS = ("denoise", "jpeg")
MAX_LEVEL = {"denoise": 255.0, "jpeg": 100.0}  # sigma on the 0-255 scale; libjpeg quality
MOST_WORKERS = 4  # by default; each holds an image, and the network works for one at a time

__all__ = ["MAX_LEVEL", "MOST_WORKERS", "TASKS", "restore"]

callable_package(__name__, {"restore": "vheatir.restore.api"})
