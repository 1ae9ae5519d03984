#!/usr/bin/env python3
"""Train and evaluate classifiers from a checkout that is not installed: `vheatir pretrain` as a file.

python scripts/pretrain.py -opt options/classification/vheat_tiny.yml
torchrun --nproc-per-node 8 scripts/pretrain.py -opt options/classification/vheat_tiny.yml
"""

import sys
from pathlib import Path

# The checkout, where vheatir is not installed.
sys.path.append(str(Path(__file__).resolve().parent.parent))

if __name__ == "__main__":
    from vheatir.cli import run
    from vheatir.pretrain import main

    raise SystemExit(run(main))
