"""PSNR, SSIM and PSNR-B of restored images against references of the same names, for results of any program.

Images are 8-bit (16-bit files are reduced to 8 bits), paired by file name without suffix. See docs/evaluation.md.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # this checkout, installed or not

from vheatir.cli import run
from vheatir.evaluate.folders import compare_folders
from vheatir.utils.files import printable
from vheatir.utils.run_metadata import prepare_output, run_metadata, write_json


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser("compute_metrics.py", description=__doc__.splitlines()[0])
    parser.add_argument("restored", type=Path, metavar="RESTORED_DIR", help="folder of restored images")
    parser.add_argument("reference", type=Path, metavar="REFERENCE_DIR", help="folder of references of the same names")
    parser.add_argument("--border", type=int, default=0, metavar="N", help="pixels cut from each side (default: 0)")
    parser.add_argument("--luma", action="store_true", help="compare BT.601 luma (16 to 235)")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the figures and metadata to this file")
    options = parser.parse_args(argv)
    if options.json is not None:
        prepare_output(options.json)
    result = compare_folders(options.restored, options.reference, border=options.border, luma=options.luma)
    sys.stderr.writelines(f"note: {printable(note)}\n" for note in result["notes"])
    names = [printable(record["image"]) for record in result["per_image"]]
    width = max(map(len, ["mean", *names]))
    print(f"{'image':<{width}}   PSNR   SSIM  PSNR-B")
    for name, record in zip([*names, "mean"], [*result["per_image"], result]):
        print(f"{name:<{width}}  {record['psnr']:5.2f} {record['ssim']:.4f}   {record['psnrb']:5.2f}")
    if options.json is not None:
        metadata = run_metadata(["python", "scripts/compute_metrics.py", *argv])
        write_json(options.json, {"results": [result], "metadata": metadata})
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
