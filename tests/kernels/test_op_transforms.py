"""The operator under forward-mode derivatives and the transforms of torch.func."""

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.testing import assert_close

from vheatir.backbone.layers.heat import HeatBlock
from vheatir.kernels.ops import heat_conduction, prepare_decay
from vheatir.kernels.reference import hco_reference

TOLERANCE = {torch.float64: (1e-10, 1e-10), torch.float32: (1e-4, 1e-5), torch.bfloat16: (2e-2, 2e-2)}
SHAPES = [(2, 4, 5, 3), (1, 17, 16, 8), (3, 1, 6, 1)]


def inputs(shape, dtype, device="cpu"):
    generator = torch.Generator().manual_seed(3)
    x, tangent = (torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype) for _ in range(2))
    decay, decay_tangent = (
        torch.rand(shape[1:], generator=generator, dtype=torch.float64).to(device, dtype) for _ in range(2)
    )
    return x, decay, tangent, decay_tangent


def exact(*tensors):
    return tuple(tensor.double() for tensor in tensors)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_tangents_of_jvp_and_of_dual_numbers(shape, dtype, device):
    x, decay, tangent, decay_tangent = inputs(shape, dtype, device)
    rtol, atol = TOLERANCE[dtype]
    want = jvp(hco_reference, exact(x, decay), exact(tangent, decay_tangent))[1]
    value, got = jvp(heat_conduction, (x, decay), (tangent, decay_tangent))
    assert_close(got.double(), want, rtol=rtol, atol=atol)
    assert_close(value.double(), hco_reference(*exact(x, decay)), rtol=rtol, atol=atol)
    assert got.dtype == value.dtype == dtype
    with forward_ad.dual_level():
        dual = heat_conduction(forward_ad.make_dual(x, tangent), forward_ad.make_dual(decay, decay_tangent))
        assert_close(forward_ad.unpack_dual(dual).tangent.double(), want, rtol=rtol, atol=atol)


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_tangents_through_a_prepared_decay(backend, device):
    for shape in SHAPES:
        x, decay, tangent, _ = inputs(shape, torch.float32, device)
        prepared = prepare_decay(decay, backend=backend)
        got = jvp(lambda maps, kept=prepared: heat_conduction(maps, kept), (x,), (tangent,))[1]
        assert_close(got.double(), hco_reference(*exact(tangent, decay)), rtol=1e-4, atol=1e-5)
        found = grad(lambda maps, kept=prepared: heat_conduction(maps, kept).square().sum())(x)
        wide = decay.double()
        want = grad(lambda maps, given=wide: hco_reference(maps, given).square().sum())(x.double())
        assert_close(found.double(), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("derivative", [grad, hessian, jacfwd, jacrev], ids=lambda one: one.__name__)
@pytest.mark.parametrize("argument", [0, 1])
def test_derivatives_of_functions(derivative, argument, device):
    x, decay, _, _ = inputs((1, 3, 4, 2), torch.float64, device)

    def energy(operator):
        return lambda *given: operator(*given).pow(3).sum()

    got, want = (derivative(energy(one), argnums=argument)(x, decay) for one in (heat_conduction, hco_reference))
    assert_close(got, want)


def test_vjp_and_derivatives_for_each_sample(device):
    x, decay, tangent, _ = inputs((4, 6, 5, 3), torch.float64, device)
    got, want = (vjp(one, x, decay)[1](tangent) for one in (heat_conduction, hco_reference))
    assert_close(got, want)

    def loss(one):
        return lambda given, sample: one(sample[None], given).square().sum()

    got, want = (vmap(grad(loss(one)), (None, 0))(decay, x) for one in (heat_conduction, hco_reference))
    assert_close(got, want)


def test_a_block_carries_tangents_and_gives_gradients_as_a_function(device):
    block = HeatBlock(6, mlp_ratio=2.0).to(device, torch.float64).eval()
    embedding = torch.randn(5, 7, 6, dtype=torch.float64, device=device)
    x, tangent = (torch.randn(2, 5, 7, 6, dtype=torch.float64, device=device) for _ in range(2))
    got = jvp(lambda maps: block(maps, embedding), (x,), (tangent,))[1]
    step = 1e-6
    want = (block(x + step * tangent, embedding) - block(x - step * tangent, embedding)) / (2 * step)
    assert_close(got, want, rtol=1e-6, atol=1e-7)
    parameters = dict(block.named_parameters())
    found = grad(lambda given: functional_call(block, given, (x, embedding)).square().sum())(parameters)
    block(x, embedding).square().sum().backward()
    assert_close(found, {name: parameter.grad for name, parameter in parameters.items()})


@pytest.mark.parametrize("backend", ["cpu_kernel", "cuda"])
def test_a_native_kernel_asked_for_by_name_is_refused(backend):
    x, decay, tangent, _ = inputs((1, 4, 5, 3), torch.float32)
    with pytest.raises(ValueError, match=f"backend '{backend}' runs neither under torch.func's .* take 'auto'"):
        jvp(lambda maps: heat_conduction(maps, decay, backend=backend), (x,), (tangent,))


def test_tables_made_under_a_transform_do_not_outlive_it(device):
    shape = (1, 29, 31, 2)  # sides that no other test has: their tables are made here
    x, decay, tangent, _ = inputs(shape, torch.float64, device)
    jvp(lambda maps: heat_conduction(maps, decay), (x,), (tangent,))
    grad(lambda maps: heat_conduction(maps, decay).sum())(x)
    assert_close(heat_conduction(x, decay, backend="torch"), hco_reference(x, decay))
    assert_close(torch.vmap(lambda maps: heat_conduction(maps, decay))(x[None])[0], hco_reference(x, decay))
