"""``python -m tests.simulation.run [raft] [replication] [cluster] --seeds 1000``: many seeded worlds, one line for each family.

Without a family all three run. Exit code 1 if a seed failed; its replay line is printed. ``FAMILY --replay SEED`` runs one
seed and prints its whole trace.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from typing import NamedTuple

from tests.simulation.families import FAMILIES, replay_hint, world_of

FAILURES_SHOWN_MAX = 10
TRACE_LINES = 1_000_000
CHUNK = 8
COUNTED = {
    "raft": {},
    "replication": {"answers": "answers"},
    "cluster": {"answers": "answers", "claims": "starts_seen", "by helpers": "helped"},
}
"""What the line of a family adds up: the words for it, and the attribute of its checkers."""


class Outcome(NamedTuple):
    """Of one seed. ``failure`` None: every promise held."""

    seed: int
    counts: Counter[str]
    virtual_us: int = 0
    failure: str | None = None


def outcome_of(family: str, seed: int) -> Outcome:
    try:
        world = world_of(family).simulate(seed)
    except Exception as broken:  # a broken promise may show as any error
        return Outcome(seed, Counter(), failure=f"{type(broken).__name__}: {str(broken)[:1500]}")
    counts = Counter({words: getattr(world.checkers, name) for words, name in COUNTED[family].items()})
    return Outcome(seed, counts + Counter({"events": world.time.events}), world.time.now_us)


def outcomes_of(family: str, seeds: range) -> list[Outcome]:
    return [outcome_of(family, seed) for seed in seeds]


def outcomes(family: str, seeds: range, jobs: int, deadline_s: float) -> Iterator[Outcome]:
    """Outcomes in any order; no further chunk begins after the deadline."""
    chunks = (seeds[start : start + CHUNK] for start in range(0, len(seeds), CHUNK))
    if jobs == 1:
        for seed in seeds:
            if time.monotonic() > deadline_s:
                return
            yield outcome_of(family, seed)
        return
    with ProcessPoolExecutor(jobs) as pool:
        running: set[Future[list[Outcome]]] = set()
        for chunk in chunks:
            running.add(pool.submit(outcomes_of, family, chunk))
            while len(running) >= 2 * jobs:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    yield from future.result()
            if time.monotonic() > deadline_s:
                break
        for future in wait(running).done:
            yield from future.result()


def replay(family: str, seed: int) -> int:
    """Run one seed, and print its trace. Returns the exit code."""
    try:
        world = world_of(family).simulate(seed, trace_lines=TRACE_LINES)
    except Exception as broken:
        sys.stdout.write(broken.__notes__.pop() + "\n")
        traceback.print_exception(broken)
        return 1
    sys.stdout.write("\n".join(world.trace.lines) + "\n")
    print(world.summary())
    return 0


def run(family: str, seeds: range, jobs: int, seconds_max: float) -> bool:
    """Run the seeds, print failures and a line of sums. Returns whether every promise held."""
    began_s = time.monotonic()
    count = failed = virtual_us = 0
    sums = Counter({"events": 0} | dict.fromkeys(COUNTED[family], 0))
    for outcome in outcomes(family, seeds, jobs, began_s + seconds_max):
        count += 1
        virtual_us += outcome.virtual_us
        sums.update(outcome.counts)
        if outcome.failure is not None:
            failed += 1
            if failed <= FAILURES_SHOWN_MAX:
                print(
                    f"seed {outcome.seed} FAILED: {outcome.failure}\n  {replay_hint(family, outcome.seed)}", flush=True
                )
    took_s = time.monotonic() - began_s
    print(
        f"{family}: {count} of {len(seeds)} seeds from {seeds.start}: {failed} failed; {virtual_us / 3.6e9:.2f} virtual hours, "
        f"{', '.join(f'{number} {words}' for words, number in sums.items())}, "
        f"{took_s:.0f} s, {took_s * jobs / max(1, count):.2f} s of a core each",
        flush=True,
    )
    return not failed


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.run", description=__doc__)
    parser.add_argument("families", nargs="*", metavar="FAMILY", help=", ".join(FAMILIES))
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--jobs", type=int, default=1, help="processes at once")
    parser.add_argument("--seconds-max", type=float, default=float("inf"), help="for each family")
    parser.add_argument("--replay", type=int, metavar="SEED")
    options = parser.parse_args(arguments)
    families = options.families or FAMILIES
    if unknown := set(families) - set(FAMILIES):
        parser.error(f"no such family: {', '.join(sorted(unknown))}")
    if options.replay is not None:
        if len(families) != 1:
            parser.error("--replay takes one family")
        return replay(families[0], options.replay)
    seeds = range(options.first, options.first + options.seeds)
    kept = [run(family, seeds, options.jobs, options.seconds_max) for family in families]
    return 0 if all(kept) else 1


if __name__ == "__main__":
    sys.exit(main())
