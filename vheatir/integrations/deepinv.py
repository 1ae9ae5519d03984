"""Our denoisers inside deepinv's plug-and-play and diffusion-like solvers."""

from pathlib import Path
from typing import Any

import torch
from deepinv.models.base import Denoiser
from torch import Tensor

from vheatir import weights as store
from vheatir.backbone.layers.freezing import freeze
from vheatir.errors import UserError


class HeatDenoiser(Denoiser):
    """A denoiser D(x, sigma) from our weights.

    Blind weights find the noise in the image themselves, while a solver wants its sigma to be obeyed. `inject_noise`
    therefore adds noise of that level first, which the network then removes: the stochastic denoising of Renaud et al.
    (SNORE, ICML 2024). Without it, sigma is ignored by blind weights.

    Args:
        weights: shipped name or safetensors file of the task "denoise", or trained on pairs.
        device: where the network lives.
        inject_noise: see above; refused for weights that take a level, which obey sigma as it is.
        generator: source of the injected noise, on `device`.

    Raises:
        UserError: weights of another task, or `inject_noise` with weights that take a level.
    """

    def __init__(
        self,
        weights: str | Path = store.DEFAULTS["denoise"]["color"],
        device: str | torch.device = "cpu",
        *,
        inject_noise: bool = False,
        generator: torch.Generator | None = None,
    ):
        super().__init__(str(device))
        network, metadata = store.load(weights, device)
        self.network = freeze(network)
        if not store.serve(metadata, "denoise"):
            raise UserError(f"the weights {weights} are for the task {metadata['task']!r}; give those of a denoiser")
        config: Any = network.config
        self.takes_level = bool(config.get("level_map"))
        if inject_noise and self.takes_level:
            raise UserError("inject_noise is for blind weights; these take sigma as an input")
        self.inject_noise = inject_noise
        self.generator = generator
        self.in_chans = int(config["in_chans"])

    def forward(self, x: Tensor, sigma: float | Tensor, **kwargs: Any) -> Tensor:
        """Denoise x (B, C, H, W), about [0, 1]; sigma on the same scale, one or (B,).

        One channel with color weights goes through as R = G = B and comes back as the mean.

        Args:
            x: (B, C, H, W).
            sigma: noise level on the scale of x, one or (B,).
            **kwargs: taken for deepinv's sake, not used.

        Raises:
            ValueError: another number of channels than the weights are for.
        """
        if x.shape[1] not in (1, self.in_chans):
            raise ValueError(f"these weights are for {self.in_chans} channel(s), got images {tuple(x.shape)}")
        level = self._handle_sigma(sigma, batch_size=len(x), ndim=x.ndim, device=x.device, dtype=x.dtype)
        if self.inject_noise:
            x = x + level * torch.randn(x.shape, generator=self.generator, device=x.device, dtype=x.dtype)
        wide = x.expand(-1, self.in_chans, -1, -1).contiguous()
        result = (
            self.network(wide, level.expand(len(x), 1, 1, 1).reshape(-1)) if self.takes_level else self.network(wide)
        )
        return result if x.shape[1] == self.in_chans else result.mean(1, keepdim=True)
