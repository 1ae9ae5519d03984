"""What the restoration networks of this package have in common."""

from typing import Any

from torch import nn


class RestorationNetwork(nn.Module):
    """A network from degraded images to restored ones of the same shape.

    Attributes:
        config: its constructor arguments by name.
        level_map: whether it takes the noise level or JPEG quality as a second input.
    """

    config: dict[str, Any]
    level_map: bool
