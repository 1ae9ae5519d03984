"""Time and error of `diffuse` beside `scipy.fft`, dense matrices and `heat_conduction` with a decay map.

All are called in turn, by processor time of one thread; a time is the median over the rounds. "scipy" is dctn, product
with the decay, idctn; "dense" one (N, N) matrix for each axis and channel, made beforehand. Errors are the largest
ones against the definition in float64, as a share of its largest value. `--training` adds forward and backward from the
logarithm of k; `--splitting` the error of rotated axes.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import scipy.fft
import torch

from vheatir.bench.command import _positive, _shape
from vheatir.cli import run
from vheatir.kernels.dct import decay_map
from vheatir.kernels.diffusion.boundaries import basis_of
from vheatir.kernels.diffusion.checks import per_axis
from vheatir.kernels.diffusion.ops import diffuse
from vheatir.kernels.diffusion.reference import diffuse_reference
from vheatir.kernels.diffusion.tensor import diffuse_tensor
from vheatir.kernels.ops import heat_conduction, prepare_decay
from vheatir.utils import timing
from vheatir.utils.run_metadata import prepare_output, run_metadata, write_json

SHAPES = [(1, 320, 480, 32), (1, 160, 240, 64), (1, 80, 120, 128), (1, 40, 60, 256)]
SHAPES += [(8, 64, 64, 32), (8, 32, 32, 64), (8, 16, 16, 128), (8, 8, 8, 256)]
SHAPES += [(8, 4096, 32), (2, 5, 64, 64, 32)]
DENSE_UP_TO = 64  # of each side: longer ones have matrices that no cache holds


def diffusivities(channels: int) -> torch.Tensor:
    """Blur lengths of 0.7 to 12 pixels, as the restoration network starts with."""
    return torch.logspace(-0.61, 1.86, channels)


def _with_scipy(x: torch.Tensor, decay: torch.Tensor) -> Callable:
    axes = tuple(range(1, x.ndim - 1))
    maps, weights = x.numpy(), decay.numpy()

    def run() -> torch.Tensor:
        spectrum = scipy.fft.dctn(maps, axes=axes, norm="ortho", workers=1)
        return torch.from_numpy(scipy.fft.idctn(spectrum * weights, axes=axes, norm="ortho", workers=1))

    return run


def _with_matrices(x: torch.Tensor, k: torch.Tensor) -> Callable:
    matrices = []
    for side in x.shape[1:-1]:
        basis, squares = basis_of(side, "insulated", torch.float64, x.device)
        decay = torch.exp(-squares[:, None] * k.double())
        matrices.append(torch.einsum("ni,nc,nj->cij", basis, decay, basis).float())

    def run() -> torch.Tensor:
        y = x
        for axis, matrix in enumerate(matrices):
            lines = y.movedim((-1, axis + 1), (0, -1))
            shape = lines.shape
            y = (lines.reshape(shape[0], -1, shape[-1]) @ matrix).view(shape).movedim((0, -1), (-1, axis + 1))
        return y

    return run


def candidates(x: torch.Tensor, k: torch.Tensor) -> dict[str, Callable]:
    """What is compared; each call gives maps like x."""
    sides = x.shape[1:-1]
    decay = torch.ones(*sides, x.shape[-1])
    for axis, side in enumerate(sides):
        squares = basis_of(side, "insulated", torch.float32, x.device)[1]
        decay = decay * torch.exp(-k * squares.view(-1, *[1] * (len(sides) - axis)))
    found: dict[str, Callable] = {"diffuse": lambda: diffuse(x, k)}
    if len(sides) == 2:
        prepared = prepare_decay(decay)
        found["prepared decay"] = lambda: heat_conduction(x, prepared)
    if x.dtype == torch.float32:
        found["scipy"] = _with_scipy(x, decay)
    if x.dtype == torch.float32 and max(sides) <= DENSE_UP_TO:
        found["dense"] = _with_matrices(x, k)
    return found


def training(x: torch.Tensor, k: torch.Tensor) -> dict[str, Callable]:
    """Forward and backward from log k."""
    maps = x.clone().requires_grad_()
    log_k = k.log().requires_grad_()
    cotangent = torch.randn_like(x)

    def gradients(y: torch.Tensor) -> object:
        return torch.autograd.grad(y, (maps, log_k), cotangent)

    found: dict[str, Callable] = {"diffuse": lambda: gradients(diffuse(maps, log_k.exp()))}
    if x.ndim == 4:
        sides = x.shape[1:3]
        found["decay map"] = lambda: gradients(heat_conduction(maps, decay_map(log_k.exp().expand(*sides, -1))))
    return found


def measure(shape: tuple[int, ...], dtype: torch.dtype, rounds: int | None, with_training: bool) -> list[dict]:
    """A result for each candidate."""
    torch.manual_seed(0)
    x = torch.randn(shape).to(dtype)
    k = diffusivities(shape[-1])
    want = diffuse_reference(x.double(), per_axis(k.double(), x.double()))
    results = []
    groups = {"forward": candidates(x, k), **({"forward + backward": training(x, k)} if with_training else {})}
    for kind, calls in groups.items():
        with torch.set_grad_enabled(kind != "forward"):
            timings = timing.interleave(calls, torch.device("cpu"), rounds=rounds, clock="cpu", seconds=2, turn=5e-3)
        for name, call in calls.items():
            result = {"shape": list(shape), "dtype": str(dtype).removeprefix("torch."), "pass": kind, "candidate": name}
            result["median_ms"] = round(timings[name].median_us / 1e3, 4)
            if kind == "forward":
                result["error"] = ((call().double() - want).abs().max() / want.abs().max()).item()
            results.append(result)
            print(*result.values(), flush=True)
    return results


def splitting(side: int = 16) -> list[dict]:
    """Error of rotated axes against very many steps, over all points of a small map, rim and all."""
    point = torch.eye(side * side, dtype=torch.float64).view(-1, side, side, 1)
    results = []
    for ratio in (2, 5):
        for degrees in (22.5, 45):
            angle = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
            turn = torch.stack([torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])])
            tensor = turn @ torch.diag(torch.tensor([4.0, 4.0 / ratio], dtype=torch.float64)) @ turn.T
            tensor = (tensor + tensor.T) / 2
            # So many short steps that the next doubling changes nothing that is shown.
            limit = _matrix(point, tensor, 32)
            for steps in (1, 2, 4, 8):
                error = (_matrix(point, tensor, steps) - limit).abs().amax().item() / limit.abs().amax().item()
                results.append({"ratio": ratio, "degrees": degrees, "steps": steps, "error": error})
                print(*results[-1].values(), flush=True)
    return results


def splitting_of_clips(side: int = 8) -> list[dict]:
    """The same for clips: three axes turned at random, with 2 squared pixels along the longest one."""
    point = torch.eye(side**3, dtype=torch.float64).view(-1, side, side, side, 1)
    results = []
    for seed in (0, 1):
        noise = torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        turn, _ = torch.linalg.qr(noise)
        tensor = turn @ torch.diag(torch.tensor([2.0, 1.5, 1.1], dtype=torch.float64)) @ turn.T
        tensor = (tensor + tensor.T) / 2
        limit = _matrix(point, tensor, 32)
        for steps in (1, 2, 4, 8):
            error = (_matrix(point, tensor, steps) - limit).abs().amax().item() / limit.abs().amax().item()
            results.append({"tensor": tensor.tolist(), "steps": steps, "error": error})
            print(seed, steps, error, flush=True)
    return results


def _matrix(points: torch.Tensor, tensor: torch.Tensor, steps: int) -> torch.Tensor:
    return diffuse_tensor(points, tensor, steps=steps).flatten(1)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--shapes", nargs="+", type=_shape, metavar="BxHxWxC", help="default: those of the network, 1-D and 3-D"
    )
    parser.add_argument("--rounds", type=_positive, help="default: as many as fit into two seconds")
    parser.add_argument("--training", action="store_true")
    parser.add_argument("--splitting", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    if options.json:
        prepare_output(options.json)
    torch.set_num_threads(1)
    results = []
    for shape in options.shapes or SHAPES:
        for dtype in (torch.float32, torch.bfloat16):
            results += measure(tuple(shape), dtype, options.rounds, options.training)
    metadata = run_metadata(["python", "benchmarks/heat_forms.py", *arguments]) | {"threads": 1, "clock": "cpu"}
    report = {"metadata": metadata, "results": results}
    if options.splitting:
        report["splitting"] = splitting()
        report["splitting of clips"] = splitting_of_clips()
    if options.json:
        write_json(options.json, report)


if __name__ == "__main__":
    raise SystemExit(run(main))
