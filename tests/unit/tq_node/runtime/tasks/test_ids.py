"""Ids that a node makes, and the ones that fit a partition."""

from __future__ import annotations

import random
import uuid

import pytest

from tq_node.cluster.placement import partition_of
from tq_node.runtime.tasks.id_allocator import TAILS, IdMaker, made_at_us

NOW_US = 1_700_000_000_123_456


def task_id_of(wall_us: int, random_bits: int) -> str:
    """By RFC 9562, with the fraction of the millisecond in its twelve bits; ``uuid`` puts the dashes."""
    millis, micros = divmod(wall_us, 1_000)
    number = millis << 80 | 7 << 76 | (micros << 12) // 1_000 << 64 | 2 << 62 | random_bits & (1 << 62) - 1
    return f"task-{uuid.UUID(int=number)}"


def maker(partition_count: int = 64) -> IdMaker:
    return IdMaker(random.Random(7).randbytes, seed=5, partition_count=partition_count)


def test_made_ids_sort_by_time_and_tell_it() -> None:
    early, late = task_id_of(1_700_000_000_123_456, 2**64 - 1), task_id_of(1_700_000_000_123_457, 0)
    assert early == "task-018bcfe5-687b-774b-bfff-ffffffffffff"
    assert early < late
    assert made_at_us(early) == 1_700_000_000_123_000
    assert made_at_us("order-1") is None
    assert made_at_us(early + "\n") is None


def test_the_pool_of_randomness_is_refilled_and_never_used_twice() -> None:
    asked: list[int] = []

    def random_bytes(count: int) -> bytes:
        asked.append(count)
        return b"".join((len(asked) * count + n).to_bytes(8, "big") for n in range(count // 8))

    maker = IdMaker(random_bytes, seed=5, partition_count=64)
    ids = {maker.make(1_000) for _ in range(1_200)}
    assert len(ids) == 1_200
    assert len(asked) == 3


def test_a_made_id_has_the_randomness_it_is_given() -> None:
    bits = (0x0123456789ABCDEF).to_bytes(8, "big")
    assert IdMaker(lambda count: bits * (count // 8), seed=5, partition_count=64).make(NOW_US) == task_id_of(
        NOW_US, 0x0123456789ABCDEF
    )


@pytest.mark.parametrize("partition_count", [1, 3, 64, 1_024])
def test_an_id_lives_in_the_partitions_that_it_is_made_for(partition_count: int) -> None:
    ids = maker(partition_count)
    for number in range(200):
        wanted = {(number + offset) % partition_count for offset in range(-(-partition_count // 64))}
        made = ids.make_in(NOW_US + number, wanted)
        assert partition_of(made, seed=5, partition_count=partition_count) in wanted
        assert made_at_us(made) == (NOW_US + number) // 1_000 * 1_000


def test_many_ids_of_one_place_and_one_microsecond_are_all_different_and_tell_their_time() -> None:
    """More than the endings at hand can give: the fraction of the millisecond goes on, the endings are tried again."""
    ids = maker()
    made = [ids.make_in(NOW_US, {3}) for _ in range(2_000)]
    assert len(set(made)) == 2_000
    assert {partition_of(one, seed=5, partition_count=64) for one in made} == {3}
    assert {made_at_us(one) for one in made} == {NOW_US // 1_000 * 1_000}


def test_no_ending_serves_twice() -> None:
    """Else two ids that are made in turn would share all their random bits."""
    ids = maker(2)
    made = [ids.make_in(NOW_US + number, {number % 2}) for number in range(4 * TAILS)]
    assert len({one[-17:] for one in made}) == len(made)


def test_a_wall_clock_that_steps_back_is_followed() -> None:
    """The time in an id is compared with the partition's horizon (section 9): it must not run ahead of the clock for long."""
    ids = maker()
    for _ in range(500):
        ids.make_in(NOW_US, {3})
    an_hour_ago = NOW_US - 3_600_000_000
    made = ids.make_in(an_hour_ago, {3})
    assert made_at_us(made) == an_hour_ago // 1_000 * 1_000


def test_where_nothing_fits_the_id_is_one_of_any_partition() -> None:
    assert made_at_us(maker().make_in(NOW_US, set())) == NOW_US // 1_000 * 1_000
