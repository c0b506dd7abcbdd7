"""``python -m tests.simulation.replication.run --seeds 1000 --first 0``: many seeds of the data plane, one line at the end.

Exit code 1 if a seed failed; its replay line is printed. ``--replay SEED`` runs one with its whole trace.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback

from tests.simulation.replication.world import replay_hint, simulate

FAILURES_SHOWN_MAX = 10
TRACE_LINES = 1_000_000


def replay(seed: int) -> int:
    try:
        world = simulate(seed, trace_lines=TRACE_LINES)
    except Exception as broken:
        notes = broken.__notes__
        sys.stdout.write(notes.pop() + "\n")
        traceback.print_exception(broken)
        return 1
    print(world.summary())
    return 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.replication.run", description=__doc__)
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seconds-max", type=float, default=float("inf"))
    parser.add_argument("--replay", type=int, metavar="SEED")
    options = parser.parse_args(arguments)
    if options.replay is not None:
        return replay(options.replay)
    began_s = time.monotonic()
    count = failed = events = answers = 0
    virtual_us = 0
    for seed in range(options.first, options.first + options.seeds):
        if time.monotonic() - began_s > options.seconds_max:
            break
        count += 1
        try:
            world = simulate(seed)
        except Exception as broken:  # a broken promise may show as any error
            failed += 1
            if failed <= FAILURES_SHOWN_MAX:
                print(
                    f"seed {seed} FAILED: {type(broken).__name__}: {str(broken)[:500]}\n  {replay_hint(seed)}",
                    flush=True,
                )
            continue
        virtual_us += world.time.now_us
        events += world.time.events
        answers += world.checkers.answers
    took_s = time.monotonic() - began_s
    print(
        f"{count} of {options.seeds} seeds from {options.first}: {failed} failed; {virtual_us / 3.6e9:.1f} virtual hours, "
        f"{events} events, {answers} answers, "
        f"{took_s:.0f} s, {took_s / max(1, count):.2f} s each"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
