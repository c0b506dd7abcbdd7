"""``tq-audit verify FILE [FILE ...]``: proves that nothing was taken out of audit logs, or changed.

With FILE the files that were put aside for it (``FILE.000001`` ...) are read too, the oldest first.
Exit code: 0 all whole, 1 something is wrong, 2 nothing could be proven."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tq_node.audit import LINE_BYTES_MAX, Chain, Finding, findings_of
from tq_node.distributions import refuse_both

WHOLE, BROKEN, UNKNOWN = 0, 1, 2
FINDINGS_MAX = 100
"""More of one log are counted."""
_put_aside = re.compile(r"(.+)\.([0-9]{6,})").fullmatch


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what was found, and return the exit code."""
    sought = _parser().parse_args(arguments)
    code = WHOLE
    held = {one.lower() for one in sought.holds}
    for name, files in logs_of(sought.files).items():
        chain = Chain()
        chain.hashes_sought = held
        try:
            code = max(code, _verify(name, files, chain))
        except OSError as why:
            sys.stderr.write(f"tq-audit: {name}: {why}\n")
            return UNKNOWN
    for one in sorted(held):
        sys.stdout.write(f"no line has the hash {one}: lines were taken out or changed\n")
        code = max(code, BROKEN)
    return code


def logs_of(given: Sequence[Path]) -> dict[str, list[Path]]:
    """The files of each log, the oldest first, by the log's name."""
    logs: dict[str, dict[int | float, Path]] = {}
    for path in given:
        match = _put_aside(path.name)
        if match is not None:
            logs.setdefault(str(path.with_name(match[1])), {})[int(match[2])] = path
            continue
        files = logs.setdefault(str(path), {})
        if path.exists() or not path.parent.is_dir():
            files[float("inf")] = path
        for other in path.parent.iterdir() if path.parent.is_dir() else ():
            match = _put_aside(other.name)
            if match is not None and match[1] == path.name:
                files[int(match[2])] = other
        if not files:
            files[float("inf")] = path
    return {name: [files[number] for number in sorted(files)] for name, files in logs.items()}


def _verify(name: str, files: Sequence[Path], chain: Chain) -> int:
    found = 0
    cut = 0
    for path in files:
        try:
            for finding in findings_of(chain, _lines(path)):
                found += _say(found, finding)
        except _CutError as why:
            if path is not files[-1]:
                found += _say(found, Finding(str(path), "ends in the middle of a line: it was cut"))
            cut = why.size
    if not chain.is_whole:
        text = "the lines before its first are missing, and no line says that the log deleted them"
        found += _say(found, Finding(f"{files[0]}:1", text))
    if found > FINDINGS_MAX:
        sys.stdout.write(f"{found - FINDINGS_MAX} more\n")
    last = "" if chain.last is None or chain.first is None else f", {chain.first.at} to {chain.last.at}"
    state = f"{found} findings" if found else "whole"
    sys.stdout.write(f"{name}: {chain.count} lines in {len(files)} files{last}: {state}\n")
    if cut:
        sys.stdout.write(f"behind it are {cut} bytes of a line: it is being written, or the node was killed\n")
    sys.stdout.write(f"the last line has the hash {chain.head}\n")
    return BROKEN if found else WHOLE


def _say(found: int, finding: Finding) -> int:
    if found < FINDINGS_MAX:
        sys.stdout.write(f"{finding.place}: {finding.text}\n")
    return 1


class _CutError(Exception):
    """A file ends with ``size`` bytes that are no line."""

    def __init__(self, size: int) -> None:
        self.size = size


def _lines(path: Path) -> Iterator[tuple[str, bytes]]:
    with path.open("rb") as file:
        number = 0
        while line := file.readline(LINE_BYTES_MAX + 1):
            number += 1
            if line.endswith(b"\n"):
                yield f"{path}:{number}", line[:-1]
            elif len(line) <= LINE_BYTES_MAX:
                raise _CutError(len(line))
            else:
                yield f"{path}:{number}", line


def _parser() -> argparse.ArgumentParser:
    text = (__doc__ or "").split("\n\n")
    parser = argparse.ArgumentParser("tq-audit", description=text[0], epilog=text[-1])
    verify = parser.add_subparsers(required=True, metavar="verify").add_parser(
        "verify", help="prove that logs are whole"
    )
    verify.add_argument("--holds", metavar="HASH", action="append", default=[], type=_hash,
                        help="a hash printed earlier, which a line must still have")  # fmt: skip
    verify.add_argument("files", nargs="+", type=Path, metavar="FILE")
    return parser


def _hash(text: str) -> str:
    if not re.fullmatch(r"[0-9a-fA-F]{64}", text):
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is not the SHA-256 of a line: 64 hexadecimal digits")
    return text


def command() -> None:
    """The console script."""
    refuse_both("tq-audit")
    sys.exit(main())


if __name__ == "__main__":
    command()
