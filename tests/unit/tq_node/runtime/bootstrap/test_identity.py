"""Identity: formatted before it belongs, kept across starts, and the directories of release 0.1."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import msgspec
import pytest

from tq_node.errors import StoreBroken
from tq_node.runtime.bootstrap.identity import (
    Belonging,
    Birth,
    NoSecret,
    Values,
    WrongName,
    belonging_in,
    belonging_values,
    copy_values,
    formatted_in,
    founding_identity,
    is_copy,
    joined,
    new_node,
    newborn_again,
    next_start,
    past_birth_guard,
    with_secret,
)
from tq_node.types import NodeName

NAME = NodeName("node-1")
SECRET = b"s" * 32
OLD = {
    "identity": msgspec.json.encode(
        {
            "node_id": "ab" * 16,
            "node_name": "node-1",
            "cluster_id": "cd" * 16,
            "seed": 7,
            "partition_count": 64,
            "replication_factor": 3,
            "born_us": 1_000_000,
        }
    ),
    "incarnation": b"4",
}


def counting() -> Callable[[int], bytes]:
    """Bytes that are never the same twice."""
    numbers = itertools.count(1)
    return lambda size: next(numbers).to_bytes(size, "big")


def written(meta: dict[str, bytes], values: Values) -> dict[str, bytes]:
    return {key: value for key, value in (meta | values).items() if value is not None}


def founded(keeps_secret: bool = True) -> Belonging:
    return founding_identity(
        partition_count=16, replication_factor=3, keeps_secret=keeps_secret, random_bytes=counting(), now_us=5
    )


# --- formatted ---
def test_a_directory_is_formatted_before_it_belongs_to_anybody() -> None:
    meta: dict[str, bytes] = {}
    assert formatted_in(meta, NAME) is None
    node = new_node(NAME, counting())
    incarnation, values = next_start(meta, node)
    meta = written(meta, values)
    assert incarnation == 1
    assert formatted_in(meta, NAME) == node
    assert belonging_in(meta) is None
    assert len(bytes.fromhex(node.node_id)) == 16


def test_each_start_counts_and_the_identity_stays() -> None:
    meta: dict[str, bytes] = {}
    node = new_node(NAME, counting())
    for number in (1, 2, 3):
        incarnation, values = next_start(meta, node)
        meta = written(meta, values)
        assert incarnation == number
    assert formatted_in(meta, NAME) == node


def test_another_name_is_refused_in_one_line() -> None:
    _, values = next_start({}, new_node(NAME, counting()))
    with pytest.raises(WrongName, match="belongs to node 'node-1', not to 'node-2'"):
        formatted_in(written({}, values), NodeName("node-2"))


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b'{"node_id":1}', b"\xff"])
def test_what_can_t_be_read_is_a_broken_store(raw: bytes) -> None:
    with pytest.raises(StoreBroken):
        formatted_in({"identity": raw}, NAME)
    with pytest.raises(StoreBroken):
        belonging_in({"belonging": raw})
    with pytest.raises(StoreBroken):
        next_start({"incarnation": b"x"}, new_node(NAME, counting()))


# --- belonging ---
def test_a_founder_makes_cluster_secret_and_seed_and_is_newborn_until_its_guard_has_passed() -> None:
    belonging = founded()
    assert belonging.secret is not None
    assert len(belonging.secret) == 32
    assert belonging.birth == Birth(3, 16, 3)
    assert belonging.is_newborn
    meta = written({}, belonging_values(belonging))
    assert belonging_in(meta) == belonging
    settled = past_birth_guard(belonging)
    assert not settled.is_newborn
    assert newborn_again(settled) == belonging


def test_a_secret_in_a_file_is_never_stored() -> None:
    belonging = founded(keeps_secret=False)
    assert belonging.secret is None
    used, kept = with_secret({}, belonging, from_file=SECRET, has_certificates=False, random_bytes=counting())
    assert used == SECRET
    assert kept == belonging
    assert SECRET not in b"".join(value or b"" for value in belonging_values(kept).values())


def test_a_joiner_keeps_what_was_handed_over() -> None:
    belonging = belonging_in(written({}, joined("c" * 32, SECRET, 9)))
    assert belonging == Belonging("c" * 32, SECRET, 9)
    used, _ = with_secret(
        written({}, joined("c" * 32, SECRET, 9)),
        Belonging("c" * 32, SECRET, 9),
        from_file=None,
        has_certificates=False,
        random_bytes=counting(),
    )
    assert used == SECRET


def test_a_file_goes_before_the_store() -> None:
    used, kept = with_secret(
        {}, Belonging("c", SECRET, 9), from_file=b"f" * 32, has_certificates=True, random_bytes=counting()
    )
    assert used == b"f" * 32
    assert kept.secret == SECRET


def test_neither_secret_nor_certificate_is_refused_in_one_line() -> None:
    belonging = Belonging("c" * 32, None, 9)
    meta = written({}, belonging_values(belonging))
    with pytest.raises(NoSecret, match=r"^--secret-file: is missing"):
        with_secret(meta, belonging, from_file=None, has_certificates=False, random_bytes=counting())
    used, _ = with_secret(meta, belonging, from_file=None, has_certificates=True, random_bytes=counting())
    assert used is None


def test_the_secret_does_not_show() -> None:
    assert "ssss" not in repr(Belonging("c", SECRET, 9))


# --- copies ---
def test_a_copy_remains_one() -> None:
    assert not is_copy({})
    assert not is_copy(OLD)
    meta = written(OLD, copy_values())
    assert is_copy(meta)
    node = formatted_in(meta, NAME)
    assert node is not None
    _, values = next_start(meta, node)
    assert is_copy(written(meta, values))


# --- release 0.1 ---
def test_a_node_of_release_0_1_founded_its_cluster_and_is_no_newborn() -> None:
    node = formatted_in(OLD, NAME)
    assert node is not None
    assert node.node_id == "ab" * 16
    assert belonging_in(OLD) == Belonging("cd" * 16, None, 1_000_000, Birth(7, 64, 3))


def test_it_gets_a_secret_once_and_keeps_everything() -> None:
    node, alone = formatted_in(OLD, NAME), belonging_in(OLD)
    assert node is not None
    assert alone is not None
    incarnation, values = next_start(OLD, node)
    used, kept = with_secret(OLD, alone, from_file=None, has_certificates=False, random_bytes=counting())
    meta = written(OLD, values | belonging_values(kept))
    assert incarnation == 5
    assert used is not None
    assert belonging_in(meta) == kept
    assert kept.birth == alone.birth
    again, same = with_secret(meta, kept, from_file=None, has_certificates=False, random_bytes=counting())
    assert (again, same) == (used, kept)


def test_a_start_that_ends_before_it_has_a_secret_leaves_it_as_it_was() -> None:
    node = formatted_in(OLD, NAME)
    assert node is not None
    _, values = next_start(OLD, node)
    assert belonging_in(written(OLD, values)) == belonging_in(OLD)
