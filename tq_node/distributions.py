"""The two distributions that are built from this tree, and that they don't stand side by side.

``tq-node`` is the whole. ``tq-node-worker`` is the client and ``tq-worker``, without what only a
node needs (``deploy/worker``). What both hold lies in the same files, so that whichever is taken
away would break the other: a command refuses to run where both are installed."""

from __future__ import annotations

import sys
from importlib import metadata

WHOLE, WORKER = "tq-node", "tq-node-worker"


def version() -> str:
    """Of whichever is installed; ``not installed``: none, as in a checkout."""
    for name in (WHOLE, WORKER):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return "not installed"


def both_are_installed() -> bool:
    """Whether this environment holds the one beside the other."""
    return all(any(True for _ in metadata.Distribution.discover(name=name)) for name in (WHOLE, WORKER))


def refuse_both(command: str) -> None:
    """End the process with 1 and one line where both are installed."""
    if both_are_installed():
        sys.stderr.write(
            f"{command}: {WHOLE} and {WORKER} are both installed here and hold the same modules: "
            f"pip uninstall {WHOLE} {WORKER}, then install the one that is needed ({WHOLE} has all of the other)\n"
        )
        sys.exit(1)
