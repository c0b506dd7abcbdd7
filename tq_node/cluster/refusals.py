"""Why an entry of the metadata log changed nothing: stable words for its proposer."""

from __future__ import annotations

import enum

import msgspec


class Refusal(enum.StrEnum):
    """Crosses the wire in answers, so an older node must know each word that it can be given."""

    # the cluster
    NOT_FOUNDED = "not_founded"
    ALREADY_FOUNDED = "already_founded"
    BAD_SETTINGS = "bad_settings"
    FEATURE_LEVEL = "feature_level"
    TOO_MANY = "too_many"
    NOT_NEEDED = "not_needed"
    # nodes
    WRONG_CLUSTER = "wrong_cluster"
    NAME_TAKEN = "name_taken"
    REMOVED = "removed"
    STORE_CLONED = "store_cloned"
    NO_SUCH_NODE = "no_such_node"
    STALE_SESSION = "stale_session"
    NOT_UP = "not_up"
    LAST_NODE = "last_node"
    LAST_COPY = "last_copy"
    HOLDS_COPIES = "holds_copies"
    # partitions
    NO_SUCH_PARTITION = "no_such_partition"
    STALE_EPOCH = "stale_epoch"
    STALE_VERSION = "stale_version"
    NOT_PRIMARY = "not_primary"
    PRIMARY_STAYS = "primary_stays"
    NOT_ONE_STEP = "not_one_step"
    NOT_A_COPY = "not_a_copy"
    DEAD_GO_FIRST = "dead_go_first"
    MIN_ISR = "min_isr"
    NO_SUCCESSOR = "no_successor"
    # moves
    MOVE_UNDER_WAY = "move_under_way"
    NO_MOVE = "no_move"
    BAD_TARGET = "bad_target"
    TOO_MANY_COPIES = "too_many_copies"
    TOO_FEW_COPIES = "too_few_copies"
    NOT_IN_SYNC = "not_in_sync"
    STILL_IN_SYNC = "still_in_sync"


class Refused(msgspec.Struct, frozen=True):
    """One item of an entry that was refused. ``partition``: None where the whole entry was."""

    code: Refusal
    partition: int | None = None
