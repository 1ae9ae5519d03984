"""When the CUDA kernels run, and what is said where they do not; loading and launching through the driver."""

import ctypes

import pytest
import torch

from vheatir import info
from vheatir.kernels import dispatch
from vheatir.kernels.cpu.build import BuildError
from vheatir.kernels.cuda import build as cuda_build
from vheatir.kernels.cuda import driver as cuda_driver
from vheatir.kernels.cuda import kernel as cuda_kernel
from vheatir.kernels.cuda.launch_plan import Launch
from vheatir.kernels.ops import heat_conduction, prepare_decay
from vheatir.kernels.reference import hco_reference

CUDA = torch.device("cuda", 0)


@pytest.fixture
def seen_gpu(monkeypatch):
    """torch sees a CUDA device, and nothing is known of its kernels yet."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(cuda_driver, "_devices", {})
    monkeypatch.delenv(cuda_build.SWITCH, raising=False)


@pytest.mark.parametrize(
    "x, message",
    [
        (torch.zeros(1, 4, 6, 3), "the maps are on cpu, the CUDA kernels need them on a CUDA device"),
        (torch.zeros(1, 4, 6, 3, device="meta"), "the maps are on meta"),
    ],
    ids=["cpu", "meta"],
)
def test_the_reason_of_a_refusal_is_an_error_where_the_kernels_are_asked_for(x, message):
    decay = torch.zeros(x.shape[1:], device=x.device)
    for call in (lambda: heat_conduction(x, decay, backend="cuda"), lambda: prepare_decay(decay, backend="cuda")):
        with pytest.raises(ValueError, match=f"backend 'cuda' cannot run: {message}.*falls back to PyTorch"):
            call()


@pytest.mark.parametrize(
    "size, dtype, message",
    [((4, 6), torch.float64, "the maps are float64"), ((2, 4097), torch.float32, "the side 4097 is above 4096")],
    ids=["float64", "too long"],
)
def test_maps_that_the_kernels_do_not_take(size, dtype, message):
    with pytest.raises(ValueError, match=f"backend 'cuda' cannot run: .*{message}"):
        dispatch.choose(*size, CUDA, "cuda", dtype)
    assert dispatch.choose(*size, CUDA, "auto", dtype).name.startswith("torch:")


def test_a_machine_without_gpu_says_so(monkeypatch):
    monkeypatch.delenv(cuda_build.SWITCH, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"torch sees no CUDA device|this torch is built without CUDA"):
        dispatch.choose(4, 6, CUDA, "cuda")
    told = info.cuda_kernels()
    assert told["available"] is False and told["reason"] == cuda_driver.refusal(CUDA)


def test_the_switch_turns_them_off_or_into_the_default(monkeypatch):
    monkeypatch.setenv(cuda_build.SWITCH, "0")
    with pytest.raises(ValueError, match="switched off by VHEATIR_CUDA=0"):
        dispatch.choose(4, 6, CUDA, "cuda")
    monkeypatch.setattr(dispatch, "cuda_refusal", lambda *of: None)
    assert dispatch.choose(4, 6, CUDA).name == "torch:0,0"
    monkeypatch.setenv(cuda_build.SWITCH, "1")
    assert dispatch.choose(4, 6, CUDA).name == "cuda"
    assert dispatch.choose(4, 6, CUDA, "torch").name == "torch:0,0"
    assert dispatch.choose(4, 6, torch.device("cpu")).name != "cuda"


def test_without_being_asked_for_the_kernels_are_neither_compiled_nor_run(seen_gpu, monkeypatch):
    monkeypatch.setattr(cuda_driver, "Device", lambda number: pytest.fail("the kernels were loaded"))
    assert dispatch.choose(4, 6, CUDA).name == "torch:0,0"


def test_what_cannot_be_loaded_is_told_once_and_replaced(seen_gpu, monkeypatch, recwarn):
    def broken(number):
        raise BuildError("NVRTC failed: no")

    monkeypatch.setattr(cuda_driver, "Device", broken)
    monkeypatch.setenv(cuda_build.SWITCH, "1")
    for _ in range(3):
        assert dispatch.choose(4, 6, CUDA).name == "torch:0,0"
    (warning,) = recwarn.list
    assert "the CUDA kernels could not be built or loaded: NVRTC failed: no. The PyTorch path" in str(warning.message)
    with pytest.raises(ValueError, match=r"backend 'cuda' cannot run: .*NVRTC failed: no"):
        dispatch.choose(4, 6, CUDA, "cuda")
    with pytest.raises(RuntimeError, match="NVRTC failed: no"):
        cuda_driver.device(CUDA)


def test_a_machine_without_driver_is_told(seen_gpu, monkeypatch):
    def absent(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(cuda_driver.ctypes, "CDLL", absent)
    with pytest.warns(UserWarning, match="there is no NVIDIA driver: .*cannot open"):
        assert "there is no NVIDIA driver" in cuda_driver.refusal(CUDA)


class Driver:
    """A driver that has one device of compute capability 9.0, and notes what is asked of it."""

    def __init__(self, broken_files: int = 0, capability: tuple[int, int] = (9, 0)):
        self.calls, self.launches, self.loaded, self.depth = [], [], [], 0
        self.broken_files = broken_files
        self.attributes = {75: capability[0], 76: capability[1], 97: 232448, 16: 132}

    def __getattr__(self, name):
        assert name.startswith("cu"), name
        self.calls.append(name)
        return lambda *arguments: 0

    def cuGetErrorName(self, status, text):
        ctypes.cast(text, ctypes.POINTER(ctypes.c_char_p))[0] = b"CUDA_ERROR_NO_BINARY_FOR_GPU"

    def cuDeviceGetAttribute(self, value, which, device):
        ctypes.cast(value, ctypes.POINTER(ctypes.c_int))[0] = self.attributes[which]
        return 0

    def cuCtxPushCurrent_v2(self, context):
        self.depth += 1
        return 0

    def cuCtxPopCurrent_v2(self, context):
        self.depth -= 1
        return 0

    def cuModuleLoadData(self, module, code):
        self.loaded.append(code)
        return 209 if len(self.loaded) <= self.broken_files else 0

    def cuLaunchKernel(self, function, *rest):
        assert self.depth == 1
        *size, stream, parameters, _ = rest
        job = ctypes.cast(parameters[0], ctypes.POINTER(cuda_kernel._SumJob)).contents
        self.launches.append((size, stream.value, job.size, job.batch))
        return 0


@pytest.fixture
def kernels(tmp_path, monkeypatch):
    """Files of kernels: one that was installed and one that NVRTC makes."""
    (tmp_path / "compiled").write_bytes(b"compiled")
    monkeypatch.setattr(cuda_build, "compiled", lambda capability: tmp_path / "compiled")
    monkeypatch.setattr(cuda_driver, "__file__", str(tmp_path / "cuda_driver.py"))
    return tmp_path


def test_numbers_of_the_driver_are_those_of_its_bindings():
    bindings = pytest.importorskip("cuda.bindings.driver")
    found = {name: int(getattr(bindings.CUdevice_attribute, name)) for name in cuda_driver.ATTRIBUTES}
    assert found == cuda_driver.ATTRIBUTES
    most = bindings.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    assert int(most) == cuda_driver.MAX_DYNAMIC_SHARED_SIZE_BYTES


def test_a_launch_gets_size_stream_and_job(kernels, monkeypatch):
    driver = Driver()
    monkeypatch.setattr(cuda_driver, "_open_driver", lambda: driver)
    device = cuda_driver.Device(0)
    assert (device.capability, device.machine.shared_memory, device.machine.multiprocessors) == (90, 232448, 132)
    assert driver.loaded == [b"compiled\0"] and driver.depth == 0
    device.launch(Launch("vheatir_sum_products", 7, 1024), cuda_kernel._SumJob(size=5, batch=3), 0x1234)
    assert driver.launches == [([7, 1, 1, 256, 1, 1, 1024], 0x1234, 5, 3)]
    assert driver.depth == 0


def test_installed_kernels_go_first_and_are_replaced_where_they_do_not_fit(kernels, monkeypatch):
    (kernels / cuda_build.library_name()).write_bytes(b"installed")
    for broken_files, loaded in ((0, [b"installed\0"]), (1, [b"installed\0", b"compiled\0"])):
        driver = Driver(broken_files)
        monkeypatch.setattr(cuda_driver, "_open_driver", lambda driver=driver: driver)
        cuda_driver.Device(0)
        assert driver.loaded == loaded


def test_devices_that_are_too_old_and_errors_of_the_driver_have_names(kernels, monkeypatch):
    monkeypatch.setattr(cuda_driver, "_open_driver", lambda: Driver(capability=(7, 5)))
    with pytest.raises(cuda_driver.DriverError, match=r"compute capability 7\.5 is below 8\.0"):
        cuda_driver.Device(0)
    driver = Driver(broken_files=9)
    monkeypatch.setattr(cuda_driver, "_open_driver", lambda: driver)
    with pytest.raises(cuda_driver.DriverError, match="cuModuleLoadData failed: CUDA_ERROR_NO_BINARY_FOR_GPU"):
        cuda_driver.Device(0)
    assert driver.depth == 0


def test_a_prepared_decay_serves_where_there_are_no_kernels(emulator, maps, assert_near, monkeypatch):
    """It may have been prepared on a machine with a GPU and stored."""
    x, decay = maps((2, 5, 6, 3), torch.float32)
    prepared = prepare_decay(decay, backend="cuda")
    monkeypatch.undo()
    assert prepared.path == "cuda"
    want = hco_reference(x.double(), decay.double())
    assert_near(heat_conduction(x, prepared), want)
    assert_near(heat_conduction(x.double(), prepared.to_dtype(torch.float64)), want, "float64", torch.float32)


def test_kernels_are_told_of_where_they_run(monkeypatch, tmp_path):
    class Loaded:
        path, capability = tmp_path / "kernels.fatbin", 90

    monkeypatch.setattr(cuda_driver, "refusal", lambda device: None)
    monkeypatch.setattr(cuda_driver, "device", lambda device: Loaded)
    for switch, use in (("1", "the default"), ("auto", "with backend='cuda', or by default with VHEATIR_CUDA=1")):
        monkeypatch.setenv(cuda_build.SWITCH, switch)
        assert info.cuda_kernels()["default"] == (switch == "1")
        assert f"kernels.fatbin, {use}" in info._text(info.collect())


def test_kernels_in_a_graph_and_on_another_stream(gpu):
    """Of a GPU only: the launches follow the current stream, and can be captured and replayed."""
    for shape in ((4, 28, 28, 32), (1, 5, 130, 16)):
        x, decay = torch.randn(shape, device=gpu).bfloat16(), torch.rand(shape[1:], device=gpu)
        want = heat_conduction(x, decay, backend="cuda")
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            assert torch.equal(heat_conduction(x, decay, backend="cuda"), want)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = heat_conduction(x, decay, backend="cuda")
        x.copy_(x.flip(0) * 2)
        graph.replay()
        assert torch.equal(y, heat_conduction(x, decay, backend="cuda"))


def test_large_batches_and_maps(gpu, rms_error):
    """Of a GPU only: the shapes of the benchmarks."""
    for shape in ((128, 56, 56, 96), (128, 28, 28, 192), (128, 14, 14, 384), (128, 7, 7, 768), (1, 512, 512, 60)):
        x, decay = torch.randn(shape, device=gpu).bfloat16(), torch.rand(shape[1:], device=gpu)
        y = heat_conduction(x, decay, backend="cuda")
        some = slice(0, shape[0], 50)
        error, rounding = rms_error(y[some], hco_reference(x[some].double(), decay.double()))
        assert error <= 1.2 * rounding, shape
