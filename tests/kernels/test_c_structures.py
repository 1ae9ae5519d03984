"""The structures that ctypes hands to the native kernels, against the C headers that the kernels are compiled with."""

import ctypes
import re
from pathlib import Path

import pytest

import vheatir.kernels
from vheatir.kernels.cpu import fused_norms, gate, separable
from vheatir.kernels.cpu import kernel as cpu
from vheatir.kernels.cuda import kernel as cuda

SOURCES = next(Path(folder) / "csrc" for folder in vheatir.kernels.__path__ if (Path(folder) / "csrc").is_dir())
NUMBERS = {
    "int": ctypes.c_int,
    "int32_t": ctypes.c_int32,
    "int64_t": ctypes.c_int64,
    "long long": ctypes.c_longlong,
    "double": ctypes.c_double,
}
STRUCTURES = [
    cpu._Plan,
    cpu.ConductionJob,
    separable._Job,
    fused_norms._Job,
    fused_norms._GradientJob,
    gate._GateJob,
    gate._GateGradientJob,
    gate._ProductJob,
    gate._NormJob,
    gate._NormGradientJob,
    cuda._PlaneJob,
    cuda._Lines,
    cuda._LinesJob,
    cuda._SumJob,
]


def name_of(structure) -> str:
    """`vheatir_..._job`, which its docstring starts with."""
    return structure.__doc__.partition(".")[0]


def declared() -> dict[str, list[tuple[str, object]]]:
    """Structure -> its fields, in order, with their types: those of ctypes, or the name of another structure."""
    found = {}
    for header in ("api.h", "cuda_api.h"):
        text = re.sub(r"//[^\n]*", "", (SOURCES / header).read_text(encoding="utf-8"))
        for body, name in re.findall(r"typedef struct \{(.*?)\} (\w+);", text, re.DOTALL):
            found[name] = [field for line in body.split(";") if line.strip() for field in fields_of(line)]
    return found


def fields_of(declaration: str) -> list[tuple[str, object]]:
    """Of `const float *one, *other` or `int64_t one, other`."""
    kind, names = re.fullmatch(r"(?:const )?(long long|\w+)\s+(.*)", " ".join(declaration.split())).groups()
    return [
        (name.strip(" *"), ctypes.c_void_p if "*" in name else NUMBERS.get(kind, kind)) for name in names.split(",")
    ]


def fields_here(structure) -> list[tuple[str, object]]:
    inherited = [one for base in reversed(structure.__mro__) for one in base.__dict__.get("_fields_", ())]
    return [(name, kind if kind.__module__ == "ctypes" else name_of(kind)) for name, kind in inherited]


@pytest.mark.parametrize("structure", STRUCTURES, ids=name_of)
def test_fields_are_those_of_the_header(structure):
    assert fields_here(structure) == declared()[name_of(structure)]


def test_no_structure_of_the_headers_is_missing():
    """`vheatir_step` is filled as an array of NumPy."""
    assert set(declared()) - {"vheatir_step"} == {name_of(structure) for structure in STRUCTURES}
