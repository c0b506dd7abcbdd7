"""``python -m bench.instructions``: the table. See ``--help``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import msgspec

from bench.instructions.harness import PARTS
from bench.instructions.measuring import Measured, builds, commit_of, load, measure, missing, save
from bench.processes import ROOT, Failed

BASELINE = Path(__file__).with_name("baseline.json")


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 0, 1 where a figure is above ``--at-most`` or a harness failed, 2 where nothing can be measured."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.instructions",
        description="Instructions a submit (over three nodes, without HTTP and SQL), a commit, a row and a request, "
        "counted by callgrind; three minutes, and within 1 % the same however busy the machine is.",
    )
    parser.add_argument("--only", metavar="WORD", help="only parts with this word in their name")
    parser.add_argument(
        "--compare", type=Path, metavar="FILE", nargs="?", const=BASELINE,
        help="show the difference to a table that was written by --json [default: baseline.json beside this program]",
    )  # fmt: skip
    parser.add_argument(
        "--at-most", type=float, metavar="PERCENT", help="with --compare: fail where one is dearer by more"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table there, too")
    parser.add_argument("--tree", type=Path, default=ROOT, metavar="DIRECTORY", help="measure this checkout")
    parser.add_argument("--keep", type=Path, metavar="DIRECTORY", help="keep callgrind's files for callgrind_annotate")
    said = parser.parse_args(arguments)
    why = missing()
    if why is not None:
        print(f"bench.instructions: {why}", file=sys.stderr)
        return 2
    try:
        before = None if said.compare is None else load(said.compare)
    except (OSError, msgspec.ValidationError, msgspec.DecodeError) as error:
        print(f"bench.instructions: {said.compare}: {error}", file=sys.stderr)
        return 2
    tree = said.tree.resolve()
    measured = Measured(commit_of(tree), builds(), {})
    print(f"instructions a unit, commit {measured.commit or 'unknown'}, Python {measured.builds['python']}")
    code = 0
    if before is not None:
        print(f"beside commit {before.commit}")
        for name, other in before.builds.items():
            if measured.builds.get(name) != other:
                print(f"not the same yardstick: {name} is {measured.builds.get(name)}, was {other}")
    for part in PARTS:
        if said.only is not None and said.only not in part:
            continue
        try:
            figure = measured.figures[part] = round(measure(part, tree=tree, keep=said.keep), 1)
        except Failed as failed:
            print(f"{part:28} FAILED: {failed}")
            code = 1
            continue
        line = f"{part:28} {figure:14,.0f}"
        known = None if before is None else before.figures.get(part)
        if known:
            percent = (figure / known - 1) * 100
            line += f" {known:14,.0f} {percent:+8.2f} %"
            if said.at_most is not None and percent > said.at_most:
                line += "  TOO DEAR"
                code = 1
        print(line, flush=True)
    if said.json is not None:
        save(said.json, measured)
    return code


if __name__ == "__main__":
    sys.exit(main())
