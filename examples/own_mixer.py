"""Write a token mixer of your own and train a backbone with it.

The mixer adds to each position the mean of its row and of its column. The backbone learns to tell horizontal from
vertical stripes. Needs `pip install "vheatir[backbone]"`; takes half a minute on one processor core.
"""

import torch
from torch import Tensor, nn

from vheatir.backbone import MetaArch
from vheatir.backbone.mixers import MIXERS
from vheatir.backbone.mixers.block import AttentionBlock


class RowsAndColumns(nn.Module):
    """Means of rows and columns of (B, H, W, C) feature maps, each scaled by a learned factor per channel."""

    def __init__(self, dim: int):
        super().__init__()
        self.rows, self.columns = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.rows * x.mean(2, keepdim=True) + self.columns * x.mean(1, keepdim=True)


class RowsAndColumnsBlock(AttentionBlock):
    """Brings norms, MLP, layer scale and stochastic depth around the mixer."""

    def __init__(self, dim: int, place, *, mlp_ratio: float = 2.0):
        super().__init__(dim, place, RowsAndColumns(dim), mlp_ratio=mlp_ratio)


MIXERS["rows_and_columns"] = RowsAndColumnsBlock


def stripes(count: int, size: int) -> tuple[Tensor, Tensor]:
    """Noisy images (count, 3, size, size) of stripes, and their labels: 0 horizontal, 1 vertical."""
    labels = torch.randint(2, (count,))
    phase = torch.rand(count, 1) * 6.3
    wave = torch.sin(torch.arange(size) * 0.8 + phase)  # (count, size)
    images = torch.where(labels.bool()[:, None, None], wave[:, None, :], wave[:, :, None]).expand(-1, size, size)
    return images[:, None] + 0.5 * torch.randn(count, 3, size, size), labels


def main(size: int = 32, steps: int = 40, dims: int = 16) -> float:
    """Share of held-out images that the trained network classifies correctly."""
    torch.manual_seed(0)
    model = MetaArch(mixer="rows_and_columns", dims=dims, depths=(1, 1, 1, 1), img_size=size, num_classes=2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(steps):
        images, labels = stripes(16, size)
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    images, labels = stripes(64, size)
    with torch.no_grad():
        accuracy = (model(images).argmax(1) == labels).float().mean().item()
    print(f"accuracy {accuracy:.2f}")
    return accuracy


if __name__ == "__main__":
    main()
