"""``tq-tui``: the command line. What is slow to import comes in only where it is needed."""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from tq_tui import version
from tq_tui.addresses import BadAddress, parse_addresses

EPILOGUE = """\
ADDRESS is HOST:PORT or https://HOST:PORT; several as localhost:8080,8081,8082 or apart. Other nodes are learnt from them.

  tq-tui                            localhost:8080
  tq-tui localhost:8080,8081,8082   three nodes of this machine
  tq-tui --once || echo trouble     exit status 0 healthy, 1 degraded, 2 no quorum or unreachable

Keys: 1-6 screens, ? help, n submit, K kill, / filter, : palette, q quit.
Environment: TQ_URL for ADDRESS, TQ_TOKEN for Authorization: Bearer, TQ_CA for --ca, NO_COLOR.
"""


USAGE_STATUS = 64
"""Exit code for a wrong command line; argparse's 2 says here that there is no quorum."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(USAGE_STATUS, f"{self.prog}: {message}\n")


def parser() -> argparse.ArgumentParser:
    options = _Parser(
        prog="tq-tui",
        description="The console of a taskqueue cluster.",
        epilog=EPILOGUE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument("addresses", nargs="*", metavar="ADDRESS", help="of any nodes (default: localhost:8080)")
    options.add_argument("--once", action="store_true", help="print the overview as text, and exit")
    options.add_argument("--json", action="store_true", help="as --once, as JSON")
    options.add_argument(
        "--timeout", type=float, default=3.0, metavar="SECONDS", help="of --once and --json (default: 3)"
    )
    options.add_argument("--token-file", type=Path, metavar="FILE", help="holds the token to show; never in an address")
    options.add_argument(
        "--ca", type=Path, metavar="FILE", help="authority of the nodes' certificates (default: the system's)"
    )
    options.add_argument("--readonly", action="store_true", help="hide everything that changes something")
    options.add_argument("--no-mouse", action="store_true", help="leave the mouse to the terminal")
    options.add_argument("--version", action="store_true", help="print the version, and exit")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; the result is the exit status."""
    chosen = parser().parse_args(arguments)
    if chosen.version:
        print(f"tq-tui {version()}")  # noqa: T201
        return 0
    words = chosen.addresses or os.environ.get("TQ_URL", "").split()
    try:
        addresses = parse_addresses(words)
    except BadAddress as why:
        print(f"tq-tui: {why}", file=sys.stderr)  # noqa: T201
        return USAGE_STATUS
    from tq_tui.client.credentials import BadCredentials, Credentials
    from tq_tui.client.http import HttpCluster

    authority = chosen.ca or (Path(os.environ["TQ_CA"]) if os.environ.get("TQ_CA") else None)
    token = None if chosen.token_file else os.environ.get("TQ_TOKEN") or None
    try:
        shown = Credentials(token=token, token_file=chosen.token_file, ca=authority, given=addresses)
    except BadCredentials as why:
        print(f"tq-tui: {why}", file=sys.stderr)  # noqa: T201
        return USAGE_STATUS
    client = HttpCluster(shown)
    if chosen.once or chosen.json:
        from tq_tui.report import print_once

        return asyncio.run(print_once(client, addresses, as_json=chosen.json, timeout_s=chosen.timeout))
    if not sys.stdout.isatty() or os.environ.get("TERM") == "dumb":
        print("tq-tui: this is no terminal to draw on; --once prints the overview as text", file=sys.stderr)  # noqa: T201
        return USAGE_STATUS
    # What is imported stays: looking there for garbage delays the first screen. Back on later.
    gc.disable()
    from tq_tui.app import Console

    return Console(client, addresses, readonly=chosen.readonly).run(mouse=not chosen.no_mouse) or 0


if __name__ == "__main__":
    sys.exit(main())
