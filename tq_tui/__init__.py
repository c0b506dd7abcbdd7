"""The terminal console, ``tq-tui``: a client of the HTTP API; it shares no code with the node.

``client`` does all IO. ``watch`` polls each node and hands observations to ``app``, which folds
them into a view (``state``, pure) and gives it to the screen in front. ``charts``, ``task_view``,
``partition_map`` and ``format`` turn a view into text (pure); ``screens`` and ``widgets`` show it.
A key of ``keys.ACTS`` that changes something runs a method of ``actions``, which sends it by
``requests`` to a living node. Screens never ask a node for the state of the cluster, and never
change anything. ``report`` is ``--once``: one poll of each node, printed."""

from __future__ import annotations


def version() -> str:
    """Of the installed package; a source tree that was never installed has none."""
    from importlib import metadata  # takes longer than all the rest of this module's users

    try:
        return metadata.version("taskqueue")
    except metadata.PackageNotFoundError:
        return "unknown"
