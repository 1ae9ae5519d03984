"""PSNR, SSIM and PSNR-B on test sets by the published protocol; the same as `vheatir evaluate`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # this checkout, installed or not

from vheatir.cli import run
from vheatir.evaluate.command import main

if __name__ == "__main__":
    raise SystemExit(run(main))
