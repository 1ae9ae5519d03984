"""Cut images into overlapping sub-images: python datasets/extract_patches.py SOURCE TARGET."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a checkout works without installation

from vheatir.data.prepare import main_patches

if __name__ == "__main__":
    sys.exit(main_patches(sys.argv[1:]))
