"""`train.amp` means one thing, whatever is trained."""

import pytest
import torch

from vheatir.backbone.training import precision
from vheatir.backbone.training.precision import AMP_TYPES, autocast_dtype

CPU, CUDA, MPS = (torch.device(name) for name in ("cpu", "cuda", "mps"))


@pytest.mark.parametrize("refuse", [False, True], ids=["restoration", "backbones"])
@pytest.mark.parametrize(
    "device, fast, want",
    [
        (CPU, True, torch.bfloat16),
        (CPU, False, None),
        (CUDA, True, torch.bfloat16),
        (CUDA, False, torch.float16),
        (MPS, False, None),
    ],
    ids=str,
)
def test_auto_is_the_fastest_type_that_the_device_computes_in_itself(monkeypatch, refuse, device, fast, want):
    monkeypatch.setattr(precision, "is_fast_in_bf16", lambda _: fast)
    assert autocast_dtype("auto", device, refuse_emulation=refuse) is want


def test_emulated_types_are_refused_or_taken_at_their_word(monkeypatch, caplog):
    monkeypatch.setattr(precision, "is_fast_in_bf16", lambda _: False)
    assert autocast_dtype("fp16", CPU) is torch.float16
    assert autocast_dtype("bf16", CUDA) is torch.bfloat16 and "many times slower" in caplog.text
    with pytest.raises(ValueError, match="fp16 needs a CUDA device, this run is on cpu"):
        autocast_dtype("fp16", CPU, refuse_emulation=True)
    with pytest.raises(ValueError, match="this GPU does not compute in bfloat16"):
        autocast_dtype("bf16", CUDA, refuse_emulation=True)
    assert autocast_dtype("none", CUDA, refuse_emulation=True) is None
    with pytest.raises(KeyError):
        autocast_dtype("fp8", CPU)
    assert AMP_TYPES == ("auto", "none", "bf16", "fp16")
