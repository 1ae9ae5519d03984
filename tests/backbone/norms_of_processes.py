"""Started by torchrun: a network with batch norm trains in two processes on images of two kinds.

Prints, from the first process, the running means that each process has, and those that it would have alone.
"""

import copy
import json

import torch

from vheatir.backbone import create_model
from vheatir.backbone.training.processes import started


def running_mean(model: torch.nn.Module) -> torch.Tensor:
    return next(m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)).running_mean.clone()


def main() -> None:
    with started() as processes:
        compare(processes)


def compare(processes) -> None:
    device = processes.device("cpu")
    torch.manual_seed(0)
    model = create_model("unified_convnext_micro", dims=8, depths=(1, 1, 1, 1), img_size=32, num_classes=3)
    model = processes.with_shared_norms(model, device)
    alone, together = copy.deepcopy(model), processes.wrap(model)
    images = torch.randn(3, 4, 3, 32, 32) + 2 * processes.rank
    for batch in images:
        alone.train()(batch)
        together.train()(batch).sum().backward()
    got = torch.stack(processes.gather(torch.stack([running_mean(model), running_mean(alone)])))
    if processes.writes:
        print(json.dumps(got.tolist()))  # noqa: T201 (what the test reads)


if __name__ == "__main__":
    main()
