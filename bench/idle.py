"""``python -m bench.idle``: what three nodes of one cluster with nothing to do take of a core, each."""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import dataclass

from bench.cluster import Cluster
from bench.processes import Failed, scratch

SECONDS = 30.0
CALM_S = 5.0
"""Wait after the cluster is whole, for logs to be trimmed and rows to be written."""
_TICKS_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Idle:
    """What one idle node takes, in its own process alone."""

    name: str
    percent: float
    switches_s: float
    """Times a second that it went to sleep and woke up."""


def main(arguments: list[str] | None = None) -> int:
    """Measure idle nodes. The exit code: 0, or 1 where a node took more than ``--at-most``."""
    parser = argparse.ArgumentParser(prog="python -m bench.idle", description=__doc__)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="how long to look [default: 30]")
    parser.add_argument("--at-most", type=float, metavar="PERCENT", help="fail where a node takes more of a core")
    said = parser.parse_args(arguments)
    try:
        with scratch() as directory, Cluster(directory, 3) as cluster:
            found = measure(cluster, said.seconds)
    except (Failed, OSError) as why:
        print(f"bench.idle: {why}", file=sys.stderr)
        return 1
    for one in found:
        print(f"{one.name}  {one.percent:5.2f} % of a core  {one.switches_s:5.0f} wake-ups a second")
    return int(said.at_most is not None and max(one.percent for one in found) > said.at_most)


def measure(cluster: Cluster, seconds: float) -> list[Idle]:
    time.sleep(CALM_S)  # what a start leaves to do is none of this
    before = [(node.name, *_spent(node.pid)) for node in cluster.nodes]
    begun = time.monotonic()
    time.sleep(seconds)  # the measurement itself
    took = time.monotonic() - begun
    return [
        Idle(name, 100 * (cpu_s - cpu_before_s) / took, (switches - switches_before) / took)
        for (name, cpu_before_s, switches_before), (cpu_s, switches) in zip(
            before, (_spent(node.pid) for node in cluster.nodes), strict=True
        )
    ]


def _spent(pid: int) -> tuple[float, int]:
    """CPU seconds, and voluntary context switches, of all threads so far."""
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        fields = file.read().rpartition(")")[2].split()
    cpu_s = (int(fields[11]) + int(fields[12])) / _TICKS_S
    switches = 0
    for thread in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{thread}/status", encoding="ascii") as file:
            switches += sum(int(line.split()[1]) for line in file if line.startswith("voluntary"))
    return cpu_s, switches


if __name__ == "__main__":
    sys.exit(main())
