"""What `vheatir restore` loads on its way to the first image: PyTorch, and nothing that takes as long again."""

import os
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[3]

# Each takes a tenth of the time of `import torch` or more; compilers, statistics, data sets and training.
HEAVY = """
    torch._dynamo torch._inductor torch.fx.experimental.symbolic_shapes torch.utils.flop_counter functorch sympy triton
    torchvision basicsr scipy skimage kornia timm matplotlib onnx ray torch.utils.tensorboard
"""
RUN = """
import sys
from vheatir.cli import main
status = main(["restore", sys.argv[1], "-o", sys.argv[2], "-q"])
print(status, *sys.modules)
"""
# What torch 2.9, einops 0.7 and PyWavelets 1.6 load by themselves, on import or for a first array: with them, and only
# with them, it is left out.
OLDEST = torch.__version__.startswith("2.9.")
THEIRS = """
import sys, einops, pywt, torch
torch.empty(2, 2, device="meta").normal_()
einops.rearrange(torch.ones(2, 3), "a b -> b a")
print(*sys.modules)
"""


def run(code, *arguments):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_restoring_an_image_loads_no_compiler_and_no_library_of_training(tmp_path, tiny):
    tiny.image(tmp_path / "in.png", (40, 40, 3))
    status, *modules = run(RUN, tmp_path / "in.png", tmp_path / "out")
    assert status == "0" and (tmp_path / "out" / "in.png").is_file()
    assert {"torch", "cv2", "pywt", "vheatir.kernels.ops"} <= set(modules)
    theirs = set(run(THEIRS)) if OLDEST else set()
    assert set(HEAVY.split()) & (set(modules) - theirs) == set()


def test_the_counter_of_operations_knows_the_operators_when_it_is_loaded_later():
    code = """
import sys, torch
from vheatir.kernels.ops import heat_conduction
waiting = len([one for one in sys.meta_path if type(one).__name__ == "_Listener"])
from torch.utils.flop_counter import FlopCounterMode
with FlopCounterMode(display=False) as counter:
    heat_conduction(torch.rand(1, 4, 6, 2), torch.rand(4, 6, 2))
left = len([one for one in sys.meta_path if type(one).__name__ == "_Listener"])
print(waiting, left, counter.get_total_flops())
"""
    assert run(code) == ["1", "0", str(2 * 2 * 2 * 4 * 6 * (4 + 6) + 4 * 6 * 2)]
