"""Started by torchrun: a network with batch norm trains in two processes on images of two kinds.

Prints, from the first process, the running means that each process has, and those that it would have alone.
"""

import copy
import json

import torch

from vheatir.backbone import create_model
from vheatir.tasks.session import make_accelerator, with_shared_norms


def running_mean(model: torch.nn.Module) -> torch.Tensor:
    return next(m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)).running_mean.clone()


def main() -> None:
    accelerator = make_accelerator("cpu")
    torch.manual_seed(0)
    model = create_model("unified_convnext_micro", dims=8, depths=(1, 1, 1, 1), img_size=32, num_classes=3)
    model = with_shared_norms(model, accelerator.device, accelerator.num_processes)
    alone, together = copy.deepcopy(model), accelerator.prepare_model(model)
    images = torch.randn(3, 4, 3, 32, 32) + 2 * accelerator.process_index
    for batch in images:
        alone.train()(batch)
        together.train()(batch).sum().backward()
    got = accelerator.gather(torch.stack([running_mean(model), running_mean(alone)])[None])
    if accelerator.is_main_process:
        print(json.dumps(got.tolist()))  # noqa: T201 (what the test reads)
    accelerator.end_training()


if __name__ == "__main__":
    main()
