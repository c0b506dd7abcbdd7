"""The ``Store`` on SQLite: one database file in WAL mode, one writer thread, four reader threads.

How it is driven: ``store.SqliteStore`` puts each call into the queue of a thread and gets the
answer back in the reactor. ``writer`` takes all batches that wait, ``group_commit`` writes them in
one transaction, ``wal`` keeps the write-ahead log short. ``queries`` and ``paging`` read rows,
``log_index`` finds log records, ``snapshot_reads`` and ``snapshot_install`` copy partitions.

What always holds: only the writer thread changes the database (``wal``'s helper copies pages of
committed changes). Memory (``partition_state``, ``generations``, ``log_index``) may be ahead of the
disk only within a commit; if that commit fails the store is broken. No commit waits for a long
deletion: dead rows and records go in slices (``vacuum``).

What it never does: it steps through many rows one by one. Each step of a statement gives up the
interpreter's lock, so a query returns one row with one JSON text and an insert carries up to
``sql.ROWS_MAX`` rows."""
