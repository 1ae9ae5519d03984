"""Time, peak memory and PSNR of denoisers on a CPU, side by side: ours, and others at their published sizes.

    python benchmarks/speed_networks.py --data datasets/test/CBSD68 --json results/speed_networks.json
    python benchmarks/speed_networks.py --data datasets/test/CBSD68 --light OLD.safetensors --json results/speed.json

Images of a folder with Gaussian noise of sigma 25, in float32 and bf16 (autocast), on 1 and 2 threads; SwinIR gets a
part of one image. Each network has a process of its own for each type, and works when it is its turn: all of them,
round after round, every second round in reverse order. Then a photograph of 12 megapixels: through `vheatir restore`
for our networks, and for all in the tiles of that command; and the folder through `vheatir restore`. Peak memory is
the largest resident memory of the process up to then, Python and libraries included.

PSNR is measured for networks with weights. The others have random ones: their time does not depend on them, and the
PSNR beside them is that of their papers. `--light` takes the weights of the flat network that was shipped before.
"""

import argparse
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from large_images import measure, write_image
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from vheatir import weights as store
from vheatir.archs.dncnn_arch import DnCNN
from vheatir.backbone.layers.freezing import freeze
from vheatir.cli import run
from vheatir.data.datasets import GaussianNoiseDataset
from vheatir.image_io.arrays import to_uint8
from vheatir.image_io.read import read_image
from vheatir.image_io.write import save_png
from vheatir.metrics.fidelity import psnr
from vheatir.restore.tiling import DEFAULT_OVERLAP, apply_tiled, default_tile
from vheatir.train.validation import validate
from vheatir.utils.run_metadata import prepare_output, resident_mib, run_metadata, write_json

SIGMA = 25
SHIPPED = "denoise_color_blind"
THREADS = (1, 2)
TYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
OURS = ("vheatunet", "light")
# PSNR of CBSD68 at sigma 25 in the papers, and of what.
PUBLISHED = {
    "dncnn": (31.24, "DnCNN, arXiv 1608.03981, as SwinIR's tables state it"),
    "ffdnet": (31.21, "FFDNet, arXiv 1710.04026"),
    "swinir_light": (31.78, "SwinIR, arXiv 2108.10257, of 11.5 M parameters: none is published for this size"),
}
_PART = 160  # pixels: the side of the part of one image that SwinIR gets
_SWINIR = {"window_size": 8, "embed_dim": 60, "depths": [6] * 4, "num_heads": [6] * 4, "mlp_ratio": 2.0}


class FFDNetLike(nn.Module):
    """FFDNet in its color size: 12 convolutions of 96 channels on half the resolution, with a plane of the noise level.

    Input and output: (B, 3, H, W), any size. Batch normalization is merged, as it is for use.
    Source: arXiv 1710.04026.
    """

    def __init__(self, dim: int = 96, depth: int = 12, sigma: float = SIGMA / 255):
        super().__init__()
        self.sigma = sigma
        widths = [15, *[dim] * (depth - 1), 12]
        convolutions = [nn.Conv2d(*pair, 3, padding=1) for pair in itertools.pairwise(widths)]
        layers = [layer for one in convolutions for layer in (one, nn.ReLU(inplace=True))]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, image: Tensor) -> Tensor:
        """Denoise (B, 3, H, W)."""
        height, width = image.shape[2:]
        even = F.pad(image, (0, width % 2, 0, height % 2), mode="replicate")
        planes = F.pixel_unshuffle(even, 2)
        planes = torch.cat([planes, torch.full_like(planes[:, :3], self.sigma)], 1)
        restored = self.layers(planes.contiguous(memory_format=torch.channels_last))
        return F.pixel_shuffle(restored, 2)[..., :height, :width].float()


def merged_dncnn() -> DnCNN:
    """CDnCNN-B with batch normalization merged into the convolutions, as it is for use."""
    network = DnCNN().eval()
    merged: list[nn.Module] = []
    for layer in network.layers:
        if isinstance(layer, nn.BatchNorm2d):
            merged[-1] = fuse_conv_bn_eval(merged[-1], layer)
        else:
            merged.append(layer)
    network.layers = nn.Sequential(*merged)
    return network


def build(name: str, light: str | None) -> nn.Module:
    """A network by its name, ready to use."""
    torch.manual_seed(0)
    if name in OURS:
        network = store.load(SHIPPED if name == "vheatunet" else light)[0]
    elif name == "dncnn":
        network = merged_dncnn()
    elif name == "ffdnet":
        network = FFDNetLike()
    else:
        from vheatir.archs.swinir_arch import AnySizeSwinIR

        network = AnySizeSwinIR(img_size=64, resi_connection="1conv", **_SWINIR)
    return freeze(network)


def images_of(data: str) -> GaussianNoiseDataset:
    """The folder with noise as the evaluation protocol draws it."""
    options = {"type": "GaussianNoiseDataset", "dataroot_gt": data, "phase": "val", "sigma": SIGMA, "in_chans": 3}
    return GaussianNoiseDataset(options)


def restored(network: nn.Module, image: Tensor) -> Tensor:
    """(1, 3, H, W) through a network, in the tiles of `vheatir restore`."""
    tile = default_tile(*image.shape[2:])
    return apply_tiled(network, image, tile, min(DEFAULT_OVERLAP, tile // 4) if tile else DEFAULT_OVERLAP)


def work(name: str, type_name: str, data: str, light: str | None) -> None:
    """A process of one network: does what each line of stdin asks for, and answers in one of stdout."""
    network = build(name, light)
    dataset = images_of(data)
    narrow = torch.autocast("cpu", torch.bfloat16, enabled=type_name == "bf16")
    for line in sys.stdin:
        task = json.loads(line)
        torch.set_num_threads(task["threads"])
        answer: dict[str, Any] = {"parameters": sum(one.numel() for one in network.parameters())}
        with torch.inference_mode(), narrow:
            if task["do"] == "psnr":
                scored = validate(network, dataset, {"psnr": psnr}, device=torch.device("cpu"))
                answer |= {"psnr": scored["restored"]["psnr"], "images": scored["images"]}
            else:
                if task["do"] == "photo":
                    images = [torch.from_numpy(np.load(task["file"])).permute(2, 0, 1)[None].float() / 255]
                else:
                    images = [dataset[index]["lq"][None] for index in range(task["images"])]
                    if name == "swinir_light":  # it would take most of the time of the whole run
                        images = [images[0][..., :_PART, :_PART]]
                wall, processor = time.perf_counter(), time.process_time()
                for image in images:
                    restored(network, image)
                answer |= {"seconds": time.perf_counter() - wall, "processor_s": time.process_time() - processor}
                answer["megapixels"] = sum(image.shape[2] * image.shape[3] for image in images) / 1e6
        answer["peak_mib"] = resident_mib(resource.getrusage(resource.RUSAGE_SELF))
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


class Worker:
    """One network in one type, in a process of its own, which is idle until it is asked."""

    def __init__(self, name: str, type_name: str, arguments: argparse.Namespace):
        self.key = (name, type_name)
        root = str(Path(__file__).resolve().parents[1])
        paths = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        command = [sys.executable, __file__, "--data", str(arguments.data), "--work", name, type_name]
        command += ["--light", arguments.light] if arguments.light else []
        pipe = subprocess.PIPE
        environment = os.environ | {"PYTHONPATH": paths}
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)

    def ask(self, **task: Any) -> dict[str, Any]:
        """Do it, and wait for the answer."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(task) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{' '.join(self.key)}: its process ended with status {self.process.wait()}")
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def row(key: tuple[str, str], threads: int, case: str, answers: list[dict[str, Any]]) -> dict[str, Any]:
    """One line of the result: median and quartiles of what several rounds gave."""
    seconds = [answer["seconds"] / answer["megapixels"] for answer in answers]
    processor = [answer["processor_s"] / answer["megapixels"] for answer in answers]
    quartiles = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else [seconds[0]] * 3
    found = {"network": key[0], "type": key[1], "threads": threads, "case": case, "rounds": len(answers)}
    found |= {"megapixels": answers[0]["megapixels"], "s_per_megapixel": statistics.median(seconds)}
    found |= {"iqr_s_per_megapixel": quartiles[2] - quartiles[0]}
    return found | {
        "processor_s_per_megapixel": statistics.median(processor),
        "peak_mib": round(max(answer["peak_mib"] for answer in answers)),
    }


def in_turn(workers: list[Worker], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The images of the folder, round after round."""
    answers: dict[tuple, list] = {(worker.key, threads): [] for worker in workers for threads in THREADS}

    def turn(worker: Worker, threads: int, images: int) -> dict[str, Any]:
        return worker.ask(do="images", threads=threads, images=images)

    for worker in workers:
        turn(worker, 2, 1)  # what is prepared once
    for number in range(arguments.rounds):
        for worker in workers if number % 2 == 0 else reversed(workers):
            for threads in THREADS:
                answers[worker.key, threads].append(turn(worker, threads, arguments.images))
    return [row(key, threads, "images", found) for (key, threads), found in answers.items()]


def photo(workers: list[Worker], rows: list[dict], arguments: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """The large photograph: `vheatir restore` on it, and all networks in tiles of it on two threads."""
    height = round((arguments.megapixels * 1e6 / 1.5) ** 0.5)
    size = (height, round(1.5 * height))
    photograph = folder / "photo.jpg"
    write_image(photograph, *size)
    results = []
    for name, kind in [worker.key for worker in workers if worker.key[0] in OURS]:
        weights = arguments.light if name == "light" else SHIPPED
        task = argparse.Namespace(task="denoise", weights=weights, tile=None, device="cpu", precision=kind)
        for threads in THREADS if kind == "float32" else THREADS[-1:]:
            rounds = arguments.rounds if threads == 2 and name == "vheatunet" else 1
            times = [measured(photograph, folder, task, threads) for _ in range(rounds)]
            found = {"network": name, "type": kind, "threads": threads, "case": "vheatir restore, photograph"}
            found |= {"megapixels": size[0] * size[1] / 1e6, "rounds": len(times)}
            found |= {"seconds": statistics.median(one for _, one in times)}
            results.append(
                found | {"all_s": [one for _, one in times], "peak_mib": round(max(mib for mib, _ in times))}
            )
    array = folder / "photo.npy"
    rng = np.random.default_rng(0)
    np.save(array, rng.integers(0, 256, (*size, 3), dtype=np.uint8))
    for worker in workers:
        (known,) = (one for one in rows if (one["network"], one["type"]) == worker.key and one["threads"] == 2)
        seconds = known["s_per_megapixel"] * arguments.megapixels
        if seconds <= arguments.longest:
            answer = worker.ask(do="photo", threads=2, file=str(array))
            results.append(row(worker.key, 2, "photograph in tiles", [answer]))
        else:
            results.append({"network": worker.key[0], "type": worker.key[1], "threads": 2})
            results[-1] |= {"case": "photograph in tiles", "not_run": f"would take about {seconds:.0f} s"}
    return results


def measured(path: Path, folder: Path, task: argparse.Namespace, threads: int) -> tuple[float, float]:
    """Peak memory in MiB and seconds of `vheatir restore` in a process of its own, with so many threads."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(threads)
    try:
        return measure(path, folder, task)
    finally:
        os.environ.pop("OMP_NUM_THREADS")
        if before is not None:
            os.environ["OMP_NUM_THREADS"] = before


def whole_folder(arguments: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """`vheatir restore` on noisy PNG files of the whole folder, on two cores, and the PSNR of what it writes."""
    dataset = images_of(str(arguments.data))
    count = len(dataset) if arguments.folder_images is None else min(arguments.folder_images, len(dataset))
    source = folder / "noisy"
    source.mkdir()
    targets, pixels = {}, 0
    for index in range(count):
        sample = dataset[index]
        name = Path(sample["lq_path"]).stem + ".png"
        save_png(source / name, to_uint8(sample["lq"].clamp(0, 1).permute(1, 2, 0).numpy()))
        targets[name] = to_uint8(sample["gt"].permute(1, 2, 0).numpy())
        pixels += targets[name].shape[0] * targets[name].shape[1]
    results = []
    for name in [name for name in OURS if name == "vheatunet" or arguments.light]:
        out = folder / f"restored_{name}"
        task = argparse.Namespace(task="denoise", tile=None, device="cpu", precision="float32")
        task.weights = arguments.light if name == "light" else SHIPPED
        peak, seconds = measured(source, out, task, 2)
        found = {"network": name, "type": "float32", "threads": 2, "case": "vheatir restore, folder", "images": count}
        found |= {"megapixels": pixels / 1e6, "seconds": seconds, "peak_mib": round(peak)}
        results.append(found | {"psnr": score(out, targets), "input": "noise clipped and rounded to 8 bits"})
    return results


def score(folder: Path, targets: dict[str, np.ndarray]) -> float:
    """Mean PSNR of the PNG files below a folder."""
    files = {path.name: path for path in folder.rglob("*.png")}
    return float(np.mean([psnr(to_uint8(read_image(files[name]).pixels), target) for name, target in targets.items()]))


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of clean color images, CBSD68 for the page")
    parser.add_argument("--light", help="weights of the flat network that was shipped before; left out without")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=4, help="of the folder, in each round (SwinIR: a part)")
    parser.add_argument("--folder-images", type=int, help="of the folder for PSNR and `vheatir restore` (default: all)")
    parser.add_argument("--megapixels", type=float, default=12.0, help="of the photograph")
    parser.add_argument("--longest", type=float, default=120.0, help="seconds; networks slower on the photograph wait")
    parser.add_argument("--only", nargs="+", choices=(*OURS, *PUBLISHED), default=[*OURS, *PUBLISHED])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--work", nargs=2, metavar=("NETWORK", "TYPE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.work:
        work(*arguments.work, str(arguments.data), arguments.light)
        return
    if arguments.json:
        prepare_output(arguments.json)
    names = [name for name in arguments.only if name != "light" or arguments.light]
    workers = [Worker(name, type_name, arguments) for name in names for type_name in TYPES]
    load = os.getloadavg()[0]
    try:
        rows = in_turn(workers, arguments)
        networks = {}
        for worker in (worker for worker in workers if worker.key[0] in OURS):
            networks["/".join(worker.key)] = worker.ask(do="psnr", threads=2)
        with tempfile.TemporaryDirectory() as name:
            rows += photo(workers, rows, arguments, Path(name))
            rows += whole_folder(arguments, Path(name))
    finally:
        for worker in workers:
            worker.close()
    for found in rows:
        print(found, flush=True)
    print(networks, flush=True)
    if arguments.json:
        result = {"sigma": SIGMA, "psnr": networks, "published": PUBLISHED, "results": rows}
        result |= {"load_before": load, "load_after": os.getloadavg()[0]}
        write_json(arguments.json, result | {"metadata": run_metadata(sys.argv)})


if __name__ == "__main__":
    raise SystemExit(run(main))
