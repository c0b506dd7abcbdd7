"""``tq-worker-conformance ADDRESS…``: holds a server of the worker API against the kit's cases."""

from __future__ import annotations

import argparse
import os
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from tq_node.conformance import claiming, ending, leases, refusals
from tq_node.conformance.cases import CASES, Case, Differs
from tq_node.conformance.probe import Probe, Server, Unanswered
from tq_node.distributions import refuse_both

MODULES = claiming, leases, ending, refusals
"""Imported for the cases that they add."""
JOBS = 8
EPILOGUE = """\
Each case works on a task type and a queue of its own, named conformance-…, and cancels what it leaves: it may run at a cluster
that is in use, for which its tasks are like any others. Several addresses of one cluster: what was claimed at one is extended
and ended at the next. Where the server asks for tokens: one with the roles work and operate, by --token-file or TQ_TOKEN.
Exit code: 0 all passed, 1 some did not, 2 used wrongly.
"""


class Ran(NamedTuple):
    """``why`` empty: it passed."""

    case: Case
    why: str
    took_s: float


def main(arguments: Sequence[str] | None = None, environment: Mapping[str, str] = os.environ) -> int:
    """Run the cases that the command line names, one line each; the exit code."""
    parser = _parser()
    given = parser.parse_args(arguments)
    try:
        token = Path(given.token_file).read_text("utf-8").strip() if given.token_file else environment.get("TQ_TOKEN")
        server = Server(given.addresses, token or None, given.ca or environment.get("TQ_CA"))
    except (ValueError, OSError) as why:
        parser.error(str(why))
    chosen = [one for one in CASES if not given.only or any(part in one.name for part in given.only)]
    if given.list:
        for one in chosen:
            sys.stdout.write(f"{one.name}: {one.about}\n")
        return 0
    if not chosen:
        parser.error(f"no case has {' or '.join(given.only)} in its name; --list shows them")
    skipped = [one for one in chosen if one.asks_token and not server.token]
    ran = run([one for one in chosen if one not in skipped], server, given.jobs, _say)
    for one in skipped:
        sys.stdout.write(f"skip    {one.name}: no token was given\n")
    failed = [one.case.name for one in ran if one.why]
    sys.stdout.write(f"{len(ran) - len(failed)} of {len(ran)} cases passed, {len(skipped)} skipped\n")
    return 1 if failed else 0


def run(cases: Sequence[Case], server: Server, jobs: int, say: Callable[[Ran], None] = lambda ran: None) -> list[Ran]:
    """Run the cases, ``jobs`` at a time, and say each one's outcome in their order."""
    prefix = f"conformance-{uuid.uuid4().hex[:8]}"
    ran: list[Ran] = []
    with ThreadPoolExecutor(max(1, jobs)) as pool:
        futures: list[Future[Ran]] = [
            pool.submit(_run_one, one, Probe(server, f"{prefix}-{number}")) for number, one in enumerate(cases)
        ]
        for future in futures:
            ran.append(future.result())
            say(ran[-1])
    return ran


def _run_one(one: Case, probe: Probe) -> Ran:
    began_s, why = time.monotonic(), ""
    try:
        one.run(probe)
    except (Differs, Unanswered) as found:
        why = str(found)
    except (LookupError, TypeError, ValueError, AttributeError) as found:
        # An answer of another shape than the case reads.
        why = f"an answer of another shape: {type(found).__name__}: {found}"
    try:
        probe.close()
    except Unanswered as found:
        why = why or str(found)
    return Ran(one, " ".join(why.split()), time.monotonic() - began_s)


def _say(ran: Ran) -> None:
    if ran.why:
        sys.stdout.write(f"not ok  {ran.case.name}: {ran.case.about}: {ran.why}\n")
    else:
        sys.stdout.write(f"ok      {ran.case.name}\n")
    sys.stdout.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tq-worker-conformance",
        description="Holds a server of the worker API against a kit of small cases.",
        epilog=EPILOGUE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("addresses", nargs="+", metavar="ADDRESS", help="HOST:PORT or https://HOST:PORT")
    parser.add_argument("--token-file", metavar="FILE", help="the token that the server asks for")
    parser.add_argument("--ca", metavar="FILE", help="authority of the server's certificate")
    parser.add_argument("--only", action="append", default=[], metavar="TEXT", help="cases with this in their name")
    parser.add_argument("--jobs", type=int, default=JOBS, metavar="N", help=f"cases at a time (default: {JOBS})")
    parser.add_argument("--list", action="store_true", help="show the cases, run none")
    return parser


def command() -> None:
    """Entry point of ``tq-worker-conformance``."""
    refuse_both("tq-worker-conformance")
    sys.exit(main())
