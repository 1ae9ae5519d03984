"""Maps the folders of the checkout to packages: `kernels/` is vheatir.kernels, `backbone/` vheatir.backbone.

Builds the CPU kernel along with them where there is a C++ compiler; without one the package works and is slower.
VHEATIR_CPU_KERNEL=0 leaves it out, VHEATIR_CPU_KERNEL=1 makes its absence an error, for releases. VHEATIR_MACHINE names
other processors to compile it for, such as aarch64, with the cross compiler in CXX. Builds the CUDA kernels where there
is nvcc and VHEATIR_CUDA=1, a visible GPU or a list in VHEATIR_CUDA_ARCH asks for it. Everything that is not code layout
(metadata, extras, the command) is in pyproject.toml.
"""

import os
import platform
import shutil
import sys
from pathlib import Path

from setuptools import Distribution, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

# `kernels/` and `options/` hold no __init__.py, so they are named here instead of being found.
FOLDERS = {
    "vheatir": "vheatir",
    "vheatir.backbone": "backbone",
    "vheatir.kernels": "kernels",
    "vheatir.recipes": "options",
}

sys.path.insert(0, str(Path(__file__).resolve().parent))  # the package can be imported from here before it is installed
from vheatir.kernels.cpu import build as cpu_build  # noqa: E402
from vheatir.kernels.cuda import build as cuda_build  # noqa: E402

MACHINE = os.environ.get("VHEATIR_MACHINE") or platform.machine()
FOREIGN = platform.machine() != MACHINE


def builds_kernel() -> bool:
    return os.environ.get("VHEATIR_CPU_KERNEL") != "0" and cpu_build.compiler() is not None


def compiled_before() -> Path | None:
    """The library that the checkout compiled at its first use, if it did."""
    try:
        kept = cpu_build.cached_file(cpu_build.compiler())
    except cpu_build.BuildError:  # no home folder
        return None
    return kept if kept.exists() else None


def builds_cuda() -> bool:
    if FOREIGN:
        return False
    try:
        return bool(cuda_build.planned_architectures())
    except cuda_build.BuildError:
        return False


class BuildWithKernels(build_py):
    """Puts compiled kernels beside the modules. An editable installation compiles them at first use instead."""

    def run(self):
        if not self.editable_mode:
            # pip builds in the checkout, where an earlier build left modules that are gone and libraries of others
            shutil.rmtree(Path(self.build_lib, "vheatir"), ignore_errors=True)
        super().run()
        if not self.editable_mode:
            self.build_for_cpu()
            self.build_for_cuda()

    def build_for_cuda(self):
        if FOREIGN:
            return
        try:
            if architectures := cuda_build.planned_architectures():
                cuda_build.build(
                    Path(self.build_lib, "vheatir", "kernels", "cuda", cuda_build.library_name()), architectures
                )
        except cuda_build.BuildError as error:
            sys.stderr.write(f"warning: the CUDA kernels were not built: {error}\n")

    def build_for_cpu(self):
        required = os.environ.get("VHEATIR_CPU_KERNEL") == "1"
        if not builds_kernel():
            if required:
                raise cpu_build.BuildError(f"VHEATIR_CPU_KERNEL=1 asks for the CPU kernel, but {cpu_build.NO_COMPILER}")
            return
        target = Path(self.build_lib, "vheatir", "kernels", "cpu", cpu_build.library_name(MACHINE))
        try:
            if FOREIGN:
                cpu_build.build(target, MACHINE)
            elif kept := compiled_before():
                shutil.copy(kept, target)
            else:
                cpu_build.build(target)
        except (cpu_build.BuildError, OSError) as error:
            if required:
                raise
            sys.stderr.write(f"warning: the CPU kernel was not built, the slower PyTorch path will run: {error}\n")


class BinaryWhereBuilt(Distribution):
    """A wheel with a compiled library belongs to one kind of machine."""

    def has_ext_modules(self):
        return builds_kernel() or builds_cuda()


class WheelForEveryPython(bdist_wheel):
    """The libraries are plain C, loaded by ctypes: they belong to a platform and to no version of Python."""

    def get_tag(self):
        *_, tag = super().get_tag()
        return "py3", "none", tag.replace(platform.machine(), MACHINE)


setup(
    cmdclass={"build_py": BuildWithKernels, "bdist_wheel": WheelForEveryPython},
    distclass=BinaryWhereBuilt,
    package_dir=FOLDERS,
    packages=[
        *FOLDERS,
        # In a checkout vheatir/backbone and vheatir/kernels are links, for editors and type checkers.
        *(f"vheatir.{name}" for name in find_packages("vheatir", exclude=["backbone*", "kernels*"])),
        *(f"vheatir.backbone.{name}" for name in find_packages("backbone")),
        *(f"vheatir.kernels.{name}" for name in find_packages("kernels")),
    ],
    package_data={
        "vheatir": [
            "py.typed",
            "*.pyi",
            "weights/*.safetensors",
            "weights/*.md",
            "weights/*.json",
            "weights/LICENSE-WEIGHTS",
        ],
        "vheatir.backbone": ["*.pyi"],
        "vheatir.prepare": ["sets.yml", "free_photos.csv"],
        "vheatir.kernels": ["csrc/*"],
        "vheatir.recipes": ["*.yml", "*/*.yml"],
    },
    include_package_data=False,
    zip_safe=False,
)
