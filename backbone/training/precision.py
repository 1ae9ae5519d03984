"""The type of autocast in restoration training, which `train.amp` names."""

import logging

import torch

AMP_TYPES = ("auto", "none", "bf16", "fp16")
_DTYPES = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}
_logger = logging.getLogger("vheatir")


def is_fast_in_bf16(device: torch.device) -> bool:
    """Whether `device` has instructions for products of bfloat16; without them PyTorch emulates, many times slower."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # older torch cannot tell: then it is not fast
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))  # the last is ARM64's


def autocast_dtype(amp: str, device: torch.device) -> torch.dtype | None:
    """The type that `train.amp` means on `device`; None for none.

    "auto" is bfloat16 where the device multiplies it, and none elsewhere. bf16 that the device would have to emulate is
    taken at its word, with a warning; so is fp16, whatever the device.

    Args:
        amp: one of `AMP_TYPES`.

    Raises:
        KeyError: it is none of them (options are checked before).
    """
    if amp == "auto":
        return torch.bfloat16 if is_fast_in_bf16(device) else None
    if amp == "bf16" and not is_fast_in_bf16(device):
        _logger.warning(
            "train.amp bf16: %s is not known to multiply bfloat16 and may be many times slower than in float32; "
            "`auto` takes bf16 where it is fast",
            "this processor" if device.type == "cpu" else f"the device {device}",
        )
    return _DTYPES[amp]
