"""Maps the folders of the checkout to packages: `kernels/` is vheatir.kernels, `backbone/` vheatir.backbone.

Everything that is not code layout (metadata, extras, the command) is in pyproject.toml.
"""

from setuptools import find_packages, setup

# `kernels/` and `options/` hold no __init__.py, so they are named here instead of being found.
FOLDERS = {
    "vheatir": "vheatir",
    "vheatir.backbone": "backbone",
    "vheatir.kernels": "kernels",
    "vheatir.recipes": "options",
}

setup(
    package_dir=FOLDERS,
    packages=[
        *FOLDERS,
        *(f"vheatir.{name}" for name in find_packages("vheatir")),
        *(f"vheatir.backbone.{name}" for name in find_packages("backbone")),
    ],
    package_data={
        "vheatir": ["weights/*.safetensors", "weights/*.md", "weights/LICENSE-WEIGHTS"],
        "vheatir.kernels": ["csrc/*"],
        "vheatir.recipes": ["*.yml", "*/*.yml"],
    },
    include_package_data=False,
    zip_safe=False,
)
