"""Every backbone under forward-mode derivatives and torch.func, and as itself afterwards."""

import pytest
import torch
from torch.func import functional_call, grad, jvp
from torch.testing import assert_close


def test_tangents_and_gradients_as_a_function(make_model, model_name):
    torch.manual_seed(0)
    model = make_model(model_name, drop_path_rate=0.0, img_size=32).double().eval()
    x, tangent = (torch.randn(1, 3, 40, 36, dtype=torch.float64) for _ in range(2))
    with torch.no_grad():
        if "dcn" in model_name:  # PyTorch's sampling between pixels has no tangents and says so
            with pytest.raises(NotImplementedError, match="forward AD with grid_sampler_2d"):
                jvp(model, (x,), (tangent,))
        else:
            _, got = jvp(model, (x,), (tangent,))
            step = 1e-6
            want = (model(x + step * tangent) - model(x - step * tangent)) / (2 * step)
            assert_close(got, want, rtol=1e-5, atol=1e-6)
    parameters = dict(model.named_parameters())
    found = grad(lambda given: functional_call(model, given, (x,)).square().sum())(parameters)
    model(x).square().sum().backward()
    assert_close(found, {name: parameter.grad for name, parameter in parameters.items()})
