"""The library under the commands: documented paths, functions of the commands, and no parsed arguments below them."""

import ast
import importlib
import inspect
from pathlib import Path

import pytest

import vheatir
from vheatir import cli
from vheatir.errors import UserError

ROOT = Path(__file__).resolve().parent.parent

# Documented, or used by scripts: they go on working, wherever the code stands.
KEPT_PATHS = """
    vheatir.image_io vheatir.image_io.read_image vheatir.weights.find vheatir.weights.load vheatir.tiling.apply_tiled
    vheatir.hub vheatir.openmmlab vheatir.data.custom vheatir.data.degradations.to_uint8
    vheatir.evaluate.evaluate vheatir.evaluate.main
    vheatir.evaluate.evaluate_image vheatir.metrics.fidelity vheatir.metrics.batched vheatir.integrations.spandrel
    vheatir.integrations.deepinv vheatir.integrations.huggingface vheatir.integrations.openmmlab
    vheatir.backbone.create_model vheatir.backbone.load_checkpoint vheatir.backbone.dense_backbone
    vheatir.backbone.MetaArch vheatir.backbone.mixers vheatir.backbone.mixers.block vheatir.backbone.feature_maps
    vheatir.backbone.analysis.cost vheatir.backbone.detection.model vheatir.backbone.detection.recipe
    vheatir.backbone.segmentation.recipe vheatir.backbone.segmentation.upernet
"""
EXTRAS = {
    "vheatir.hub": "huggingface_hub",
    "vheatir.integrations.huggingface": "huggingface_hub",
    "vheatir.integrations.spandrel": "spandrel",
    "vheatir.integrations.deepinv": "deepinv",
}
FUNCTIONS = ("analyze", "bench", "compare", "evaluate", "export", "prepare", "restore", "train")


def found_at(path: str) -> object:
    """The module or the member of one at a dotted path."""
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name != path:
            raise
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


@pytest.mark.parametrize("path", KEPT_PATHS.split())
def test_documented_paths_are_there(path):
    if path in EXTRAS:
        pytest.importorskip(EXTRAS[path])
    assert found_at(path).__name__.rpartition(".")[2] in (path.rpartition(".")[2], "store", "tiling")


def test_a_moved_module_is_one_module_under_both_names():
    former = importlib.import_module("vheatir.tiling")
    present = importlib.import_module("vheatir.restore.tiling")
    assert former is present
    assert present.__spec__.name == present.__name__ == "vheatir.restore.tiling"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_function_of_a_command_is_its_package_too(name):
    package = getattr(vheatir, name)
    function = getattr(package, name)
    assert package is importlib.import_module(f"vheatir.{name}") and inspect.ismodule(package)
    assert inspect.signature(package) == inspect.signature(function)
    documented = inspect.getdoc(function)
    for parameter in inspect.signature(function).parameters:
        assert f"\n    {parameter}: " in documented or f"\n    **{parameter}: " in documented, parameter


def test_a_call_of_a_package_reaches_the_function(monkeypatch):
    calls = []
    monkeypatch.setattr(vheatir.restore, "restore", lambda *args, **kwargs: calls.append((args, kwargs)) or "done")
    assert vheatir.restore("in.jpg", "out.jpg", task="denoise") == "done"
    assert calls == [(("in.jpg", "out.jpg"), {"task": "denoise"})]
    with pytest.raises(AttributeError, match=r"'vheatir\.restore' has no attribute 'restorre'"):
        _ = vheatir.restore.restorre


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: vheatir.restore("none.png", "out", task="denoise"), "none.png: there is no such file"),
        (lambda: vheatir.restore("none.png", "out", task="denoise", quality=10), "--quality does not belong"),
        (lambda: vheatir.restore("none.png", "out", task="blur"), "unknown task 'blur'"),
        (lambda: vheatir.restore("none.png", "out", task="jpeg", engine="far"), "unknown engine 'far'"),
        (lambda: vheatir.evaluate(["none"], "denoise", gray=True, method=None), "none: no such folder"),
        (lambda: vheatir.evaluate(["none"], "denoise", gray=True, method="sharpen"), "unknown method 'sharpen'"),
        (lambda: vheatir.prepare("none"), "none: neither a folder nor a known set"),
        (lambda: vheatir.compare(["none.png"], task="denoise"), "how is the image to be degraded"),
        (lambda: vheatir.bench("attention"), "unknown benchmark 'attention'; known: hco"),
        (lambda: vheatir.bench("hco", against="swin"), "hco is compared with published or none, not with 'swin'"),
        (lambda: vheatir.analyze("depth"), "unknown analysis 'depth'"),
        (lambda: vheatir.export("denoise_color_blind"), "give either a file"),
        (lambda: vheatir.train("no_such_recipe"), "no_such_recipe: no such options file"),
    ],
)
def test_functions_refuse_what_the_commands_refuse(call, message, tmp_path, monkeypatch):
    if "train" in message or "options file" in message:
        pytest.importorskip("basicsr")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        call()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name, module", cli.COMMANDS.items())
def test_a_command_is_a_file_or_a_package_of_its_name(name, module):
    own = f"vheatir.{name.replace('-', '_')}"
    assert module in (own, f"{own}.command")


PARSERS = ("parse_args", "parse_known_args", "parse_intermixed_args")
# Parameters of these names without a type, or with one that says nothing, are taken for parsed arguments.
NAMES_OF_ARGUMENTS = {"arguments", "args", "parsed", "namespace"}
LOOK_INTO = {"vars", "getattr", "setattr", "hasattr"}
Function = ast.FunctionDef | ast.AsyncFunctionDef


def parameters(node: Function | ast.Lambda) -> list[ast.arg]:
    return [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]


def own_arguments(node: ast.Lambda) -> set[str]:
    return NAMES_OF_ARGUMENTS.intersection(one.arg for one in parameters(node))


def takes_arguments(parameter: ast.arg) -> bool:
    annotation = ast.unparse(parameter.annotation) if parameter.annotation else "Any"
    return "Namespace" in annotation or (parameter.arg in NAMES_OF_ARGUMENTS and annotation in ("Any", "object"))


def handed_on(scope: ast.AST) -> set[str]:
    """Functions that are called with what a parser of the same scope returned, as it is."""
    parsed = {
        target.id
        for node in ast.walk(scope)
        if isinstance(node, ast.Assign | ast.AnnAssign)
        and isinstance(node.value, ast.Call)
        and ast.unparse(node.value.func).endswith(PARSERS)
        for target in ast.walk(node)
        if isinstance(target, ast.Name) and isinstance(target.ctx, ast.Store)
    }
    return {
        ast.unparse(node.func)
        for node in ast.walk(scope)
        if isinstance(node, ast.Call)
        for value in [*node.args, *(keyword.value for keyword in node.keywords)]
        if (isinstance(value, ast.Name) and value.id in parsed)
        or (isinstance(value, ast.Call) and ast.unparse(value.func).endswith(PARSERS))
    } - LOOK_INTO


def takers_of_arguments(path: Path) -> set[str]:
    """Functions that take parsed arguments: by their parameters, or by a call; a command.py may have its own."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    functions = [node for node in nodes if isinstance(node, Function)]
    by_call = set().union(*map(handed_on, functions))
    if path.name == "command.py":
        return by_call - {node.name for node in functions}
    by_name = {node.name for node in functions if any(map(takes_arguments, parameters(node)))}
    by_use = {
        "lambda"
        for node in nodes
        if isinstance(node, ast.Lambda)
        for used in ast.walk(node.body)
        if isinstance(used, ast.Attribute) and ast.unparse(used.value) in own_arguments(node)
    }
    return by_name | by_use | by_call


def test_parsed_arguments_stay_in_the_commands():
    found = {
        path.relative_to(ROOT).as_posix(): takers
        for folder in ("vheatir", "backbone", "kernels")
        for path in sorted((ROOT / folder).rglob("*.py"))
        if (takers := takers_of_arguments(path))
    }
    assert found == {}


@pytest.mark.parametrize(
    "text, name, found",
    [
        ("def f(a: argparse.Namespace): ...", "api.py", {"f"}),
        ("def f(*, arguments): ...", "api.py", {"f"}),
        ("def f(arguments: dict[str, Any], *args): ...", "api.py", set()),
        ("f = lambda args: args.out", "api.py", {"lambda"}),
        ("def main(argv):\n    a = parser().parse_args(argv)\n    return run(a, 1)", "api.py", {"run"}),
        ("def main(argv):\n    a, rest = p.parse_known_args(argv)\n    return x.run(given=a)", "api.py", {"x.run"}),
        ("def main(argv):\n    return run(_parser().parse_args(argv))", "command.py", {"run"}),
        ("def main(argv):\n    a = p.parse_args(argv)\n    return run(a.out, **vars(a))", "api.py", set()),
        ("def _run(a): ...\ndef main(argv):\n    a = p.parse_args(argv)\n    _run(a)", "command.py", set()),
    ],
)
def test_the_rule_on_parsed_arguments_knows_their_takers(text, name, found, tmp_path):
    (tmp_path / name).write_text(text)
    assert takers_of_arguments(tmp_path / name) == found
