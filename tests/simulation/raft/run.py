"""``python -m tests.simulation.raft.run --seeds 10000 --jobs 2 --seconds-max 3600``: many seeds, one line at the end.

Exit code 1 if a seed failed; its replay line is printed. ``--replay SEED`` runs one with its whole trace. ``--world whole`` takes
worlds of whole nodes in place of those of the consensus core.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from typing import NamedTuple

from tests.simulation.cluster import run
from tests.simulation.cluster import world as whole_world
from tests.simulation.raft.world import replay_hint, simulate

FAILURES_SHOWN_MAX = 10
TRACE_LINES = 1_000_000
CHUNK = 8


class Outcome(NamedTuple):
    seed: int
    virtual_us: int
    events: int
    failure: str | None


def outcome_of(seed: int, is_whole: bool = False) -> Outcome:
    try:
        world = whole_world.simulate(seed) if is_whole else simulate(seed)
    except Exception as broken:
        if not (is_whole or isinstance(broken, AssertionError)):
            raise
        return Outcome(seed, 0, 0, f"{type(broken).__name__}: {broken}")
    return Outcome(seed, world.time.now_us, world.time.events, None)


def outcomes_of(seeds: range, is_whole: bool = False) -> list[Outcome]:
    return [outcome_of(seed, is_whole) for seed in seeds]


def outcomes(seeds: range, jobs: int, deadline_s: float, is_whole: bool = False) -> Iterator[Outcome]:
    """In any order; stops asking for more when the deadline has passed."""
    chunks = (seeds[start : start + CHUNK] for start in range(0, len(seeds), CHUNK))
    if jobs == 1:
        for chunk in chunks:
            if time.monotonic() > deadline_s:
                return
            yield from outcomes_of(chunk, is_whole)
        return
    with ProcessPoolExecutor(jobs) as pool:
        running: set[Future[list[Outcome]]] = set()
        for chunk in chunks:
            running.add(pool.submit(outcomes_of, chunk, is_whole))
            while len(running) >= 2 * jobs:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    yield from future.result()
            if time.monotonic() > deadline_s:
                break
        for future in wait(running).done:
            yield from future.result()


def replay(seed: int) -> int:
    try:
        world = simulate(seed, trace_lines=TRACE_LINES)
    except AssertionError as broken:
        trace = broken.__notes__[-1]
        sys.stdout.write(trace + "\n")
        broken.__notes__.pop()
        traceback.print_exception(broken)
        return 1
    print(world.summary())
    return 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.raft.run", description=__doc__)
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seconds-max", type=float, default=float("inf"))
    parser.add_argument("--replay", type=int, metavar="SEED")
    parser.add_argument("--world", choices=("raft", "whole"), default="raft")
    options = parser.parse_args(arguments)
    is_whole = options.world == "whole"
    hint = whole_world.replay_hint if is_whole else replay_hint
    if options.replay is not None:
        return run.replay(options.replay) if is_whole else replay(options.replay)
    began_s = time.monotonic()
    seeds = range(options.first, options.first + options.seeds)
    count = virtual_us = events = 0
    failures: list[Outcome] = []
    for outcome in outcomes(seeds, options.jobs, began_s + options.seconds_max, is_whole):
        count += 1
        virtual_us += outcome.virtual_us
        events += outcome.events
        if outcome.failure is not None:
            failures.append(outcome)
            if len(failures) <= FAILURES_SHOWN_MAX:
                print(f"seed {outcome.seed} FAILED: {outcome.failure[:500]}\n  {hint(outcome.seed)}", flush=True)
    took_s = time.monotonic() - began_s
    print(
        f"{count} of {len(seeds)} seeds from {options.first}: {len(failures)} failed; {virtual_us / 3.6e9:.1f} virtual hours, "
        f"{events} events, {took_s:.0f} s, {took_s * options.jobs / max(1, count):.2f} s of a core each"
    )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
