"""Pack a folder of images into an LMDB: python datasets/make_lmdb.py SOURCE TARGET.lmdb."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a checkout works without installation

from vheatir.data.prepare import main_lmdb

if __name__ == "__main__":
    sys.exit(main_lmdb(sys.argv[1:]))
