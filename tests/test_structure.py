"""Rules of the code: few packages, imports in one direction, short functions, no machine paths."""

import ast
import importlib
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Collection, Iterable
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("kernels", "backbone", "vheatir", "scripts", "datasets", "benchmarks", "tests")
LONG_FILE = 350  # from here on a file is worth a look: the test warns
LONGEST_FUNCTION = 60
MOST_FOLDERS = {"vheatir": 32, "backbone": 12, "kernels": 12}
# Imports that go the wrong way and wait for their cure: the list may only get shorter.
WRONG_WAY: set[tuple[str, str]] = set()
# Statements such as `a, b = x, y` in the packages that could be two: the number may only fall.
MOST_PACKED = 0

KERNELS_MAY_IMPORT = {"torch", "numpy", "cuda"}  # cuda-bindings: NVRTC
BACKBONE_MAY_IMPORT = KERNELS_MAY_IMPORT | {
    "PIL",
    "cv2",
    "einops",
    "pycocotools",
    "safetensors",
    "tifffile",
    "timm",
    "torchvision",
    "tqdm",
    "yaml",
}
KNOW_BASICSR = (
    "vheatir/train/",
    "vheatir/archs/swinir_arch.py",
    "vheatir/test.py",
    "vheatir/compat.py",
    "vheatir/basicsr.py",
)
# Home folders and mount points of whoever wrote the file; /tmp/x or /data/x in an example belongs to nobody.
PRIVATE_PATH = re.compile(r"(?<![\w.~}])/(?:home|root|Users|work|workspace|mnt|scratch)/[\w.-]+")


def tracked() -> list[Path]:
    """Files of the repository; outside git, those of the folders above and of the root."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode == 0 and listed.stdout:
        found = [ROOT / name for name in listed.stdout.split("\0") if name]
    else:
        found = [p for folder in (*FOLDERS, "docs", "options", ".ci") for p in (ROOT / folder).rglob("*")]
        found += list(ROOT.glob("*"))
    return sorted(path for path in found if path.is_file() and "__pycache__" not in path.parts)


FILES = tracked()
PYTHON = [path for path in FILES if path.suffix == ".py"]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def files_in(*folders: str) -> list[Path]:
    return [path for path in PYTHON if name_of(path).startswith(folders)]


def imported(path: Path) -> set[str]:
    """Full names of all that a file imports, anywhere in it, relative imports resolved to vheatir.*."""
    folder = path.relative_to(ROOT).parent.as_posix().replace("/", ".")
    package = folder if folder.startswith("vheatir") else f"vheatir.{folder}"
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            names |= {f"{module}.{alias.name}" for alias in node.names}
    return names


def offenders(paths: Iterable[Path], rule: Callable[[Path], Collection[str]]) -> dict[str, Collection[str]]:
    """What the rule finds, by file; files without a finding are left out."""
    return {name_of(path): found for path in paths if (found := rule(path))}


def starting_with(names: set[str], *packages: str) -> set[str]:
    return {name for name in names if f"{name}.".startswith(tuple(f"{package}." for package in packages))}


def foreign(names: set[str], *, libraries: set[str], packages: tuple[str, ...]) -> set[str]:
    """Those names that are neither in the standard library, nor in `libraries`, nor below `packages`."""
    allowed = libraries | sys.stdlib_module_names
    return {name for name in names if name.split(".")[0] not in allowed} - starting_with(names, *packages)


def test_kernels_import_torch_and_themselves():
    allowed = {"libraries": KERNELS_MAY_IMPORT, "packages": ("vheatir.kernels",)}
    assert offenders(files_in("kernels/"), lambda path: foreign(imported(path), **allowed)) == {}


def test_backbone_imports_kernels_but_not_the_restoration_part():
    allowed = {"libraries": BACKBONE_MAY_IMPORT, "packages": ("vheatir.kernels", "vheatir.backbone")}
    assert offenders(files_in("backbone/"), lambda path: foreign(imported(path), **allowed)) == {}


def test_only_the_training_modules_know_basicsr():
    others = [path for path in files_in("vheatir/") if not name_of(path).startswith(KNOW_BASICSR)]
    assert offenders(others, lambda path: starting_with(imported(path), "basicsr")) == {}


def test_packages_do_not_import_what_stands_on_them():
    above = ("tests", "scripts", "datasets", "benchmarks", "conftest")
    forbidden = above + tuple(f"vheatir.{name}" for name in above)
    packages = files_in("kernels/", "backbone/", "vheatir/")
    assert offenders(packages, lambda path: starting_with(imported(path), *forbidden)) == {}


def test_mapped_folders_are_imported_by_their_full_names():
    """vheatir.kernels, vheatir.backbone: under the bare names every module would load twice."""
    assert offenders(PYTHON, lambda path: starting_with(imported(path), "kernels", "backbone")) == {}


@pytest.mark.parametrize("folder", ["kernels", "datasets", "options"])
def test_folders_that_would_hide_other_packages_have_no_init(folder):
    assert not (ROOT / folder / "__init__.py").exists()


@pytest.mark.parametrize("package", ["vheatir", "vheatir.kernels", "vheatir.backbone"])
def test_packages_come_from_this_tree(package):
    folders = [Path(entry).resolve() for entry in importlib.import_module(package).__path__]
    assert ROOT / package.replace("vheatir.", "") in folders


def module_of(path: Path) -> str:
    """The full name under which a file of the packages is imported."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "vheatir" else ("vheatir", *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def folder_of(module: str) -> str:
    """The folder or file at the top of vheatir/, backbone/ or kernels/ that a module belongs to."""
    parts = module.split(".")
    return ".".join(parts[: 3 if parts[1:2] in (["backbone"], ["kernels"]) else 2])


@cache
def arrows() -> dict[str, set[str]]:
    """Module -> modules of the packages that it imports anywhere, in functions too; without those of `WRONG_WAY`."""
    modules = {module_of(path): path for path in files_in("kernels/", "backbone/", "vheatir/")}
    found = {}
    for module, path in modules.items():
        # `from package import name`: a module of the package, or else a name in it
        names = {name if name in modules else name.rpartition(".")[0] for name in imported(path)}
        found[module] = {name for name in names & set(modules) - {module} if (module, name) not in WRONG_WAY}
    return found


def circle(graph: dict[str, set[str]]) -> list[str]:
    """One circle of a graph, from where it starts to there again; empty where there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_modules_do_not_import_in_a_circle():
    assert circle(arrows()) == []


def test_folders_do_not_import_in_a_circle():
    folders: dict[str, set[str]] = {}
    for module, names in arrows().items():
        folders.setdefault(folder_of(module), set()).update({folder_of(name) for name in names} - {folder_of(module)})
    assert circle(folders) == []


def test_a_circle_is_found():
    assert circle({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert set(circle({"a": {"b"}, "b": {"c"}, "c": {"b"}})) == {"b", "c"}


def test_nothing_imports_a_command():
    """Commands are above all else: only the table of commands, `__main__`, and commands made of others know them."""
    commands = set(importlib.import_module("vheatir.cli").COMMANDS.values())
    made_of_others = {"vheatir.demo", "vheatir.cli"}
    found = {
        module: names & commands
        for module, names in arrows().items()
        if names & commands and module not in made_of_others and not module.endswith(".__main__")
    }
    own = {f"{name}.command" for name in found}  # a folder may offer its own command's functions
    assert {module: names - own for module, names in found.items() if names - own} == {}


def test_exceptions_to_the_order_of_imports_are_still_needed():
    """Delete from `WRONG_WAY` what is mended."""
    modules = {module_of(path): path for path in files_in("kernels/", "backbone/", "vheatir/")}
    there = {
        (one, other)
        for one, other in WRONG_WAY
        if one in modules and any(f"{name}.".startswith(f"{other}.") for name in imported(modules[one]))
    }
    assert WRONG_WAY - there == set()


@pytest.mark.parametrize("folder, most", MOST_FOLDERS.items())
def test_entries_at_the_top_are_few(folder, most):
    entries = {path.relative_to(ROOT / folder).parts[0] for path in files_in(f"{folder}/")}
    entries = {name for name in entries if not name.startswith("__")}
    assert 0 < len(entries) <= most, sorted(entries)


def packed_statements(path: Path) -> list[str]:
    """Assignments of several values to several names in one statement, where nothing is swapped or moved on."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), path)):
        if not (isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple)):
            continue
        (target, *_) = node.targets
        if not isinstance(target, ast.Tuple) or any(isinstance(one, ast.Starred) for one in node.value.elts):
            continue
        written = {ast.unparse(one) for one in target.elts}
        read = {ast.unparse(one) for one in ast.walk(node.value) if isinstance(one, ast.Name | ast.Attribute)}
        if not written & read:
            found.append(f"line {node.lineno}: {ast.unparse(node)}")
    return found


def test_statements_are_not_packed():
    """`a, b = b, a` swaps, `a, b = f()` unpacks; `a, b = x, y` should be two statements."""
    found = offenders(files_in("kernels/", "backbone/", "vheatir/"), packed_statements)
    count = sum(map(len, found.values()))
    assert count <= MOST_PACKED, found
    if count < MOST_PACKED:
        warnings.warn(f"set MOST_PACKED to {count}", stacklevel=1)


def nested_conditionals(path: Path) -> list[str]:
    """Conditional expressions with another one inside, which `if` and `return` say plainer."""
    nested = [
        node
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), path))
        if isinstance(node, ast.IfExp)
        and any(isinstance(one, ast.IfExp) for one in (node.test, node.body, node.orelse))
    ]
    return [f"line {node.lineno}: {ast.unparse(node)}" for node in nested]


def test_conditionals_are_not_nested(tmp_path):
    assert offenders(files_in("kernels/", "backbone/", "vheatir/"), nested_conditionals) == {}
    (tmp_path / "one.py").write_text("a = b if c else d if e else f")
    assert len(nested_conditionals(tmp_path / "one.py")) == 1


@pytest.mark.parametrize(
    "line, packed",
    [
        ("a, b = x, y", True),
        ("a, b = b, a", False),
        ("a, b = f()", False),
        ("a, b = b, a + b", False),
        ("a = x, y", False),
    ],
)
def test_the_rule_on_packed_statements_knows_a_swap(tmp_path, line, packed):
    (tmp_path / "one.py").write_text(line)
    assert bool(packed_statements(tmp_path / "one.py")) is packed


def reason(comment: str, line: str) -> bool:
    """Whether the line carries `# <comment>: <why>`."""
    return re.search(rf"# {comment}: \S+", line) is not None


def long_functions(path: Path) -> list[str]:
    source = path.read_text(encoding="utf-8")
    lines = source.splitlines()
    return [
        f"{node.name}: {node.end_lineno - node.lineno + 1} lines"
        for node in ast.walk(ast.parse(source, path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno - node.lineno + 1 > LONGEST_FUNCTION
        and not reason("long function", lines[node.lineno - 1])
    ]


def private_paths(path: Path) -> list[str]:
    data = path.read_bytes()
    text = data.decode("utf-8", errors="ignore") if b"\0" not in data[:8192] else ""
    own = {str(ROOT), str(Path.home())}
    return PRIVATE_PATH.findall(text) + [private for private in own if len(private) > 5 and private in text]


def test_long_files_are_listed():
    """A guideline: split by meaning, not by count."""
    lengths = {name_of(path): len(path.read_text(encoding="utf-8").splitlines()) for path in PYTHON}
    longest = sorted(lengths, key=lengths.__getitem__, reverse=True)[:10]
    listed = [f"{name} {lengths[name]}" for name in longest if lengths[name] > LONG_FILE]
    if listed:
        warnings.warn(f"files of more than {LONG_FILE} lines, the longest: {', '.join(listed)}", stacklevel=1)


def test_functions_have_at_most_60_lines_or_say_why():
    """Split it, or give the reason on the def line, `# long function: ...`."""
    assert offenders(PYTHON, long_functions) == {}


def test_no_path_of_somebodys_machine_is_in_a_file():
    assert offenders(FILES, private_paths) == {}


@pytest.mark.parametrize(
    "text, leaks",
    [
        ("see " + "/home/" + "anna/x.png", True),
        ("'" + "/root/" + "x'", True),
        ("https://example.org/home/page and ./work/x, /tmp/x, /usr/bin/env", False),
    ],
)
def test_the_rule_on_paths_knows_a_leak_from_an_address(text, leaks):
    assert bool(PRIVATE_PATH.findall(text)) is leaks


def test_the_rules_see_the_files():
    """A rule that finds no files would hold for an empty repository."""
    assert {"kernels/ops.py", "vheatir/__init__.py", "backbone/__init__.py"} <= {name_of(path) for path in PYTHON}
