"""What the operator's tests share: inputs, the tolerance table, values and gradients by name."""

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vheatir.kernels import dispatch
from vheatir.kernels.cpu import library as native
from vheatir.kernels.cuda import driver as cuda_driver
from vheatir.kernels.cuda import kernel as cuda_kernel

# Largest error allowed, as a share of the largest value expected. 16-bit types are rounded once, at the end.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 5e-6, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


@pytest.fixture
def assert_near() -> Callable[..., None]:
    """`assert_near(got, want, name)`: within the tolerance of `got`'s type, or of `dtype` where that is coarser."""

    def check(got: Tensor, want: Tensor, name: str = "value", dtype: torch.dtype | None = None) -> None:
        assert got.shape == want.shape, f"{name}: shape {tuple(got.shape)}, expected {tuple(want.shape)}"
        if want.numel() == 0:
            return
        tolerance = max(TOLERANCE[got.dtype], TOLERANCE[dtype or got.dtype])
        error = (got.double() - want.double()).abs().max().item()
        limit = tolerance * max(want.double().abs().max().item(), 1e-30)
        assert error <= limit, f"{name}: largest error {error:.3g}, allowed {limit:.3g} ({got.dtype})"

    return check


@pytest.fixture
def maps(device: torch.device) -> Callable[..., tuple[Tensor, Tensor]]:
    """`maps(shape)`: x, and a decay of either sign, (H, W, C) or, when `shared`, (H, W, 1)."""

    def make(
        shape: tuple[int, int, int, int],
        dtype: torch.dtype = torch.float64,
        decay_dtype: torch.dtype | None = None,
        shared: bool = False,
    ) -> tuple[Tensor, Tensor]:
        _, height, width, channels = shape
        x = torch.randn(shape, dtype=torch.float64)
        decay = torch.rand(height, width, 1 if shared else channels, dtype=torch.float64) * 1.5 - 0.5
        return x.to(device, dtype), decay.to(device, decay_dtype or dtype)

    return make


@pytest.fixture
def value_and_gradients() -> Callable[..., dict[str, Tensor]]:
    """`value_and_gradients(function, x, decay, cotangent)`: y, and the gradients of <y, cotangent>, by name."""

    def run(function: Callable, x: Tensor, decay: Tensor, cotangent: Tensor) -> dict[str, Tensor]:
        x, decay = x.detach().requires_grad_(), decay.detach().requires_grad_()
        y = function(x, decay)
        dx, ddecay = torch.autograd.grad(y, (x, decay), cotangent)
        return {"y": y.detach(), "dx": dx, "ddecay": ddecay}

    return run


@pytest.fixture(params=native.INSTRUCTIONS)
def instructions(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test with each version of the CPU kernel that this processor can run."""
    functions, wanted = native.library().functions, native.INSTRUCTIONS.index(request.param)
    if functions is None:
        pytest.skip(native.library().reason)
    functions.vheatir_limit_instructions(wanted)
    runs = functions.vheatir_instructions() == wanted
    if runs:
        yield request.param
    functions.vheatir_limit_instructions(len(native.INSTRUCTIONS))
    if not runs:
        pytest.skip(f"this processor has no {request.param}")


@pytest.fixture
def nan_filled() -> Iterator[None]:
    """Memory that torch hands out uninitialized holds NaN, so that a slot nobody writes shows."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@pytest.fixture
def split_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The even/odd split runs from side 2 on, so that small maps go through it."""
    monkeypatch.setattr(dispatch, "_SPLIT_FROM", 2)
    assert dispatch.count_halvings(4) > 0


@pytest.fixture
def emulator(monkeypatch: pytest.MonkeyPatch):
    """backend="cuda" runs the CUDA kernels on the CPU, on CPU tensors; `emulator.machine` is the device they see."""
    spec = importlib.util.spec_from_file_location("emulation", Path(__file__).with_name("emulation.py"))
    emulation = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(emulation)
    try:
        emulated = emulation.Emulator()
    except emulation.CannotEmulate as reason:
        pytest.skip(str(reason))
    monkeypatch.setattr(dispatch, "cuda_refusal", lambda *size_device_and_type: None)
    monkeypatch.setattr(cuda_kernel, "machine_of", lambda device: emulated.machine)
    monkeypatch.setattr(cuda_kernel, "launch", emulated.launch)
    return emulated


@pytest.fixture
def gpu() -> torch.device:
    """A CUDA device that the CUDA kernels run on; skips with the reason where there is none."""
    device = torch.device("cuda", 0)
    if reason := cuda_driver.refusal(device):
        pytest.skip(reason)
    return device


@pytest.fixture(params=["emulated", "gpu"])
def cuda(request: pytest.FixtureRequest) -> torch.device:
    """Runs the test with the CUDA kernels twice: emulated, on CPU tensors, and on a GPU."""
    if request.param == "gpu":
        return request.getfixturevalue("gpu")
    request.getfixturevalue("emulator")
    return torch.device("cpu")


def _rms(values: Tensor) -> float:
    return values.double().square().mean().sqrt().item()


@pytest.fixture
def rms_error() -> Callable[[Tensor, Tensor], tuple[float, float]]:
    """`rms_error(got, want)`: root mean square error of got, and that of rounding `want` to bfloat16.

    Rounding is measured on 1.1 want too: numbers of bfloat16, to which some exact results belong, would need none.
    """

    def measure(got: Tensor, want: Tensor) -> tuple[float, float]:
        assert got.shape == want.shape
        got, want = got.double().cpu(), want.double().cpu()
        return _rms(got - want), max(_rms((f * want).bfloat16().double() / f - want) for f in (1.0, 1.1))

    return measure
