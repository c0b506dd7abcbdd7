"""``python -m bench``: choose the parts, measure, report, leave nothing behind."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from http.client import HTTPException
from pathlib import Path
from types import FrameType
from typing import NoReturn

from bench import pages, report
from bench.context import FULL, QUICK, Context
from bench.counts import count
from bench.drains import drain
from bench.goals import GOALS, RATIOS
from bench.peers import PEERS
from bench.peers.base import Peer, Unavailable
from bench.pickups import pick_up
from bench.processes import Failed, Stopped, build_directory, scratch
from bench.reads import status
from bench.samples import Book
from bench.starts import start
from bench.stored import stored
from bench.submits import batch, submit

PARTS: dict[str, Callable[[Context], None]] = {
    "submit": submit, "batch": batch, "drain": drain, "pick-up": pick_up, "status": status,
    "start": start, "counts": count, "stored": stored,
}  # fmt: skip
BEGUN = time.monotonic()
OTHER_TREE = "other tree"
ONCE = {"counts", "stored"}
"""Parts done in one round: counts hardly vary, and ``stored`` repeats its calls within."""


def main(arguments: list[str] | None = None) -> int:
    """Run the bench. The exit code: 0, 1 when something did not add up, 130 after Ctrl-C; what was measured is reported."""
    said = _parser().parse_args(arguments)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    sizes = QUICK if said.quick else FULL
    if said.repeat is not None:
        sizes = replace(sizes, rounds=said.repeat)
    code = 0
    book = Book(GOALS[said.nodes], RATIOS[said.nodes])
    systems = {
        "taskqueue": f"{said.nodes} x twistd -n taskqueue, copies on {said.nodes}, HTTP over TCP; an answer means synced on all"
    }
    try:
        with scratch() as directory:
            peers = _peers(said.peers, book, systems)
            prepared = time.monotonic()
            context = Context(directory, book, sizes, said.nodes, peers, _progress)
            if said.tree is not None:
                context.trees[OTHER_TREE] = said.tree.resolve()
                systems[OTHER_TREE] = f"the same with the program at {said.tree}, commit {report.commit(said.tree)}"
            for name in said.only or PARTS:
                try:
                    _measure(name, context, prepared)
                except (Failed, OSError, HTTPException) as why:
                    book.note(f"{name} FAILED: {str(why) or type(why).__name__}")
                    code = 1
            code = code or bool(context.failures)
    except Stopped:
        _progress("stopped")
        code = 130
    except OSError as why:
        print(f"bench: {why}", file=sys.stderr)
        code = 1
    about = report.facts(sizes.rounds, systems)
    print(report.heading(about))
    print("\n".join(f"  {name}: {what}" for name, what in systems.items()) + "\n")
    print(report.table(book))
    print("\n" + "\n".join([*book.notes, f"took {time.monotonic() - BEGUN:.0f} s"]))
    print(report.goals(book))
    written = pages.write(build_directory() / "results", about, book)
    if said.json is not None:
        pages.write_json(said.json, about, book)
    if said.docs:
        if code == 0:
            written += pages.write(pages.DOCS, about, book)
            pages.write_page(pages.PAGE, about, book)
        else:
            print("the documentation is left as it was")
    print("written: " + " ".join(os.path.relpath(path) for path in written))
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="some three minutes, for trying: one short round")
    parser.add_argument(
        "--only", type=_names(tuple(PARTS)), metavar="PART,…", help=f"only these parts: {', '.join(PARTS)}"
    )
    parser.add_argument(
        "--nodes", type=int, choices=tuple(GOALS), default=3, help="of ours; three keep each task on all [default: 3]"
    )
    parser.add_argument(
        "--peers", type=_names((*(peer.name for peer in PEERS), "none")), metavar="NAME,…",
        help=f"only these beside ours: {', '.join(peer.name for peer in PEERS)}, or none",
    )  # fmt: skip
    parser.add_argument("--repeat", type=_rounds, metavar="N", help="rounds [default: 3, or 1 with --quick]")
    parser.add_argument(
        "--tree", type=Path, metavar="DIRECTORY",
        help="of submit, batch, drain and pick-up: measure this checkout's nodes, too, in turns with ours",
    )  # fmt: skip
    parser.add_argument(
        "--docs", action="store_true", help="put tables, JSON and picture into docs/reference/, if all went well"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there, too")
    return parser


def _names(known: tuple[str, ...]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = text.split(",")
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}")
        return names

    return parse


def _rounds(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 100:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 100")
    return int(text)


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    for again in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(again, signal.SIG_IGN)  # stopping has begun, and has a deadline of its own
    raise Stopped


def _peers(wanted: list[str] | None, book: Book, systems: dict[str, str]) -> list[Peer]:
    """The peers that can be had here."""
    peers = []
    for kind in PEERS:
        if wanted is not None and kind.name not in wanted:
            continue
        peer = kind()
        _progress(f"preparing {peer.name}")
        try:
            peer.prepare()
        except Unavailable as why:
            book.note(f"{peer.name} is left out: {why}")
            continue
        systems[peer.name] = f"{peer.version}; {peer.about}"
        peers.append(peer)
    return peers


def _measure(name: str, context: Context, begun: float) -> None:
    """Measure one part. :raises Failed: what it left does not add up; the others can still be measured."""
    rounds = 1 if name in ONCE else context.sizes.rounds
    for number in range(rounds):
        if time.monotonic() - begun > (context.sizes.more_rounds_s if number else context.sizes.last_start_s):
            context.book.note(f"{name}: {number} of {rounds} rounds, there was no time for more")
            return
        _progress(f"{name}, round {number + 1} of {rounds}")
        PARTS[name](context)


def _progress(line: str) -> None:
    print(f"{time.monotonic() - BEGUN:5.0f} s  {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
