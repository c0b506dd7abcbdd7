"""Replication in a broken world: five seeds a push, fifty in ``make long``, thousands by ``make simulate``."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.simulation import run
from tests.simulation.families import Violation, need, replay_hint
from tests.simulation.replication import handmade, schedules
from tests.simulation.replication.world import ReplicationWorld, simulate
from tests.support.world import SECOND_US

SEEDS = 50


@pytest.mark.parametrize("base", [0, *(pytest.param(base, marks=pytest.mark.long) for base in range(5, SEEDS, 5))])
def test_what_replication_promises_holds_in_a_broken_world(base: int) -> None:
    for seed in range(base, base + 5):
        simulate(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [59, 1271, 2098])
def test_seeds_that_found_something(seed: int) -> None:
    """59: a snapshot over leftovers that could not be told apart. 1271: a cut decided before its entry was committed elsewhere.
    2098: an old snapshot, sent twice."""
    simulate(seed)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(1, 15))])
@pytest.mark.parametrize("schedule", schedules.SCHEDULES, ids=lambda schedule: schedule.__name__)
def test_schedule(schedule: Callable[[int], None], seed: int) -> None:
    schedule(seed)


@pytest.mark.parametrize("schedule", handmade.HANDMADE, ids=lambda schedule: schedule.__name__)
def test_handmade(schedule: Callable[[], None]) -> None:
    schedule()


def test_different_seeds_are_different_runs() -> None:
    hashes = set()
    for seed in range(4):
        world = ReplicationWorld(seed)
        world.run(5 * SECOND_US)
        hashes.add(world.trace.hash)
    assert len(hashes) == 4


def test_a_failing_seed_says_how_to_replay_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def settle(world: ReplicationWorld) -> None:
        need(False, "a promise", "made to be broken")

    monkeypatch.setattr("tests.simulation.replication.world.SAFETY_US", SECOND_US)
    assert run.main(["replication", "--replay", "3"]) in (0, 1)
    monkeypatch.setattr(ReplicationWorld, "settle", settle)
    with pytest.raises(Violation) as broken:
        simulate(7)
    assert replay_hint("replication", 7) in broken.value.__notes__[0]
    assert run.main(["replication", "--seeds", "1", "--first", "7"]) == 1
    assert replay_hint("replication", 7) in capsys.readouterr().out
    assert run.main(["replication", "--replay", "7"]) == 1
    shown = capsys.readouterr()
    assert "a promise made to be broken" in shown.err
    assert " table 1 " in shown.out
    assert run.main(["replication", "--seeds", "2", "--seconds-max", "-1"]) == 0
