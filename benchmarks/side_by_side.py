"""Whole commands beside each other: wall time, processor time and peak memory of each, in turn, round after round.

Each command is a line of a shell with a name before it. The first one is what the others are compared with: `ratio` is
the median over the rounds of a command's time divided by the first one's. Load averages before and after stand in the
file: wall times of a busy machine are worth little, processor times more.

    python benchmarks/side_by_side.py --json results/cold_start.json \\
        torch='python -c "import torch"' restore='vheatir restore a.png -o out --overwrite -q'
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

# torch would be memory of this process, below which Linux counts no child's
from vheatir.cli import run
from vheatir.errors import UserError
from vheatir.utils.run_metadata import prepare_output, resident_mib, run_metadata, write_json


def measured(command: str, folder: str | None) -> dict[str, float]:
    """Seconds and peak memory of one run; SystemExit where the command fails."""
    begun = time.perf_counter()
    process = subprocess.Popen(command, shell=True, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None, "it was asked for"
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)  # with the children that the shell waited for
    wall = time.perf_counter() - begun
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command}: exit status {process.returncode}\n{said.decode(errors='replace')}")
    return {"wall_s": wall, "cpu_s": usage.ru_utime + usage.ru_stime, "peak_mib": resident_mib(usage)}


def summary(times: list[dict[str, float]], first: list[dict[str, float]]) -> dict[str, Any]:
    """Median and quartiles of each quantity, and the median of the rounds' ratios to the first command."""
    result: dict[str, Any] = {"rounds": len(times)}
    for name in times[0]:
        values = [one[name] for one in times]
        quartiles = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
        result[name] = round(statistics.median(values), 3)
        result[f"{name}_quartiles"] = [round(quartiles[0], 3), round(quartiles[2], 3)]
        ratio = statistics.median(one[name] / other[name] for one, other in zip(times, first, strict=True))
        result[f"{name}_ratio"] = round(ratio, 3)
    return result


def named(texts: list[str]) -> dict[str, str]:
    """Commands by name.

    Args:
        texts: NAME=COMMAND each.

    Raises:
        UserError: one without a name or a command, or two of one name, of which one would not be measured.
    """
    commands: dict[str, str] = {}
    for text in texts:
        name, _, command = text.partition("=")
        if not (name and command):
            raise UserError(f"{text!r}: expected NAME=COMMAND, such as restore='vheatir restore a.png -o out'")
        if name in commands:
            raise UserError(f"two commands are called {name}; give each its own name")
        commands[name] = command
    return commands


def main(argv: list[str]) -> int:
    """Entry."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("commands", nargs="+", metavar="NAME=COMMAND")
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="measured rounds (default: 7)")
    parser.add_argument("--folder", help="where the commands run (default: here)")
    parser.add_argument("--before", metavar="COMMAND", help="run before each, unmeasured, such as one that empties OUT")
    parser.add_argument("--json", type=Path, required=True, metavar="FILE")
    options = parser.parse_args(argv)
    commands = named(options.commands)
    if options.rounds < 1:
        raise UserError(f"--rounds: expected at least 1, got {options.rounds}")
    prepare_output(options.json)
    times: dict[str, list[dict[str, float]]] = {name: [] for name in commands}
    load = os.getloadavg()
    for number in range(-1, options.rounds):  # the first round fills the disk's cache
        for name in commands if number % 2 else reversed(commands):
            if options.before:
                subprocess.run(options.before, shell=True, cwd=options.folder, check=True)
            one = measured(commands[name], options.folder)
            if number >= 0:
                times[name].append(one)
    first = times[next(iter(commands))]
    results = [{"name": name, "command": commands[name], **summary(times[name], first)} for name in commands]
    metadata = run_metadata(["python", "benchmarks/side_by_side.py", *argv])
    metadata |= {"load_before": load, "load_after": os.getloadavg()}
    write_json(options.json, {"metadata": metadata, "results": results})
    for one in results:
        line = "{name:<12} wall {wall_s:>8} s ({wall_s_ratio}x), cpu {cpu_s:>8} s ({cpu_s_ratio}x), {peak_mib:.0f} MiB"
        sys.stdout.write(line.format(**one) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
