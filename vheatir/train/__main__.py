"""`python -m vheatir.train`, as torchrun and srun start it."""

from vheatir.cli import run
from vheatir.train.command import main

raise SystemExit(run(main))
