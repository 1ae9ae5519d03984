"""What `train.amp` means, in every kind of training: the type of autocast on a device."""

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


def autocast_dtype(amp: str, device: torch.device, *, refuse_emulation: bool = False) -> torch.dtype | None:
    """The type that `train.amp` means on `device`; None for none.

    "auto" is bfloat16 where the device has instructions for it, float16 on a CUDA device without them, and none
    elsewhere: the fastest type that the device computes in itself. bfloat16 comes first because its range is that of
    float32, so that no step is lost to overflow.

    Args:
        amp: one of `AMP_TYPES`.
        device: where the network computes.
        refuse_emulation: refuse what the device does not compute in itself. Without it bf16 and fp16 are taken at their
            word, bf16 with a warning: restoration has always trained so, and its networks are small enough for it.

    Raises:
        ValueError: with `refuse_emulation`, fp16 elsewhere than on CUDA, or bf16 on a GPU that has none.
        KeyError: `amp` is none of them (options are checked before).
    """
    fast = is_fast_in_bf16(device) if amp in ("auto", "bf16") else False
    if amp == "auto":
        narrow = torch.float16 if device.type == "cuda" else None
        return torch.bfloat16 if fast else narrow
    if refuse_emulation:
        if amp == "fp16" and device.type != "cuda":
            raise ValueError(f"train.amp fp16 needs a CUDA device, this run is on {device}; take auto, bf16 or none")
        if amp == "bf16" and device.type == "cuda" and not fast:
            raise ValueError("train.amp bf16: this GPU does not compute in bfloat16; take fp16 or none")
    if amp == "bf16" and not fast:
        _logger.warning(
            "train.amp bf16: %s is not known to multiply bfloat16 and may be many times slower than in float32; "
            "`auto` takes bf16 where it is fast",
            "this processor" if device.type == "cpu" else f"the device {device}",
        )
    return _DTYPES[amp]
