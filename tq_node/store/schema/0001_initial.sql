-- The first schema. Meaning of every table and column: docs/reference/on-disk-format.md.

-- Small named values of the node itself.
CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value BLOB NOT NULL,
    crc   INTEGER NOT NULL
) WITHOUT ROWID;

-- One row for each partition that was ever written to. Records up to and with `trimmed` no longer count.
CREATE TABLE partitions (
    partition  INTEGER PRIMARY KEY,
    promised   INTEGER NOT NULL,
    applied    INTEGER NOT NULL,
    horizon_us INTEGER NOT NULL,
    trimmed    INTEGER NOT NULL,
    crc        INTEGER NOT NULL
);

CREATE TABLE epochs (
    partition      INTEGER NOT NULL,
    epoch          INTEGER NOT NULL,
    first_sequence INTEGER NOT NULL,
    crc            INTEGER NOT NULL,
    PRIMARY KEY (partition, epoch)
) WITHOUT ROWID;

-- The logs of all partitions in one order of arrival: a commit appends at one place, whatever partitions it touches.
CREATE TABLE log (
    pos       INTEGER PRIMARY KEY,
    partition INTEGER NOT NULL,
    sequence  INTEGER NOT NULL,
    epoch     INTEGER NOT NULL,
    crc       INTEGER NOT NULL,
    payload   BLOB NOT NULL
);

-- spec is NULL where it is long: then it is in `specs`.
CREATE TABLE tasks (
    num        INTEGER PRIMARY KEY,
    id         TEXT NOT NULL,
    partition  INTEGER NOT NULL,
    rev        INTEGER NOT NULL,
    state      INTEGER NOT NULL,
    run_at_us  INTEGER NOT NULL,
    ended_us   INTEGER NOT NULL,
    crc        INTEGER NOT NULL,
    type       TEXT NOT NULL,
    queue      TEXT NOT NULL,
    priority   INTEGER NOT NULL,
    created_us INTEGER NOT NULL,
    spec_crc   INTEGER NOT NULL,
    spec       BLOB,
    body       BLOB NOT NULL
);
CREATE UNIQUE INDEX tasks_id ON tasks (id);
CREATE INDEX tasks_state ON tasks (state, id, queue, partition);
CREATE INDEX tasks_created ON tasks (created_us, id);
CREATE INDEX tasks_run_at ON tasks (run_at_us, id);
CREATE INDEX tasks_priority ON tasks (priority, id);
CREATE INDEX tasks_ended ON tasks (ended_us) WHERE ended_us > 0;
CREATE INDEX tasks_pending ON tasks (queue, run_at_us) WHERE state = 1;

CREATE TABLE specs (
    num  INTEGER PRIMARY KEY,
    spec BLOB NOT NULL
);

CREATE TABLE tombstones (
    id           TEXT PRIMARY KEY,
    partition    INTEGER NOT NULL,
    content_hash BLOB NOT NULL,
    at_us        INTEGER NOT NULL,
    crc          INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX tombstones_at ON tombstones (at_us);
