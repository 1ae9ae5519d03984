"""Tasks and defaults of `vheatir restore`, which the command line reads without loading torch."""

TASKS = ("photo", "denoise", "jpeg")
DEFAULT_TASK = "photo"
PRECISIONS = ("float32", "bf16", "auto")
MAX_LEVEL = {"denoise": 255.0, "jpeg": 100.0}  # sigma on the 0-255 scale; libjpeg quality; photo has no level
GOOD_QUALITY = 95  # of a JPEG file: from here on the task jpeg would take away more than it mends
DEFAULT_CRF = 16.0  # of clips: hardly told from the restored frames
MOST_CRF = 51.0
MOST_WORKERS = 4  # by default; each holds an image, and the network works for one at a time
