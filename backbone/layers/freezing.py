"""What layers derive from their weights for inference, and the frozen state in which they may keep it.

Weights change in ways that raise no version of a tensor: steps of fused optimizers, writes through `.data`, broadcasts,
NumPy views. Derived forms are kept only where somebody has said that nothing changes, after `freeze` or within
`frozen`, or beside a copy of the weights that each pass compares. Everything else is computed from the weights of now.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from vheatir.kernels.plain import are_plain, has_hooks

_Network = TypeVar("_Network", bound=nn.Module)


def _state(tensor: Tensor) -> tuple:
    # Held, not only compared: the identity of a tensor that is gone may belong to another one now.
    return tensor, tensor._version, tensor.data_ptr()


def _same_tensors(states: Sequence[tuple], sources: Sequence[Tensor]) -> bool:
    return all(
        old[0] is now and old[1:] == (now._version, now.data_ptr()) for old, now in zip(states, sources, strict=True)
    )


def _same_values(copies: Sequence[Tensor], sources: Sequence[Tensor]) -> bool:
    return all(old.dtype == now.dtype and torch.equal(old, now) for old, now in zip(copies, sources, strict=True))


class KeptForms(nn.Module):
    """Base of layers that keep forms of their weights while they are frozen, such as weights in oneDNN's order."""

    _most_kept = 1

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._frozen = False
        self._kept: OrderedDict[Hashable, tuple[list, Any]] = OrderedDict()

    def may_keep(self, *sources: Tensor, compared: bool = False) -> bool:
        """Whether a form of these weights may be kept; a pass with gradients to them leaves the frozen state.

        Training may follow such a pass, without `train()` and by an optimizer that raises no versions.

        Args:
            sources: what the form is made of.
            compared: outside the frozen state, on the CPU in eval mode, too. Each pass then compares the sources with
                copies: for forms that take far longer to make. On a GPU it would wait for the result.
        """
        if torch.is_grad_enabled():
            # An export may not change attributes. torch 2.9 calls a compiled pass an export, too.
            exported = torch.compiler.is_exporting() and not torch.compiler.is_dynamo_compiling()
            if self._frozen and any(one.requires_grad for one in sources) and not exported:
                self.set_frozen(False)
            return False
        if not (self._frozen or compared) or self.training or not are_plain(*sources):
            return False
        # Tensors of inference mode have no version.
        return not any(one.is_inference() for one in sources) if self._frozen else all(one.is_cpu for one in sources)

    def keep(self, key: Hashable, sources: Sequence[Tensor], make: Callable[[], Any]) -> Any:
        """What `make` gives, from an earlier call where key and sources are the same; for sources that `may_keep`.

        Args:
            key: what else the form depends on.
            sources: the tensors that it is made of. In the frozen state other tensors, other data and changes that
                PyTorch sees are noticed; outside it every change.
            make: called where nothing such is kept.
        """
        frozen = self._frozen  # another thread may change it
        key, same = (frozen, key), _same_tensors if frozen else _same_values
        found = self._kept.pop(key, None)  # and back to the end; a look-up of its own would race other threads
        if found is not None and same(found[0], sources):
            self._kept[key] = found
            return found[1]
        state = [_state(one) if frozen else one.detach().clone() for one in sources]
        made = make()
        if self._fits(made):
            self._kept[key] = state, made
            while len(self._kept) > self._most_kept:
                self._kept.popitem(last=False)
        return made

    def _fits(self, form: Any) -> bool:
        """Whether a form is small enough to be kept."""
        return True

    def set_frozen(self, state: bool) -> None:
        """Enter or leave the frozen state of this layer; both start with nothing kept."""
        self._frozen = state
        self.drop_kept()

    def drop_kept(self) -> None:
        """Forget what is kept; needed after writes to weights of a frozen network that PyTorch does not see."""
        self._kept.clear()

    def train(self, mode: bool = True) -> "KeptForms":
        self.set_frozen(self._frozen and not mode)
        return super().train(mode)

    def _apply(self, fn, recurse: bool = True) -> "KeptForms":
        self.drop_kept()
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args, **kwargs) -> None:
        self.drop_kept()
        super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_frozen": False, "_kept": OrderedDict()}


def depends_on_parameters_alone(layer: nn.Module) -> bool:
    """Whether a layer computes from its input and its parameters, so that a form of its result may be kept.

    So do plain linear layers and ReLUs. Adapters, and hooks such as those of pruning, have states of their own.
    """
    return all(type(part) in (nn.Sequential, nn.Linear, nn.ReLU) and not has_hooks(part) for part in layer.modules())


class KeptInfo(NamedTuple):
    """What a network keeps.

    Attributes:
        layers: those that can keep forms of their weights.
        frozen: those of them in the frozen state.
        forms: kept at present.
    """

    layers: int
    frozen: int
    forms: int


def _layers(network: nn.Module) -> list[KeptForms]:
    return [module for module in network.modules() if isinstance(module, KeptForms)]


def kept_info(network: nn.Module) -> KeptInfo:
    """How many layers of a network are frozen, and how many forms of weights they keep."""
    layers = _layers(network)
    return KeptInfo(len(layers), sum(layer._frozen for layer in layers), sum(len(layer._kept) for layer in layers))


def freeze(network: _Network) -> _Network:
    """Bring a network to eval mode and let its layers keep what they derive from their weights; returns it.

    Passes without gradients become faster: decays are prepared once for each size of the maps, and weights brought once
    into the order of the product, which takes about as much memory again. The values stay the same up to rounding.

    The caller promises that the weights do not change while the network is frozen. The state is left by `unfreeze`, by
    `train()`, and by a pass with gradients to weights. What is kept is made anew after `eval()`, `load_state_dict()`,
    moves to another device or type, folding, and changes in place that PyTorch counts. After other writes, such as
    `parameter.data.mul_()` or a fused optimizer's step with gradients of earlier, call `eval()`. Copies and pickles
    are not frozen. Networks of other libraries are brought to eval mode, no more.
    """
    network.eval()
    for layer in _layers(network):
        layer.set_frozen(True)
    return network


def unfreeze(network: _Network) -> _Network:
    """Leave the state of `freeze` and give its memory back; the network stays in eval mode. Returns it."""
    for layer in _layers(network):
        layer.set_frozen(False)
    return network


@contextmanager
def frozen(network: _Network) -> Iterator[_Network]:
    """`freeze` for the length of a block, for an evaluation within a training; then every module is as before."""
    modes = [(module, module.training) for module in network.modules()]
    before = [layer for layer in _layers(network) if layer._frozen]
    try:
        yield freeze(network)
    finally:
        unfreeze(network)
        for module, mode in modes:
            module.training = mode
        for layer in before:
            layer.set_frozen(True)
