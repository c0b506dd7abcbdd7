"""``python -m tests.chaos [NAME …]``: play the named scenarios, or all, one after another; a line for each and one at the end.

Exit code 1 if a promise was broken. Logs, stores and ledgers of a broken one are kept, and where is said.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.chaos.judge import Result
from tests.chaos.page import write_page
from tests.chaos.playing import SCENARIOS, play, summary
from tests.chaos.scenario import Scenario


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--list", action="store_true", help="say what there is, and what happens in each")
    parser.add_argument("--short", action="store_true", help="only those that are part of make test")
    parser.add_argument("--seed", default="1", help="of what is drawn at random; by default 1")
    parser.add_argument("--keep", type=Path, help="keep everything of every scenario below this directory")
    parser.add_argument("--write", type=Path, help="write the page with the table there")
    parser.add_argument("--jobs", type=int, default=1, help="so many at a time; they disturb one another a little")
    parser.add_argument("--commit", help="what the page says of the code; by default, what git says")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in SCENARIOS]
    if unknown:
        parser.error(f"no such scenario: {', '.join(unknown)}; --list shows them all")
    chosen = [SCENARIOS[name] for name in options.names or SCENARIOS]
    if options.short:
        chosen = [one for one in chosen if one.is_short]
    if options.list:
        for one in chosen:
            print(f"{one.name}{' (short)' if one.is_short else ''}\n    {one.told}")
        return 0
    home = options.keep or Path(tempfile.mkdtemp(prefix="taskqueue-chaos-"))

    def play_one(one: Scenario) -> Result:
        directory = home / f"{one.name}-{time.strftime('%H%M%S')}"
        result = play(one, directory, options.seed)
        lines = [result.line, *(f"    {broken}" for broken in result.broken)]
        if result.broken:
            lines.append(f"    seed {options.seed}; everything is in {directory}")
        elif not options.keep:
            shutil.rmtree(directory, ignore_errors=True)
        print("\n".join(lines), flush=True)
        return result

    with ThreadPoolExecutor(options.jobs) as pool:
        results = list(pool.map(play_one, chosen))
    print(summary(results), flush=True)
    if options.write is not None:
        write_page(options.write, results, options.commit)
    return 1 if any(result.broken for result in results) else 0
