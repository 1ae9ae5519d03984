"""The native CPU kernel: values and gradients at the edges of its tiles, in every version of it, and its refusals."""

import os
import re
import shutil
import subprocess
import sys
import threading
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.fft
import torch

from vheatir.bench.published import PublishedConduction
from vheatir.kernels import dispatch
from vheatir.kernels.cpu import build as cpu_build
from vheatir.kernels.cpu import kernel as cpu_kernel
from vheatir.kernels.cpu import library as native
from vheatir.kernels.cpu.plan import LONG_LEAF, SHORT_LEAF, longest_product, transform_plan
from vheatir.kernels.ops import heat_conduction, prepare_decay
from vheatir.kernels.reference import hco_reference

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
CPU = torch.device("cpu")
TINY = torch.finfo(F32).tiny
CHANNELS = [1, 3, 7, 8, 15, 16, 17, 33, 48]
SIDES = [*range(1, 25), 26, 28, 31, 32, 45, 49, 56, 63, 64, 96, 105, 107, 128, 225]
# Maps above the size of a plane (three passes over memory), with narrow last tiles, and sides that fall apart into
# every kind of step: powers of two, 13 * 37, 3 * 107, 2^4 * 3^2 * 5.
LARGE = [(1, 481, 321, 2), (1, 720, 33, 5), (2, 129, 144, 17), (1, 36, 720, 24), (3, 150, 140, 16)]

needs_kernel = pytest.mark.skipif(native.refusal() is not None, reason=str(native.refusal()))
pytestmark = needs_kernel


@pytest.fixture(params=[1, 2], ids=["1-thread", "2-threads"])
def threads(request, monkeypatch):
    """Runs the test with one and with two threads, however small the work."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    monkeypatch.setattr(cpu_kernel, "_LEAST_ELEMENTS_PER_THREAD", 1)
    yield request.param
    torch.set_num_threads(before)


def conduct(x, decay):
    return heat_conduction(x, decay, backend="cpu_kernel")


def check(shape, dtype, shared, maps, value_and_gradients, assert_near):
    """Value and gradients of the kernel against the definition, with raw and with prepared decay."""
    x, decay = maps(shape, dtype, F32, shared)
    cotangent = torch.randn(shape, dtype=torch.float64).to(dtype)
    got = value_and_gradients(conduct, x, decay, cotangent)
    want = value_and_gradients(hco_reference, x.double(), decay.double(), cotangent.double())
    for name in ("y", "dx", "ddecay"):
        assert_near(got[name], want[name], name)
    prepared = prepare_decay(decay, backend="cpu_kernel")
    assert prepared.path == dispatch.CPU_KERNEL and prepared.nbytes() == decay.nbytes
    assert_near(heat_conduction(x, prepared), want["y"], "prepared y")
    assert_near(conduct(x, decay), want["y"], "y without gradients")


@pytest.mark.parametrize("shared", [False, True], ids=["decay-per-channel", "decay-shared"])
@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
@pytest.mark.parametrize("channels", CHANNELS)
def test_any_number_of_channels(
    channels, dtype, shared, instructions, maps, value_and_gradients, assert_near, nan_filled
):
    for height, width in ((7, 14), (1, 9), (33, 1)):
        check((2, height, width, channels), dtype, shared, maps, value_and_gradients, assert_near)


@pytest.mark.parametrize("side", SIDES)
def test_any_side(side, instructions, maps, value_and_gradients, assert_near, nan_filled):
    for shape in ((1, side, 3, 16), (2, 2, side, 8)):
        check(shape, F32, False, maps, value_and_gradients, assert_near)


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("shape", LARGE, ids=str)
def test_maps_beyond_the_cache(shape, dtype, threads, maps, value_and_gradients, assert_near, nan_filled):
    check(shape, dtype, False, maps, value_and_gradients, assert_near)


GROUPED = [(3, 7, 7, 144), (4, 7, 7, 256), (2, 16, 16, 304)]  # with one thread, or two, a plane holds several tiles


@pytest.mark.parametrize("shape", GROUPED, ids=str)
@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
def test_16_bit_maps_in_grouped_tiles(shape, dtype, maps, value_and_gradients, assert_near, nan_filled):
    check(shape, dtype, False, maps, value_and_gradients, assert_near)


@pytest.mark.parametrize("shape", [(3, 14, 14, 64), (1, 56, 20, 16), (2, 40, 40, 24), *GROUPED], ids=str)
def test_threads_share_the_work(shape, threads, maps, value_and_gradients, assert_near, nan_filled):
    for shared in (False, True):
        check(shape, F32, shared, maps, value_and_gradients, assert_near)


@pytest.mark.parametrize("shape", [(3, 14, 14, 64), (1, 129, 144, 33), *GROUPED], ids=str)
def test_result_does_not_depend_on_run_or_number_of_threads(shape, maps, value_and_gradients, monkeypatch):
    monkeypatch.setattr(cpu_kernel, "_LEAST_ELEMENTS_PER_THREAD", 1)
    x, decay = maps(shape, F32)
    cotangent, before = torch.randn_like(x), torch.get_num_threads()
    results = []
    for number in (1, 1, 2, 2):
        torch.set_num_threads(number)
        results.append(value_and_gradients(conduct, x, decay, cotangent))
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(results[0][name], other[name]) for name in other)


@pytest.mark.parametrize("constant", [None, "maps", "decay", "prepared"])
def test_second_derivatives(constant, maps):
    inputs, found = maps((2, 6, 5, 4), torch.float64), []
    for dtype in (F32, torch.float64):
        x, decay = (t.to(dtype, copy=True) for t in inputs)
        wanted = [t.requires_grad_() for t in ([x] if constant else [x, decay])]
        if constant == "maps":
            wanted = [decay.requires_grad_()]
            x.requires_grad_(False)
        if dtype == F32:
            y = conduct(x, prepare_decay(decay) if constant == "prepared" else decay)
        else:
            y = hco_reference(x, decay)
        first = torch.autograd.grad(y.pow(3).sum(), wanted, create_graph=True)
        found.append([*first, *torch.autograd.grad(sum(one.square().sum() for one in first), wanted)])
    for got, want in zip(*found):
        torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-4 * want.abs().max().item())


@pytest.mark.parametrize("prepared", [False, True], ids=["raw", "prepared"])
def test_many_gradients_at_once(prepared, maps):
    x, decay = maps((2, 6, 5, 4), F32)
    wanted = [x.requires_grad_()] if prepared else [x.requires_grad_(), decay.requires_grad_()]
    y, cotangents = conduct(x, prepare_decay(decay) if prepared else decay), torch.randn(3, *x.shape)
    together = torch.autograd.grad(y, wanted, cotangents, is_grads_batched=True, retain_graph=True)
    for i, cotangent in enumerate(cotangents):
        for got, want in zip(together, torch.autograd.grad(y, wanted, cotangent, retain_graph=True)):
            torch.testing.assert_close(got[i], want, rtol=1e-4, atol=1e-4)


def test_a_view_with_a_pending_sign(assert_near):
    negative = torch.randn(1, 3, 4, 1, dtype=torch.complex64).conj().imag
    assert negative.is_neg()
    decay = torch.rand(3, 4, 1)
    assert_near(conduct(negative, decay), hco_reference(negative.double(), decay.double()))


@pytest.mark.parametrize("dtype", [F32, F16], ids=str)
@pytest.mark.parametrize("channels", [5, 32])
def test_slices_of_channels_are_read_in_place(channels, dtype, maps, assert_near, nan_filled):
    """What `chunk(2, -1)` leaves: a pixel stride that is not the number of channels."""
    wide, decay = maps((2, 9, 12, 2 * channels), dtype)
    for half, part in zip(wide.chunk(2, -1), decay.chunk(2, -1)):
        assert not half.is_contiguous()
        assert_near(conduct(half, part), hco_reference(half.double(), part.double()))


@pytest.mark.parametrize("n", [1, 7, 16, 17, 45, 56, 105, 128, 154, 321, 481, 720, 1280])
def test_spectrum_is_scipys_in_natural_order(n, instructions, assert_near):
    x = torch.randn(1, n, 2, 16)
    want = scipy.fft.dctn(x.double().numpy(), type=2, axes=(1, 2), norm="ortho")
    assert_near(cpu_kernel.transform(x), torch.from_numpy(want))


@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
def test_16_bit_values_are_rounded_like_torch_rounds(dtype, instructions):
    """All of the type's numbers, infinities and NaN among them, through maps of one pixel.

    Subnormal ones too: those of float16 are float32's normal numbers, those of bfloat16 are zero as all of float32's.
    """
    every = torch.from_numpy(np.arange(1 << 16, dtype=np.uint16).view(np.int16)).view(dtype)
    for factor in (1.0, 1 + 2.0**-9, 2.0**-3, 1e-3):
        got = conduct(every.view(-1, 1, 1, 1), torch.full((1, 1, 1), factor)).view(-1)
        want = torch.where(every.float().abs() < TINY, 0, every.float()) * factor
        want = torch.where(want.abs() < TINY, 0, want).to(dtype)
        assert torch.equal(got.isnan(), want.isnan())
        number = ~want.isnan()
        assert torch.equal(got[number], want[number])


@pytest.mark.parametrize(
    "shape",
    [(2, 56, 56, 16), (2, 28, 28, 16), (4, 14, 14, 16), (4, 7, 7, 16), (1, 128, 128, 16), (1, 321, 107, 4)],
    ids=str,
)
def test_error_is_no_larger_than_the_published_one(shape, maps):
    x, decay = maps(shape, F32)
    want = hco_reference(x.double(), decay.double())
    published = PublishedConduction(*shape[1:3])(x, decay)
    assert (conduct(x, decay) - want).abs().max() <= (published - want).abs().max()


def test_a_prepared_decay_serves_where_there_is_no_kernel(maps, assert_near, monkeypatch):
    """It may have been stored or exported on another machine."""
    x, decay = maps((2, 9, 40, 7), F32)
    prepared = prepare_decay(decay, backend="cpu_kernel")
    want = hco_reference(x.double(), decay.double())
    assert_near(heat_conduction(x.double(), prepared.to_dtype(torch.float64)), want, "float64", F32)
    monkeypatch.setenv(native.SWITCH, "0")
    assert_near(heat_conduction(x, prepared), want)


@pytest.mark.parametrize(
    "x, message",
    [
        (torch.zeros(1, 4, 6, 3, dtype=torch.float64), "computes in float32, the maps are float64"),
        (torch.zeros(1, 4, 6, 3, device="meta"), "the maps are on meta, the CPU kernel needs them on the CPU"),
        (torch.zeros(1, 2053, 1, 1), "the side 2053 has an odd prime power above 2048"),
    ],
    ids=["float64", "elsewhere", "large prime"],
)
def test_the_reason_of_a_refusal_is_an_error_only_where_the_kernel_is_asked_for(x, message):
    decay = torch.zeros(x.shape[1:], dtype=x.dtype, device=x.device)
    with pytest.raises(ValueError, match=f"backend 'cpu_kernel' cannot run: .*{message}"):
        heat_conduction(x, decay, backend="cpu_kernel")
    assert heat_conduction(x, decay).shape == x.shape


def test_a_power_of_two_of_any_size_is_taken():
    assert dispatch.cpu_kernel_refusal(4096, 6144, CPU) is None


def test_the_switch_turns_it_off(monkeypatch, maps):
    x, decay = maps((1, 4, 6, 3), F32)
    assert dispatch.choose(4, 6, CPU).name == dispatch.CPU_KERNEL
    monkeypatch.setenv(native.SWITCH, "0")
    assert dispatch.choose(4, 6, CPU).name == "torch:0,0"
    with pytest.raises(ValueError, match="switched off by VHEATIR_CPU_KERNEL=0"):
        heat_conduction(x, decay, backend="cpu_kernel")


@pytest.mark.parametrize("compiler", ["surely-not-a-compiler", "false"])
def test_without_a_working_compiler_pytorch_runs_after_one_warning(
    compiler, tmp_path, monkeypatch, maps, assert_near, capsys
):
    monkeypatch.setenv("CXX", compiler)
    monkeypatch.setenv("VHEATIR_CACHE", str(tmp_path))
    monkeypatch.setattr(native, "_loaded", None)
    monkeypatch.setattr(cpu_build, "library_name", lambda: "libnot-installed.so")
    x, decay = maps((1, 4, 6, 3), F32)
    with pytest.warns(UserWarning, match="the CPU kernel could not be built or loaded"):
        assert_near(heat_conduction(x, decay), hco_reference(x.double(), decay.double()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        heat_conduction(x, decay)
    assert [path for path in tmp_path.iterdir() if path.name != "build.lock"] == []
    assert capsys.readouterr().err.count("compiling the CPU kernel") == (compiler == "false")


@pytest.mark.parametrize("named", ["speaks", "./speaks -O1", "'speaks"], ids=["words", "relative", "quotation"])
def test_a_compiler_of_any_words_and_place(named, tmp_path, monkeypatch):
    """What it says may be in another encoding; a relative path is from where the process runs."""
    script = tmp_path / "speaks"
    script.write_bytes(b"#!/bin/sh\nprintf 'Fehler: error: unm\\366glich\\n' >&2\nexit 1\n")
    script.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("CXX", named)
    monkeypatch.setenv("VHEATIR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(native, "_loaded", None)
    monkeypatch.setattr(cpu_build, "library_name", lambda: "libnot-installed.so")
    with pytest.warns(UserWarning, match="there is no C" if "'" in named else "failed: Fehler: error: unm.glich"):
        heat_conduction(torch.ones(1, 4, 6, 3), torch.ones(4, 6, 3))


@pytest.mark.skipif(not hasattr(os, "ST_NOEXEC"), reason="this system does not tell")
@pytest.mark.parametrize("there", [False, True], ids=["nothing", "library"])
def test_where_no_code_may_run_nothing_is_compiled(there, tmp_path, monkeypatch, capsys):
    """The mount is pretended; a library that lies there cannot be loaded, and so is no library here."""
    monkeypatch.setenv("VHEATIR_CACHE", str(tmp_path))
    monkeypatch.setattr(native, "_loaded", None)
    monkeypatch.setattr(cpu_build, "library_name", lambda: "libnot-installed.so")
    monkeypatch.setattr(cpu_build, "compiler", lambda: ["c++"])
    monkeypatch.setattr(cpu_build, "build", lambda target: target.write_text("compiled"))
    flags = SimpleNamespace(f_flag=os.ST_NOEXEC)
    monkeypatch.setattr(native.os, "statvfs", lambda folder: flags)
    if there:
        cpu_build.cached_file(["c++"]).write_text("compiled before")
    with pytest.warns(UserWarning, match=r"runs no code \(noexec\); name another folder by VHEATIR_CACHE"):
        heat_conduction(torch.ones(1, 4, 6, 3), torch.ones(4, 6, 3))
    assert "compiling" not in capsys.readouterr().err


def test_the_cache_may_be_where_the_process_runs(tmp_path, monkeypatch, capsys):
    """A name without a folder would be looked for in the system's folders."""
    whole = native.library().path
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VHEATIR_CACHE", ".")
    monkeypatch.setattr(native, "_loaded", None)
    monkeypatch.setattr(cpu_build, "library_name", lambda: "libnot-installed.so")
    monkeypatch.setattr(cpu_build, "compiler", lambda: ["sh"])
    monkeypatch.setattr(cpu_build, "build", lambda target: None)
    cpu_build.cached_file(["sh"]).write_bytes(whole.read_bytes())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert native.library().functions is not None
    assert "compiling" not in capsys.readouterr().err


@pytest.mark.parametrize("kept", [0, 1000], ids=["empty", "cut"])
def test_a_library_in_the_cache_that_cannot_be_loaded_is_compiled_again(kept, tmp_path, monkeypatch, capsys):
    whole = native.library().path
    cached = tmp_path / "cache" / "libkernel.so"
    cached.parent.mkdir()
    cached.write_bytes(whole.read_bytes()[:kept])
    monkeypatch.setattr(native, "_loaded", None)
    monkeypatch.setattr(cpu_build, "library_name", lambda: "libnot-installed.so")
    monkeypatch.setattr(cpu_build, "compiler", lambda: ["c++"])
    monkeypatch.setattr(cpu_build, "cached_file", lambda command: cached)
    monkeypatch.setattr(cpu_build, "build", lambda target: shutil.copy(whole, target))
    assert native.library().path == cached and native.library().reason is None
    assert cached.read_bytes() == whole.read_bytes()
    assert capsys.readouterr().err.count("cannot be loaded") == 1


SMALL_LIBRARY = """
import sys, time
from pathlib import Path
from vheatir.kernels.cpu import build as cpu_build
from vheatir.kernels.cpu import library as native
cpu_build._VERSIONS_X86 = {"portable": ()}  # the shortest build that is a build
cpu_build._FLAGS = ("-O0", "-std=c++17", "-fPIC")
def library_name():
    return "libvheatir_cpu-test.so"
cpu_build.library_name = library_name
build = cpu_build.build
def counted(target):
    with open(Path(sys.argv[1], "builds"), "a") as log:
        log.write("build\\n")
    build(target)
cpu_build.build = counted
cpu_build.platform.machine = lambda: "unknown"  # no other versions are expected by the dispatcher
library = native.library()
assert library.reason is None, library.reason
assert library.instructions == "portable"
"""


def test_processes_that_start_together_build_once(tmp_path):
    if cpu_build.compiler() is None:
        pytest.skip(cpu_build.NO_COMPILER)
    environment = {**os.environ, "VHEATIR_CACHE": str(tmp_path / "cache"), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", SMALL_LIBRARY, str(tmp_path)]
    processes = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    before, after = "".join(said).splitlines()  # by the one that compiled
    assert before.startswith("vheatir: compiling the CPU kernel")
    assert re.fullmatch(r"vheatir: the CPU kernel is compiled, in \d+ s", after)
    assert (tmp_path / "builds").read_text() == "build\n"
    assert len(list((tmp_path / "cache").glob("*.so"))) == 1


def test_instructions_are_asked_for_by_names_that_older_compilers_know():
    asked = re.findall(r'__builtin_cpu_supports\("(\w+)"\)', (cpu_build.SOURCES / "dispatch.cpp").read_text())
    assert set(asked) == {"avx2", "fma", "avx512f", "avx512vl", "avx512bw", "avx512dq"}


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="the system does not list the processor's instructions")
def test_the_most_instructions_are_used_that_the_processor_has():
    flags = set(Path("/proc/cpuinfo").read_text().split())
    has = ["portable"] + ["avx2"] * ({"avx2", "fma", "f16c"} <= flags)
    has += ["avx512"] * (len(has) == 2 and {"avx512f", "avx512vl", "avx512bw", "avx512dq"} <= flags)
    assert native.instructions() == has[-1]


def test_a_lock_of_another_user_keeps_nobody_from_building(tmp_path, monkeypatch):
    (tmp_path / "build.lock").mkdir()  # as little to be opened, also by root
    with cpu_build.one_process_at_a_time(tmp_path):
        pass
    monkeypatch.setattr(cpu_build.os, "access", lambda folder, mode: False)
    with pytest.raises(OSError, match=r"build\.lock"), cpu_build.one_process_at_a_time(tmp_path):
        pass


def test_without_a_home_folder_the_kernels_say_what_to_name(monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    for name in ("VHEATIR_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(cpu_build.Path, "home", homeless)
    with pytest.raises(cpu_build.BuildError, match=r"no home folder .* VHEATIR_CACHE"):
        cpu_build.cache_folder()
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert cpu_build.cache_folder() == Path("/cache/vheatir")


def test_every_file_that_is_compiled_changes_the_librarys_name():
    waiting, seen = [name for name in cpu_build._FILES if name.endswith(".cpp")], set()
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += re.findall(r'#include "(.+)"', (cpu_build.SOURCES / name).read_text())
    assert seen == set(cpu_build._FILES)


@pytest.mark.parametrize(
    "n, product", [(1, 1), (16, 1), (17, 17), (45, 9), (481, 37), (720, 9), (1280, 1), (2053, 2053)]
)
def test_the_longest_dense_product_of_a_side(n, product):
    assert longest_product(n) == product


@pytest.mark.parametrize("longest_leaf", [SHORT_LEAF, LONG_LEAF])
@pytest.mark.parametrize("n", [1, 2, 16, 28, 32, 56, 105, 481, 720])
def test_a_plan_reads_every_sample_and_writes_every_frequency_once(n, longest_leaf):
    plan = transform_plan(n, longest_leaf)
    read, written = [], []
    for _, _, size, count, flags, _, _, rows in plan.steps:
        cells = size * count
        read += plan.rows[rows : rows + cells].tolist() if flags & 1 else []
        written += plan.rows[rows + cells : rows + 2 * cells].tolist() if flags & 2 else []
    assert sorted(read) == sorted(written) == list(range(n))


def test_plans_of_many_long_sides_are_not_all_kept():
    """A table grows with the square of its side: those of all images that a process ever saw would fill the memory."""
    sides = range(257, 400)
    plans = [
        weakref.ref(cpu_kernel.unbound_job((1, n, 1, 1), (n, 1, 1, 1), (0, 0), 0, "portable")[1][0]) for n in sides
    ]
    assert sum(plan() is not None for plan in plans) <= transform_plan.cache_parameters()["maxsize"]


def test_threads_that_meet_new_sizes_together_get_the_right_values():
    """The tables of a length are made on first use; a thread's call must not depend on another's tables."""
    sizes = [(height, 137 - height) for height in range(61, 93)]
    gate = threading.Barrier(4)

    def work(_) -> list[torch.Tensor]:
        gate.wait()
        generator = torch.Generator().manual_seed(0)
        results = []
        for height, width in sizes:
            x = torch.randn(1, height, width, 3, generator=generator)
            results.append(heat_conduction(x, torch.full((height, width, 3), 0.5), backend="cpu_kernel") - 0.5 * x)
        return results

    with ThreadPoolExecutor(4) as pool:
        for errors in pool.map(work, range(4)):
            assert max(error.abs().max().item() for error in errors) < 1e-5
