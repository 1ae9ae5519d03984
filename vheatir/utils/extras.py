"""Which extra of the package brings a library that is not installed."""

import importlib.metadata
import re

# Names of distributions that differ from the names under which they are imported.
_DISTRIBUTIONS = {"cv2": "opencv-python", "PIL": "pillow", "pywt": "PyWavelets", "skimage": "scikit-image"}
_DISTRIBUTIONS |= {"yaml": "PyYAML", "cython": "Cython"}


def extra_of(module: str) -> str | None:
    """The first extra of pyproject.toml that lists the library, or None.

    Args:
        module: the library's name in an import statement, such as `PIL` or `PIL.Image`.
    """
    top = module.partition(".")[0]
    wanted = _DISTRIBUTIONS.get(top, top).lower().replace("_", "-")
    try:
        requirements = importlib.metadata.requires("vheatir") or []
    except importlib.metadata.PackageNotFoundError:  # a checkout that was not installed
        return None
    for requirement in requirements:
        name = re.split(r"[^\w.-]", requirement, maxsplit=1)[0].lower().replace("_", "-")
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", requirement)
        if name == wanted and extra:
            return extra[1]
    return None


def advice(error: ModuleNotFoundError) -> str | None:
    """What to install where the library of a failed import belongs to an extra; None for any other import."""
    name = error.name or ""
    extra = extra_of(name)
    if extra is None:
        return None
    return f"this needs {name.partition('.')[0]}, which is not installed; run `pip install 'vheatir[{extra}]'`"
