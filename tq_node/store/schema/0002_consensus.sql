-- The log of the Raft group that keeps the cluster's metadata. Term, vote and snapshot are named values in `meta`.
CREATE TABLE consensus_log (
    log_index INTEGER PRIMARY KEY,
    term      INTEGER NOT NULL,
    kind      INTEGER NOT NULL,
    data      BLOB NOT NULL,
    crc       INTEGER NOT NULL
);
