-- One partition's content can be replaced or forgotten at one stroke: docs/decisions/0008-slots.md.
-- `partition_crc_3` is upgrades.py's: it verifies the old checksum and makes the new one.

ALTER TABLE partitions ADD COLUMN generation INTEGER NOT NULL DEFAULT 0;
ALTER TABLE partitions ADD COLUMN log_from INTEGER NOT NULL DEFAULT 0;
ALTER TABLE partitions ADD COLUMN task_rows INTEGER NOT NULL DEFAULT 0;
ALTER TABLE partitions ADD COLUMN tombstone_rows INTEGER NOT NULL DEFAULT 0;
ALTER TABLE partitions ADD COLUMN content_bytes INTEGER NOT NULL DEFAULT 0;

UPDATE partitions SET task_rows = held.task_rows, content_bytes = held.content_bytes FROM (
    SELECT partition, count(*) AS task_rows, sum(length(body) + coalesce(length(tasks.spec), length(specs.spec))) AS content_bytes
    FROM tasks LEFT JOIN specs ON specs.num = tasks.num AND tasks.spec IS NULL GROUP BY partition
) AS held WHERE partitions.partition = held.partition;
UPDATE partitions SET tombstone_rows = held.tombstone_rows FROM (
    SELECT partition, count(*) AS tombstone_rows FROM tombstones GROUP BY partition
) AS held WHERE partitions.partition = held.partition;
UPDATE partitions SET crc = partition_crc_3(
    crc, partition, promised, applied, horizon_us, trimmed, generation, log_from, task_rows, tombstone_rows, content_bytes
);

-- Slots whose rows do not count: staged, or to be deleted.
CREATE TABLE hidden (
    slot INTEGER PRIMARY KEY,
    crc  INTEGER NOT NULL
);

-- From here on `tasks.partition` and `tombstones.partition` are slots; an id may be in two slots of its partition.
DROP INDEX tasks_id;
CREATE UNIQUE INDEX tasks_id ON tasks (id, partition);
DROP INDEX tasks_ended;
CREATE INDEX tasks_ended ON tasks (ended_us, partition) WHERE ended_us > 0;
DROP INDEX tasks_pending;
CREATE INDEX tasks_pending ON tasks (queue, run_at_us, partition) WHERE state = 1;

ALTER TABLE tombstones RENAME TO tombstones_2;
DROP INDEX tombstones_at;
CREATE TABLE tombstones (
    id           TEXT NOT NULL,
    partition    INTEGER NOT NULL,
    content_hash BLOB NOT NULL,
    at_us        INTEGER NOT NULL,
    crc          INTEGER NOT NULL,
    PRIMARY KEY (id, partition)
) WITHOUT ROWID;
INSERT INTO tombstones SELECT id, partition, content_hash, at_us, crc FROM tombstones_2;
DROP TABLE tombstones_2;
CREATE INDEX tombstones_at ON tombstones (at_us);
