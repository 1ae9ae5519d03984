"""The rules of the house that a reader relies on: imports go one way, files stay short, nothing private leaks."""

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("kernels", "backbone", "vheatir", "scripts", "datasets", "benchmarks", "tests")
LONGEST_FILE, LONGEST_FUNCTION = 350, 60

KERNELS_MAY_IMPORT = {"torch", "numpy", "cuda"}  # cuda-bindings: NVRTC
BACKBONE_MAY_IMPORT = KERNELS_MAY_IMPORT | {
    "PIL",
    "einops",
    "pycocotools",
    "safetensors",
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


def reason(comment: str, line: str) -> bool:
    """Whether the line carries `# <comment>: <why>`."""
    return re.search(rf"# {comment}: \S+", line) is not None


def long_file(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    excused = len(lines) <= LONGEST_FILE or any(reason("long file", line) for line in lines)
    return [] if excused else [f"{len(lines)} lines"]


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


def test_files_have_at_most_350_lines_or_say_why():
    """Split it, or give the reason in a line `# long file: ...`."""
    assert offenders(PYTHON, long_file) == {}


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
