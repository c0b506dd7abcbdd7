"""The terminal console, ``tq-tui``: a client of the HTTP API like any other.

Rooms: ``client`` talks to nodes, ``state`` folds what was seen into a view (pure), ``draw`` and ``format`` turn a view into
text (pure), ``widgets`` and ``screens`` show it, ``acting`` does what people ask for.
"""

from __future__ import annotations


def version() -> str:
    """Of the installed package; a source tree that was never installed has none."""
    from importlib import metadata  # takes longer than all the rest of this module's users

    try:
        return metadata.version("taskqueue")
    except metadata.PackageNotFoundError:
        return "unknown"
