"""Everything durable: log records, rows, tombstones, the Raft log and the node's own named values.

How it is driven: ``sqlite.store.open_store`` opens a data directory (and blocks while it reads it);
from then on all goes through the ``Store`` protocol (``api``) in the reactor thread. Whoever wants
something durable puts it into one ``Batch`` and waits for the Deferred of ``commit``.

What always holds: a batch becomes durable as a whole or not at all, and in the order given.
Whatever is read was verified by its checksum. After the first failure nothing more is written,
every call fails with ``StoreBroken``, and the process ends (R18).

What it never does: it knows no states of tasks, no epochs' meaning and no peers, and it never calls
the rest of the node but through the two hooks of ``open_store``."""
