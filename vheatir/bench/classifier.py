"""Cases of `vheatir bench model`: the classifier vHeat."""

from collections.abc import Iterator, Sequence

import timm
import torch

from vheatir.backbone.models.vheat import SIZES, VHeat
from vheatir.bench.case import BASELINE, Case
from vheatir.bench.defaults import SIDES
from vheatir.bench.networks import OURS, network_case
from vheatir.bench.published import PublishedVHeat


def model(
    *,
    size: str = "tiny",
    side: Sequence[int] = SIDES,
    batch: int = 1,
    against: str = "published",
    dtype: Sequence[str] = ("float32",),
    device: str = "cpu",
    backward: bool = False,
) -> Iterator[Case]:
    """The classifier vHeat on square images: inference, or a training step without its optimizer.

    Args:
        size: "tiny", "small" or "base".
        side: pixels of each case, multiples of 32.
        batch: images at once.
        against: "published", "swin" (timm's) or "none".
        dtype: names of torch's types; others than float32 by autocast.
        device: cpu, cuda, cuda:1, ...
        backward: with the training step too.
    """
    settings = {**SIZES[size], "drop_path_rate": 0.0}
    for kind in dtype:
        for pixels in side:
            torch.manual_seed(0)
            ours = VHeat(img_size=pixels, **settings)
            networks = {}
            if against == "published":
                arguments = {key: settings[key] for key in ("post_norm", "layer_scale")}
                networks[BASELINE] = PublishedVHeat(pixels, settings["dims"], settings["depths"], **arguments)
                networks[BASELINE].load_state_dict(ours.state_dict())
            elif against == "swin":
                # Without stochastic depth, as ours: a step that leaves blocks out has no values to be checked by.
                networks["swin"] = timm.create_model(
                    f"swin_{size}_patch4_window7_224", img_size=pixels, drop_path_rate=0.0
                )
            networks[OURS] = ours
            image = torch.randn(batch, 3, pixels, pixels)
            for training in (False, True) if backward else (False,):
                what = "train step" if training else "fwd"
                name = f"vheat_{size} {what} {batch}x3x{pixels}x{pixels}"
                alike = (BASELINE, OURS)
                yield network_case(name, networks, image, dtype=kind, device=device, training=training, alike=alike)
