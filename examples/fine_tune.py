"""Fine-tune the shipped weights on your own noise, in plain PyTorch.

The noise here has stripes: the same offset along each row, beside Gaussian noise. Replace `add_noise` by yours and
`crops` by your images. For long training use `vheatir train`, which resumes, validates and logs. Needs `pip install
vheatir scikit-image`; takes about two minutes on one processor core. The shipped weights and weights fine-tuned from
them are for non-commercial research.
"""

import json
from pathlib import Path

import numpy as np
import skimage.data
import torch
from torch import Tensor

import vheatir
from vheatir import weights


def add_noise(clean: Tensor) -> Tensor:
    """Degrade images (B, 3, H, W) in [0, 1]."""
    rows = torch.randn(len(clean), 1, clean.shape[2], 1) * 0.08
    return clean + rows + torch.randn_like(clean) * 0.04


def crops(photo: Tensor, count: int, size: int) -> Tensor:
    """Random crops (count, 3, size, size) of a photograph (3, H, W)."""
    height, width = photo.shape[1:]
    tops = torch.randint(height - size + 1, (count,)).tolist()
    lefts = torch.randint(width - size + 1, (count,)).tolist()
    places = zip(tops, lefts, strict=True)
    return torch.stack([photo[:, top : top + size, left : left + size] for top, left in places])


def as_tensor(image: np.ndarray) -> Tensor:
    return torch.from_numpy(image.copy()).permute(2, 0, 1).float() / 255


def main(output: str | Path = "tuned.safetensors", size: int = 64, steps: int = 100) -> tuple[float, float]:
    """Mean squared error of a held-out photograph, restored with the shipped and with the tuned weights."""
    torch.manual_seed(0)
    photo, held_out = as_tensor(skimage.data.coffee()), as_tensor(skimage.data.chelsea()[:128, 100:228])

    network, metadata = weights.load("denoise_color_blind")
    network.train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-4)
    for _ in range(steps):
        clean = crops(photo, 4, size)
        loss = (network(add_noise(clean)) - clean).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    kept = {key: metadata[key] for key in ("arch", "task", "color", "license") if key in metadata}
    kept |= {"config": json.dumps(network.config), "levels": "stripes of 0.08, noise of 0.04"}
    weights.save(output, network.state_dict(), kept)

    noisy = add_noise(held_out[None])[0].permute(1, 2, 0).numpy()
    truth = held_out.permute(1, 2, 0).numpy()
    errors = []
    for name in ("denoise_color_blind", output):
        restored = vheatir.Restorer("denoise", weights=name).restore(noisy)
        errors.append(float(np.square(restored - truth).mean()))
    print(f"mean squared error: shipped {errors[0]:.6f}, tuned {errors[1]:.6f}")
    return errors[0], errors[1]


if __name__ == "__main__":
    main()
