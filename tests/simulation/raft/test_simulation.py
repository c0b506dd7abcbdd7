"""Ten seeds of Raft a push, fifty in ``make long``, thousands by ``make simulate``; schedules for F4 to F6; replays."""

from __future__ import annotations

import pytest

from tests.simulation import run
from tests.simulation.families import Violation, need, replay_hint
from tests.simulation.raft import handmade, partitions, rolled_back
from tests.simulation.raft.world import RaftWorld, simulate
from tests.support.world import SECOND_US, Disk, Network, VirtualTime, rng

SEEDS = 50


@pytest.mark.parametrize("base", [0, *(pytest.param(base, marks=pytest.mark.long) for base in range(10, SEEDS, 10))])
def test_what_raft_promises_holds_in_a_broken_world(base: int) -> None:
    for seed in range(base, base + 10):
        simulate(seed)


@pytest.mark.parametrize("seed", [1440, 2028, 2460])
def test_two_voters_do_not_lock_each_other_out(seed: int) -> None:
    """The seeds that found it; ``sendable_index`` is the rule."""
    simulate(seed)


@pytest.mark.parametrize("seeds", [range(2), pytest.param(range(2, 10), marks=pytest.mark.long)], ids=str)
@pytest.mark.parametrize(
    "schedule",
    [
        partitions.run_isolated,
        partitions.run_removed,
        partitions.run_deaf_leader,
        partitions.run_unheard_leader,
        partitions.run_stuck_candidate,
        partitions.run_paused_reads,
        partitions.run_evidence,
        partitions.run_promotion,
        handmade.run_cut_write,
        handmade.run_leftovers,
        handmade.run_old_snapshot,
        handmade.run_snapshot_crash,
        *rolled_back.SCHEDULES,
    ],
    ids=lambda schedule: schedule.__name__,
)
def test_schedule(schedule: partitions.Schedule, seeds: range) -> None:
    for seed in seeds:
        schedule(seed)


@pytest.mark.parametrize("number", range(len(partitions.CUTS)), ids=lambda number: str(partitions.CUTS[number]))
@pytest.mark.parametrize("round_", [0, *(pytest.param(more, marks=pytest.mark.long) for more in (1, 2))])
def test_links_that_work_one_way_only(number: int, round_: int) -> None:
    """F5: every one of the 6 directed links of 3 nodes, alone and in pairs, under three first leaders."""
    partitions.run_links(number + round_ * len(partitions.CUTS))


def test_different_seeds_are_different_runs() -> None:
    hashes = set()
    for seed in range(4):
        world = RaftWorld(seed)
        world.run(5 * SECOND_US)
        hashes.add(world.trace.hash)
    assert len(hashes) == 4


def test_a_failing_seed_says_how_to_replay_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def settle(world: RaftWorld) -> None:
        need(False, "a promise", "made to be broken")

    monkeypatch.setattr(RaftWorld, "settle", settle)
    monkeypatch.setattr("tests.simulation.raft.world.SAFETY_US", SECOND_US)
    with pytest.raises(Violation) as broken:
        simulate(7)
    assert replay_hint("raft", 7) in broken.value.__notes__[0]
    assert run.main(["raft", "--seeds", "1", "--first", "7"]) == 1
    assert replay_hint("raft", 7) in capsys.readouterr().out
    assert run.main(["raft", "--replay", "7"]) == 1
    shown = capsys.readouterr()
    assert "a promise made to be broken" in shown.err
    assert "50000 n1 read refused no_controller" in shown.out


def test_many_seeds_print_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("tests.simulation.raft.world.SAFETY_US", SECOND_US)
    assert run.main(["raft", "--seeds", "2", "--seconds-max", "60"]) == 0
    assert capsys.readouterr().out.startswith("raft: 2 of 2 seeds from 0: 0 failed; 0.01 virtual hours, ")
    assert run.main(["raft", "--seeds", "2", "--seconds-max", "-1"]) == 0
    assert capsys.readouterr().out.startswith("raft: 0 of 2 seeds")
    assert run.main(["raft", "--replay", "3"]) == 0


class TestWorld:
    """The world itself: its network and disks do what they say."""

    def test_a_disk_forgets_what_is_not_durable(self) -> None:
        time = VirtualTime()
        stored: list[int] = []
        told: list[int] = []
        disk: Disk[int] = Disk(time, rng(1, "disk"), stored.append)
        disk.write(1, lambda: told.append(1))
        time.run_until(SECOND_US)
        assert (stored, told, disk.is_idle) == ([1], [1], True)
        for item in range(2, 30):
            disk.write(item, lambda item=item: told.append(item))
        disk.crash()
        time.run_until(2 * SECOND_US)
        assert told == [1], "nobody is told after a crash"
        assert stored == list(range(1, len(stored) + 1)), "a prefix, in order"

    def test_writes_become_durable_in_order_several_at_a_time(self) -> None:
        time = VirtualTime()
        stored: list[int] = []
        told: list[tuple[int, tuple[int, ...]]] = []
        disk: Disk[int] = Disk(time, rng(1, "disk"), stored.append)
        for item in range(5):
            disk.write(item, lambda item=item: told.append((item, tuple(stored))))
        time.run_until(SECOND_US)
        assert [item for item, _ in told] == list(range(5))
        assert all(item in at_that_time for item, at_that_time in told)

    def test_a_cut_link_is_cut_one_way(self) -> None:
        time, arrived = VirtualTime(), []
        network = Network(time, rng(1, "network"), lambda target, message: arrived.append((target, message)))
        network.cut["a", "b"] = True
        network.send("a", "b", "lost")
        network.send("b", "a", "kept")
        time.run_until(SECOND_US)
        assert arrived == [("a", "kept")]

    def test_one_connection_keeps_its_order_unless_told_otherwise(self) -> None:
        def order(overtaking: float) -> list[int]:
            time, arrived = VirtualTime(), []
            network = Network(time, rng(1, "network"), lambda target, message: arrived.append(message))
            network.overtaking = overtaking
            for number in range(50):
                network.send("a", "b", number)
            time.run_until(10 * SECOND_US)
            return arrived

        assert order(0.0) == list(range(50))
        assert sorted(order(0.5)) == list(range(50)) != order(0.5)

    def test_loss_and_doubling(self) -> None:
        time, arrived = VirtualTime(), []
        network = Network(time, rng(1, "network"), lambda target, message: arrived.append(message))
        network.doubling = 1.0
        network.send("a", "b", 1)
        network.loss = 1.0
        network.send("a", "b", 2)
        time.run_until(SECOND_US)
        assert arrived == [1, 1]
