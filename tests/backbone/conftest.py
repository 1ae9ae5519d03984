"""What the tests of the backbones share: a golden case with its inputs, filled modules and checks."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-5}  # times max(1, largest expected value)
SUFFIX = {torch.float64: "f64", torch.float32: "f32"}


class Case:
    """One golden case in one precision."""

    def __init__(self, golden, name: str, dtype: torch.dtype):
        self.golden, self.name, self.dtype = golden, name, dtype
        self.described = golden.manifest["cases"][name]
        self.constructor = self.described["constructor"]
        self.arrays = golden.arrays(name)
        self.inputs = {key: value.to(dtype) for key, value in golden.inputs(name).items()}
        self.open = set(self.described["outputs"])

    def fill(self, module: nn.Module, prefix: str = "") -> nn.Module:
        """Give the module the case's weights; its keys and shapes must be the case's."""
        module = module.to(self.dtype).eval()
        skipped = self.golden.manifest["skipped_in_fill"]
        state = {k: list(v.shape) for k, v in module.state_dict().items() if k.split(".")[-1] not in skipped}
        if self.described.get("filled_tensors") and not prefix:
            assert state == {key: list(shape) for key, shape in self.described["filled_tensors"]}
        self.golden.fill(module)
        return module

    def check(self, output: str, got: Tensor) -> None:
        """`got` is the stored output within the tolerance of the precision."""
        self.open.discard(output)
        names = (f"{output}__{SUFFIX[self.dtype]}", f"{output}__f64", output)
        key = next(name for name in names if name in self.arrays)
        want = torch.from_numpy(np.array(self.arrays[key]))
        want = want.to(self.dtype) if want.is_floating_point() else want
        assert tuple(got.shape) == tuple(want.shape), f"{output}: {tuple(got.shape)}, expected {tuple(want.shape)}"
        assert got.dtype == want.dtype, f"{output}: {got.dtype}, expected {want.dtype}"
        if not want.is_floating_point():
            assert torch.equal(got, want), output
            return
        error = (got.detach() - want).abs().max().item()
        allowed = TOLERANCE[self.dtype] * max(1.0, want.abs().max().item())
        assert error <= allowed, f"{output}: largest error {error:.3g}, allowed {allowed:.3g}"

    def check_parameter_gradients(self, logits: Tensor, module: nn.Module) -> None:
        """`param_grad_norms`: norms of the gradients of sum(logits**2), in sorted order of the names."""
        named = dict(sorted(module.named_parameters()))
        grads = torch.autograd.grad(logits.square().sum(), list(named.values()))
        self.check("param_grad_norms", torch.stack([grad.norm() for grad in grads]))

    def finish(self) -> None:
        """Every stored output has been compared."""
        assert not self.open, f"not compared: {sorted(self.open)}"


@pytest.fixture
def golden_case(golden) -> Callable[[str, torch.dtype], Case]:
    """`golden_case(name, dtype)`: a golden case with its constructor arguments, inputs and stored outputs."""
    return lambda name, dtype: Case(golden, name, dtype)


# Networks small enough to run in milliseconds; the mixers keep what makes each of them special.
SMALL = {"dims": (16, 32, 64, 128), "depths": (2, 2, 1, 1), "img_size": 64, "num_classes": 7}
HEADS = {"num_heads": (1, 2, 4, 8)}
SMALL_MODELS = {
    "vheat_tiny": {},
    "vheat_small": {},
    "unified_halo_micro": {"mixer_args": {**HEADS, "block_size": 4, "halo_size": 1}},
    "unified_pvt_micro": {"mixer_args": HEADS},
    "unified_swin_micro": {"mixer_args": {**HEADS, "window_size": 4}},
    "unified_convnext_micro": {},
    "unified_dcn_v3_micro": {"mixer_args": HEADS},
    "unified_heat_micro": {},
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests that ask for `model_name` run for each family and mixer."""
    if "model_name" in metafunc.fixturenames:
        metafunc.parametrize("model_name", SMALL_MODELS)


@pytest.fixture
def make_model() -> Callable[..., nn.Module]:
    """`make_model(name, **arguments)`: a registered model at a reduced size, with branches that count."""
    from vheatir.backbone.models.create import create_model

    def make(name: str, **arguments) -> nn.Module:
        scale = {} if name == "vheat_tiny" else {"layer_scale": 0.5}
        return create_model(name, **{**SMALL, **SMALL_MODELS[name], **scale, **arguments})

    return make
