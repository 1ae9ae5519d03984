"""vheatir bench: checks before it times, interleaves, and leaves a file with its conditions."""

import json
import os

import pytest
import torch

import vheatir
from vheatir import cli
from vheatir.bench import api
from vheatir.bench import command as bench
from vheatir.bench import operator as bench_operator
from vheatir.bench.case import Case
from vheatir.errors import UserError
from vheatir.kernels.cpu import library as native
from vheatir.kernels.dct import decay_map
from vheatir.utils import timing as measure

CPU = torch.device("cpu")
UNIFORM = ("--decay", "uniform")
RESULT_KEYS = {
    "case",
    "backend",
    "threads",
    "median_us",
    "iqr_us",
    "rounds",
    "calls",
    "speedup",
    "peak_mib",
    "error",
    "shape",
}


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    """The command starts itself anew with the heap kept; here it must not."""
    monkeypatch.setenv("VHEATIR_BENCH_HEAP", "set")
    monkeypatch.setenv(native.SWITCH, "0")  # the names of what is measured are then the same everywhere


def options(*arguments):
    return vars(bench._parser().parse_args(["hco", "--shape", "1x6x9x2", "--rounds", "2", *arguments]))


def run(*arguments):
    return measured(options(*arguments))


def measured(chosen):
    chosen.pop("json")
    return vheatir.bench(**chosen)


@pytest.mark.parametrize(
    "arguments, backends",
    [
        ((), ["published", "torch", "torch prepared"]),
        (("--raw",), ["published", "torch"]),
        (("--prepared",), ["published", "torch prepared"]),
        (("--against", "none"), ["torch", "torch prepared"]),
        (("--raw", "--backward"), ["published", "torch"] * 2),
        (
            ("--backward",),
            ["published", "torch", "torch prepared", "published", "torch", "published", "torch prepared"],
        ),
    ],
    ids=lambda value: " ".join(value) or "default",
)
def test_what_is_measured_follows_the_options(arguments, backends):
    results = run(*arguments)
    assert [result["backend"] for result in results] == backends
    assert all(result.keys() >= RESULT_KEYS and result["median_us"] > 0 for result in results)


def test_the_cpu_kernel_goes_by_its_name(monkeypatch):
    monkeypatch.setenv(native.SWITCH, "1")
    if native.refusal() is not None:
        pytest.skip(native.refusal())
    assert [one["backend"] for one in run()] == ["published", "cpu_kernel", "cpu_kernel prepared"]
    assert [one["backend"] for one in run("--dtype", "float64")] == ["published", "torch", "torch prepared"]


@pytest.mark.parametrize("dtype", bench.DTYPES)
def test_every_type_passes_the_gate(dtype):
    for result in run("--dtype", dtype, "--backward", "--shape", "1x6x9x2", "2x130x5x3"):
        limits = api.BASELINE_TOLERANCE if result["backend"] == "published" else api.TOLERANCE
        assert result["error"] <= limits[dtype]


@pytest.mark.parametrize("channels", [2, 128])
def test_decays_are_those_of_a_network_unless_asked_otherwise(channels):
    shape = f"1x40x60x{channels}"
    found = [
        run("--shape", shape, *more, "--raw", "--against", "none") for more in ((), ("--decay", "network"), UNIFORM)
    ]
    networks = {2: "network: log-spaced, 0.5 to 28 pixels", 128: "network: denoise_color_blind encoder.2.0.attention"}
    assert [one["decay"] for results in found for one in results] == [networks[channels]] * 2 + ["uniform"]


@pytest.mark.parametrize("channels", [1, 3, 128])
def test_a_networks_decay_conducts_as_far_as_networks_do(channels):
    decay = decay_map(bench_operator.network_diffusivities(100, 150, channels)[0].float())
    assert decay.shape == (100, 150, channels)
    assert decay[:, :, 0].min() > 0.01  # the first channel hardly blurs
    assert channels == 1 or (decay[:, :, -1] == 0).float().mean() > 0.5  # in the last one most of a spectrum vanishes


def test_nothing_wrong_is_timed(monkeypatch):
    monkeypatch.setattr(bench_operator, "heat_conduction", lambda x, decay: x * 1.001)
    monkeypatch.setattr(measure, "interleave", lambda *_, **__: pytest.fail("timed a wrong result"))
    with pytest.raises(UserError, match=r"hco fwd 1x6x9x2 float32: y of torch is off by .* nothing was timed"):
        run()


def test_a_result_that_is_nan_does_not_pass_the_gate(monkeypatch):
    monkeypatch.setattr(bench_operator, "heat_conduction", lambda x, decay: x * torch.nan)
    with pytest.raises(UserError, match="off by nan"):
        run()


def test_a_gradient_that_is_nan_does_not_pass_behind_a_right_value():
    right = torch.ones(3, dtype=torch.float64)
    found = {"y": right.float(), "dx": right.float() * torch.nan}
    case = Case("c", "float32", CPU, {"ours": lambda: found}, {"y": right, "dx": right})
    with pytest.raises(UserError, match="c: dx of ours is off by nan"):
        api.errors(case)


def test_threads_are_set_for_each_case_and_set_back():
    before = torch.get_num_threads()
    assert [result["threads"] for result in run("--raw", "--threads", "1", "2")] == [1, 1, 2, 2]
    assert torch.get_num_threads() == before


def test_the_file_tells_the_conditions(tmp_path, capsys):
    path = tmp_path / "new" / "bench.json"
    assert cli.main(["bench", "hco", "--shape", "1x6x9x2", "--rounds", "2", "--json", str(path)]) == 0
    written = json.loads(path.read_text())
    assert [result["backend"] for result in written["results"]] == ["published", "torch", "torch prepared"]
    assert written["metadata"]["command"].startswith("vheatir bench hco --shape 1x6x9x2")
    assert {"commit", "versions", "machine", "utc", "load_before", "load_after"} <= written["metadata"].keys()
    (roof,) = written["metadata"]["roofline"]
    assert roof["copy_gb_s"] > 0 and roof["gemm_gflop_s"] > 0
    assert all(one["share_of_copy"] > 0 and one["share_of_gemm"] > 0 for one in written["results"])
    assert "hco fwd 1x6x9x2 float32" in capsys.readouterr().out


def test_a_training_step_of_swin_leaves_no_blocks_out():
    pytest.importorskip("timm")
    from vheatir.bench.classifier import model

    *_, case = model(side=(32,), batch=4, against="swin", backward=True)
    steps = [case.candidates["swin"]() for _ in range(3)]
    assert all(torch.equal(steps[0][key], step[key]) for step in steps for key in step)
    assert api.errors(case)["swin"] < 1e-4


def test_a_gpus_products_of_another_type_are_no_measure(monkeypatch):
    monkeypatch.setattr(measure, "roofline", lambda *_: {"copy_gb_s": 1.0, "gemm_gflop_s": 50.0})
    roof = api.rooflines([1], "cuda", "float32")[1]
    shares = {}
    for dtype in ("float32", "bfloat16"):
        case = Case("", dtype, torch.device("cuda"), {}, {}, flops={"ours": 1e9}, traffic=1.0)
        shares[dtype] = api._shares(case, "ours", 1e3, roof)
    assert shares["float32"]["share_of_gemm"] == 20 and "share_of_gemm" not in shares["bfloat16"]


def test_the_command_runs_itself_once_with_the_heap_kept(monkeypatch, tmp_path):
    monkeypatch.delenv("VHEATIR_BENCH_HEAP")
    path = tmp_path / "bench.json"
    assert cli.main(["bench", "hco", "--shape", "1x6x9x2", "--rounds", "2", "--raw", "--json", str(path)]) == 0
    environment = json.loads(path.read_text())["metadata"]["environment"]
    assert environment.items() >= bench.KEPT_HEAP.items()
    assert "VHEATIR_BENCH_HEAP" not in os.environ


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--shape", "8x56x56"], "expected BxHxWxC"),
        (["--shape", "8x0x56x3"], "expected BxHxWxC"),
        (["--threads", "0"], "whole number from 1 on"),
        (["--clock", "sun"], "invalid choice"),
        (["--raw", "--prepared"], "not allowed with"),
        (["--dtype", "int8"], "invalid choice"),
    ],
)
def test_wrong_options_are_explained(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        bench.main(["hco", *arguments])
    assert stopped.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"decay": "networks"}, "decay: expected network or uniform, got 'networks'"),
        ({"dtype": "bfloat16"}, "dtype: expected a list of float64, .*, got 'bfloat16'"),
        ({"dtype": ["float8"]}, "dtype: expected a list"),
        ({"forms": ("fast",)}, "forms: expected a list of raw, prepared"),
        ({"threads": 1}, "threads: expected a list of whole numbers"),
        ({"threads": [0]}, "from 1 on"),
        ({"shape": (1, 6, 9, 2)}, "shape: expected a list of tuples of 4"),
        ({"shape": [(1, 6, 9)]}, "tuples of 4"),
        ({"rounds": 0}, "rounds: expected a whole number from 1 on, got 0"),
        ({"clock": "sun"}, "clock: expected wall or cpu"),
        ({"size": "huge"}, "size: expected tiny or small or base"),
    ],
    ids=str,
)
def test_wrong_values_from_python_are_explained(arguments, message):
    """A decay of another name was measured as uniform, and of forms of other names only the published one."""
    kept = {"shape": [(1, 6, 9, 2)], "rounds": 1, "turn_ms": 0}
    with pytest.raises(UserError, match=message):
        vheatir.bench("hco", **kept | arguments)


@pytest.mark.parametrize(
    "benchmark, arguments, message",
    [
        ("model", {"side": [64, 33]}, "side: expected multiples of 32 pixels, got 33"),
        ("model", {"side": [32], "dtype": ["float64"]}, "dtype: model runs in float32, or by autocast"),
        ("block", {"shape": [(1, 4, 4, 8)], "dtype": ["float64"]}, "dtype: block runs in float32, or by autocast"),
        ("restore", {"image": [(8, 8)], "depths": [1], "dim": 50}, "SwinIR has 4 heads; take a multiple of 4"),
    ],
    ids=str,
)
def test_what_networks_do_not_take_is_explained(benchmark, arguments, message):
    """RuntimeErrors of a wrong size, and values of float32 that were refused as wrong ones of float64."""
    if benchmark == "restore":
        pytest.importorskip("basicsr")
    with pytest.raises(UserError, match=message):
        vheatir.bench(benchmark, rounds=1, turn_ms=0, **arguments)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_device_is_explained(capsys):
    assert cli.main(["bench", "hco", "--device", "cuda"]) == 2
    assert "sees no CUDA device; try --device cpu" in capsys.readouterr().err


def test_processor_time_is_for_processors(capsys):
    assert cli.main(["bench", "hco", "--device", "cuda", "--clock", "cpu"]) == 2
    assert "--clock cpu measures a processor" in capsys.readouterr().err
    assert {result["clock"] for result in run("--clock", "cpu")} == {"cpu"}


def results_of(*arguments):
    return measured(vars(bench._parser().parse_args([*arguments, "--rounds", "2"])))


@pytest.mark.parametrize(
    "arguments, backends",
    [
        (["block", "--shape", "1x5x6x8", "--backward"], ["published", "vheatir"] * 2),
        (["block", "--shape", "1x5x6x8", "--against", "none", "--dtype", "bfloat16"], ["vheatir"]),
        (["model", "--side", "32", "--backward", "--batch", "2"], ["published", "vheatir"] * 2),
        (["model", "--side", "32", "--size", "small"], ["published", "vheatir"]),
        (["model", "--side", "32", "--against", "swin"], ["swin", "vheatir"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_blocks_and_classifiers_pass_the_gate(arguments, backends):
    pytest.importorskip("timm")
    results = results_of(*arguments)
    assert [result["backend"] for result in results] == backends
    assert all(result.keys() >= RESULT_KEYS and result["error"] < 0.1 for result in results)


def test_restoration_is_compared_with_swinir():
    swinir, ours = results_of("restore", "--image", "16x24", "--dim", "8", "--depths", "2")
    assert (swinir["backend"], ours["backend"]) == ("swinir", "vheatir") and ours["speedup"] > 0
    assert "gflop_s" in swinir and max(swinir["error"], ours["error"]) < 1e-4


def test_a_network_with_other_weights_does_not_pass_the_gate(monkeypatch):
    pytest.importorskip("timm")
    from vheatir.bench.published import PublishedHeatLayer

    forward = PublishedHeatLayer.forward
    monkeypatch.setattr(PublishedHeatLayer, "forward", lambda *inputs: 1.5 * forward(*inputs))
    with pytest.raises(UserError, match="y of published is off by"):
        results_of("block", "--shape", "1x5x6x8")


def test_peak_memory_counts_what_is_alive_at_once():
    def one_after_the_other():
        for _ in range(5):
            torch.ones(1 << 18)

    def together():
        return [torch.ones(1 << 18) for _ in range(5)]

    assert measure.peak_mib(one_after_the_other, CPU) == pytest.approx(1, abs=0.01)
    assert measure.peak_mib(together, CPU) == pytest.approx(5, abs=0.01)


def test_the_operator_needs_no_more_memory_than_the_published_one():
    for result in run("--shape", "1x64x64x32", "1x512x256x16", "--backward"):
        if result["backend"] == "published":
            limit = result["peak_mib"]
        assert result["peak_mib"] <= limit


def test_a_short_call_is_repeated_for_a_turn_and_its_time_is_the_mean(monkeypatch):
    calls, takes, clock = [], {"short": 0.002, "long": 0.02}, [0.0]
    monkeypatch.setitem(measure.CLOCKS, "wall", lambda: clock[0])

    def act(name):
        calls.append(name)
        clock[0] += takes[name]

    acts = {name: lambda name=name: act(name) for name in takes}
    timings = measure.interleave(acts, CPU, rounds=2, warmup=0, turn=0.011)
    assert (timings["short"].calls, timings["long"].calls) == (5, 1)
    assert calls == ["short", "long"] + ["short"] * 5 + ["long"] * 2 + ["short"] * 5
    assert timings["short"].microseconds == pytest.approx([2000, 2000])
    assert timings["long"].microseconds == pytest.approx([20000, 20000])


@pytest.mark.parametrize("text", ["-1", "nan", "inf", "5ms"])
def test_a_turn_is_a_number_of_milliseconds(text, capsys):
    with pytest.raises(SystemExit):
        options("--turn", text)
    assert "expected milliseconds from 0 to 10000" in capsys.readouterr().err


def test_rounds_alternate_their_order_and_speedup_is_the_median_ratio():
    calls = []
    timings = measure.interleave({name: lambda name=name: calls.append(name) for name in "ab"}, CPU, rounds=2, warmup=1)
    assert calls == ["a", "b", "a", "b", "b", "a"]
    assert all(len(timing.microseconds) == 2 for timing in timings.values())
    fast, slow = measure.Timing((1.0, 1.0, 2.0)), measure.Timing((3.0, 2.0, 10.0))
    assert fast.speedup_over(slow) == 3.0 and slow.median_us == 3.0 and fast.iqr_us == 1.0
