"""The device that a command computes on."""

from typing import TYPE_CHECKING

from vheatir.errors import UserError

if TYPE_CHECKING:
    import torch


def device_named(name: "str | torch.device | None") -> "torch.device":
    """The device of that name; None takes CUDA where there is one.

    Raises:
        UserError: there is no such device, or it cannot be used.
    """
    import torch

    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"the device {str(name)!r} cannot be used: {str(error).splitlines()[0]}") from error
    return device
