"""The unified networks of every mixer and size, registered with timm."""

import sys
from functools import partial

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model

from vheatir.backbone.models.checkpoint import checkpoint_filter_fn
from vheatir.backbone.models.meta_arch import MetaArch
from vheatir.backbone.models.pyramid import built_on, default_cfg

SOURCE = "https://github.com/OpenGVLab/STM-Evaluation"
RELEASE = f"{SOURCE}/releases/download/cls-ckpt"
# Released files carry the names of the networks that the mixers come from.
RELEASED = {"halo": "halonet", "pvt": "pvt", "swin": "swin", "convnext": "convnext", "dcn_v3": "internimage"}

_HEADS = (1, 2, 4, 8)


def _size(dims, depths, drop_path_rate: float, **mixer_args) -> dict:
    return {"dims": dims, "depths": depths, "drop_path_rate": drop_path_rate, "mixer_args": mixer_args}


def _heads(*first: int, **more) -> list[dict]:
    """Arguments of four sizes whose heads double from stage to stage."""
    return [{"num_heads": tuple(n * k for k in _HEADS), **more} for n in first]


_WINDOW = _heads(1, 3, 3, 4, window_size=7)
_HALO = _heads(1, 3, 3, 4, block_size=7, halo_size=3, pos_embed_type="query_related")
_DEFORMABLE = _heads(2, 4, 5, 7, points=9, kernel_size=3)
_REDUCTION = {"num_heads": (1, 2, 5, 8), "sr_ratio": (8, 4, 2, 1), "qkv_bias": True}
_WIDE = {"mlp_ratio": (8, 8, 4, 4)}
_EVEN = {"mlp_ratio": (4, 4, 4, 4)}
_PVT_DIMS = (64, 128, 320, 512)

SIZES: dict[str, dict[str, dict]] = {
    "halo": {
        "micro": _size(32, (2, 2, 9, 2), 0.0, **_HALO[0]),
        "tiny": _size(96, (2, 2, 6, 2), 0.2, **_HALO[1]),
        "small": _size(96, (2, 2, 18, 2), 0.3, **_HALO[2]),
        "base": _size(128, (2, 2, 18, 2), 0.5, **_HALO[3]),
    },
    "pvt": {
        "micro": _size((32, 64, 160, 256), (2, 2, 3, 2), 0.0, **_REDUCTION, **_WIDE),
        "tiny": _size(_PVT_DIMS, (3, 4, 9, 3), 0.1, **_REDUCTION, **_WIDE),
        "small": _size(_PVT_DIMS, (3, 4, 21, 3), 0.3, **_REDUCTION, **_WIDE),
        "base": _size(_PVT_DIMS, (3, 8, 45, 3), 0.5, **_REDUCTION, **_EVEN),
    },
    "swin": {
        "micro": _size(32, (2, 2, 9, 2), 0.0, **_WINDOW[0]),
        "tiny": _size(96, (2, 2, 6, 2), 0.2, **_WINDOW[1]),
        "small": _size(96, (2, 2, 18, 2), 0.3, **_WINDOW[2]),
        "base": _size(128, (2, 2, 18, 2), 0.5, **_WINDOW[3]),
    },
    "convnext": {
        "micro": _size(32, (3, 3, 8, 3), 0.0),
        "tiny": _size(96, (2, 2, 9, 2), 0.1),
        "small": _size(96, (2, 2, 24, 2), 0.4),
        "base": _size(128, (2, 2, 24, 2), 0.5),
    },
    "dcn_v3": {
        "micro": _size(32, (2, 2, 9, 2), 0.0, **_DEFORMABLE[0]),
        "tiny": _size(64, (4, 4, 18, 4), 0.1, **_DEFORMABLE[1]),
        "small": _size(80, (4, 4, 21, 4), 0.3, **_DEFORMABLE[2]),
        "base": _size(112, (4, 4, 21, 4), 0.5, **_DEFORMABLE[3]),
    },
    # Ours: the widths, depths and rates of swin, whose blocks have as many weights; one block less in micro makes up
    # for the frequency embeddings.
    "heat": {
        "micro": _size(32, (2, 2, 8, 2), 0.0),
        "tiny": _size(96, (2, 2, 6, 2), 0.2),
        "small": _size(96, (2, 2, 18, 2), 0.3),
        "base": _size(128, (2, 2, 18, 2), 0.5),
    },
}


def _cfg(mixer: str, size: str) -> dict:
    if mixer not in RELEASED:
        return default_cfg(MetaArch, paper_ids="arXiv:2405.16555")
    url = f"{RELEASE}/unified_{RELEASED[mixer]}_{size}.pth"
    return default_cfg(MetaArch, url=url, paper_ids="arXiv:2211.05781", license="mit", origin_url=SOURCE)


default_cfgs = generate_default_cfgs(
    {f"unified_{mixer}_{size}.in1k": _cfg(mixer, size) for mixer, sizes in SIZES.items() for size in sizes}
)


def network_arguments(mixer: str, size: str, given: dict) -> dict:
    """Arguments of `MetaArch` for a size, with those given in their place; `mixer_args` are merged.

    Args:
        mixer: name in `backbone.mixers.MIXERS`.
        size: name of the size, such as "micro" or "tiny".
        given: arguments of the caller.
    """
    args = {"mixer": mixer, **SIZES[mixer][size], **given}
    return {**args, "mixer_args": {**SIZES[mixer][size]["mixer_args"], **(given.get("mixer_args") or {})}}


def _register(mixer: str, size: str) -> None:
    """Register `unified_<mixer>_<size>` with timm, as a function of this module."""
    name = f"unified_{mixer}_{size}"

    def build(pretrained: bool = False, *, device=None, dtype=None, **kwargs) -> MetaArch:
        make = partial(
            build_model_with_cfg,
            MetaArch,
            name,
            pretrained,
            pretrained_filter_fn=checkpoint_filter_fn,
            feature_cfg={"out_indices": (0, 1, 2, 3), "feature_cls": MetaArch.as_features},
        )
        return built_on(make, network_arguments(mixer, size, kwargs), device, dtype)

    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"Unified network of size {size} with the token mixer {mixer}."
    setattr(sys.modules[__name__], name, register_model(build))


for _mixer, _sizes in SIZES.items():
    for _name in _sizes:
        _register(_mixer, _name)
