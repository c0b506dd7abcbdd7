"""``python -m bench.failover``: hurt clusters of three nodes, print for how long writes stop, write the page."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn

from bench.failover import page
from bench.failover.failures import FAILURES, Failure
from bench.failover.rounds import Table, rounds, table_of
from bench.failover.stalls import Silence, measured
from bench.processes import Stopped, scratch
from tests.cluster.clusters import Cluster
from tests.cluster.replicated import started
from tests.support.harness import Nodes

ROUNDS = 20
MINUTES = 60.0
"""After so many no round is begun any more."""
STALLS = "stalls"
STALLS_S = 60.0
BURNERS = (0, 2)
"""Processes that take a core each, beside three nodes at full load."""
NAMES = (*(failure.name for failure in FAILURES), STALLS)
BEGUN = time.monotonic()


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 0, 1 when a failure could not be measured, 130 after Ctrl-C. What was measured by then is printed."""
    said = _parser().parse_args(arguments)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    found: dict[str, Table] = {}
    silent: list[Silence] = []
    code = 0
    try:
        with scratch() as directory:
            for failure in FAILURES:
                if said.only and failure.name not in said.only:
                    continue
                try:
                    with _cluster(directory / failure.name, links=failure.links) as cluster:
                        found[failure.name] = _measured(cluster, failure, said.rounds, said.minutes)
                except (AssertionError, OSError) as why:
                    _progress(f"{failure.name} FAILED: {why}")
                    code = 1
            for burners in BURNERS if not said.only or STALLS in said.only else ():
                _progress(f"{STALLS}: {STALLS_S:g} s at full load beside {burners} processes that burn CPU")
                silent.append(measured(directory / f"stalls-{burners}", STALLS_S, burners))
    except Stopped:
        _progress("stopped")
        code = 130
    about = page.facts(said.rounds)
    print(f"taskqueue failover, {page.heading(about)}")
    print(page.lines(found))
    print(page.silences(silent))
    if said.write is not None:
        is_whole = len(found) == len(FAILURES) and len(silent) == len(BURNERS)
        if code or not is_whole or any(table.rounds < said.rounds for table in found.values()):
            print(f"{said.write} is left as it is: not everything was measured", file=sys.stderr)
            return code or 1
        said.write.write_text(page.whole(about, found, silent), "utf-8")
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.failover", description=__doc__)
    parser.add_argument(
        "--rounds", type=_rounds, default=ROUNDS, metavar="N", help=f"of each failure [default: {ROUNDS}]"
    )
    parser.add_argument("--only", type=_names, metavar="NAME,…", help=f"only these: {', '.join(NAMES)}")
    parser.add_argument(
        "--minutes", type=float, default=MINUTES, metavar="N",
        help=f"begin no round after so many minutes [default: {MINUTES:g}]",
    )  # fmt: skip
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the page there, if everything was measured")
    return parser


def _names(text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in NAMES:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(NAMES)}")
    return names


def _rounds(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1_000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 1000")
    return int(text)


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    for again in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(again, signal.SIG_IGN)  # stopping has begun, and has a deadline of its own
    raise Stopped


@contextlib.contextmanager
def _cluster(directory: Path, *, links: bool) -> Iterator[Cluster]:
    """Three nodes, whole; nothing of them is left at the end."""
    directory.mkdir()
    nodes = Nodes(directory)
    made: list[Cluster] = []

    def make(**options: object) -> Cluster:
        made.append(Cluster(nodes, links=links, **options))  # type: ignore[arg-type]
        return made[-1]

    try:
        yield started(make)
    finally:
        nodes.close()
        for cluster in made:
            cluster.close()


def _measured(cluster: Cluster, failure: Failure, count: int, minutes: float) -> Table:
    def may_go_on(number: int) -> bool:
        if number % 5 == 0:
            _progress(f"{failure.name}, round {number + 1} of {count}")
        return number == 0 or time.monotonic() - BEGUN < minutes * 60

    table = table_of(rounds(cluster, failure, count, may_go_on=may_go_on))
    _progress(f"{failure.name}: p50 {table.p50:.3f} s, p99 {table.p99:.3f} s, max {table.longest:.3f} s")
    return table


def _progress(line: str) -> None:
    print(f"{time.monotonic() - BEGUN:5.0f} s  {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
