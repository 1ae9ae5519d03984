"""Public functions and classes say what their arguments are."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FEW = 2  # up to so many parameters may be described in prose
Function = ast.FunctionDef | ast.AsyncFunctionDef


def parameters(node: Function) -> list[str]:
    """Names of the parameters but self and cls."""
    given = node.args
    names = [one.arg for one in (*given.posonlyargs, *given.args)]
    names = names[1:] if names[:1] in (["self"], ["cls"]) else names
    names += [given.vararg.arg] if given.vararg else []
    names += [one.arg for one in given.kwonlyargs]
    return names + ([given.kwarg.arg] if given.kwarg else [])


def described(docstring: str) -> list[str]:
    """Names at the beginnings of the lines of `Args:`; one line may describe several, `rank, world: ...`."""
    section = re.search(r"^Args:\n((?:[ \t]+\S.*\n?|\s*\n)+)", docstring, re.MULTILINE)
    if section is None:
        return []
    text = section[1]
    indent = len(text) - len(text.lstrip())
    heads = re.findall(rf"^ {{{indent}}}(\*{{0,2}}\w+(?:, \*{{0,2}}\w+)*): ", text, re.MULTILINE)
    return [name.lstrip("*") for head in heads for name in head.split(", ")]


def undescribed(name: str, node: Function, docstring: str | None) -> str | None:
    """What is wrong with the arguments' description; None where there is nothing."""
    names = [one for one in parameters(node) if not one.startswith("_")]
    found = described(docstring or "")
    if len(names) <= FEW and not found:
        return None
    lacking = [one for one in names if one not in found]
    unknown = [one for one in found if one not in names]
    wrong = [f"lacks {', '.join(lacking)}"] if lacking else []
    wrong += [f"describes {', '.join(unknown)}, which it does not take"] if unknown else []
    return f"{name} (line {node.lineno}) {' and '.join(wrong)}" if wrong else None


def is_inherited(node: Function) -> bool:
    """Whether the function is described elsewhere: an overload, an override or a setter."""
    marks = {ast.unparse(one).rpartition(".")[2] for one in node.decorator_list}
    return bool(marks & {"overload", "override", "setter"})


def undescribed_arguments(path: Path) -> list[str]:
    """Public functions, methods and classes of a file whose arguments are not all described."""
    tree = ast.parse(path.read_text(encoding="utf-8"), path)
    found = []
    for node in tree.body:
        if isinstance(node, Function) and not node.name.startswith("_"):
            found.append(undescribed(node.name, node, ast.get_docstring(node)))
        if not isinstance(node, ast.ClassDef) or node.name.startswith("_"):
            continue
        for part in node.body:
            if not isinstance(part, Function) or is_inherited(part):
                continue
            docstring = ast.get_docstring(part)
            if part.name == "__init__":
                of_class = docstring if described(docstring or "") else ast.get_docstring(node)
                found.append(undescribed(node.name, part, of_class))
            elif not part.name.startswith("_") and docstring is not None:  # without one: that of the base class
                found.append(undescribed(f"{node.name}.{part.name}", part, docstring))
    return [one for one in found if one is not None]


def test_arguments_are_described():
    """From three parameters on; where some are described, all are, and none that is not there."""
    paths = [path for folder in ("kernels", "backbone", "vheatir") for path in sorted((ROOT / folder).rglob("*.py"))]
    assert len(paths) > 100
    found = {path.relative_to(ROOT).as_posix(): wrong for path in paths if (wrong := undescribed_arguments(path))}
    assert found == {}


@pytest.mark.parametrize(
    "text, wrong",
    [
        ('def f(a, b, c):\n    """X.\n\n    Args:\n        a: one.\n        b, c: two.\n    """', []),
        ('def f(a, b, c):\n    """X of a, b, c."""', ["f (line 1) lacks a, b, c"]),
        ('def f(a, b):\n    """X of a and b."""', []),
        ('def f(a, b):\n    """X.\n\n    Args:\n        a: one.\n    """', ["f (line 1) lacks b"]),
        (
            'def f(a, *b, **c):\n    """X.\n\n    Args:\n        a: one.\n        *b: two.\n        **d: no.\n    """',
            ["f (line 1) lacks c and describes d, which it does not take"],
        ),
        ("def _f(a, b, c): ...", []),
        (
            'class A:\n    """X.\n\n    Args:\n        a: (B, C): one\n            of two.\n        b: two.\n    """\n'
            "    def __init__(self, a, b, c): ...",
            ["A (line 9) lacks c"],
        ),
        ('class A:\n    def f(self, a, b, c):\n        """X."""', ["A.f (line 2) lacks a, b, c"]),
    ],
)
def test_the_rule_on_arguments_knows_what_lacks(text, wrong, tmp_path):
    (tmp_path / "one.py").write_text(text)
    assert undescribed_arguments(tmp_path / "one.py") == wrong
