"""The checkers are awake: rules switched off in the real code are noticed. ``mutations`` prints the whole table."""

from __future__ import annotations

import pytest

from tests.simulation.raft.mutations import MUTATIONS, Mutation, main, seeds_to_catch

RARE = {
    "a write counts although the log was cut (swarm)",
    "old terms are committed by counting (swarm)",
    "a follower commits beyond what was proven (swarm)",
    "a change before the own-term commit (swarm)",
    "cutting the log keeps the configuration (swarm)",
    "an old snapshot is installed (swarm)",
    "the log is cut before the snapshot is durable (swarm)",
}
"""Thousands of schedules: each but one has a (script) or (hand) beside it, which is not rare."""
SEEDS_MAX = 40


pytestmark = pytest.mark.slow


def _case(mutation: Mutation) -> object:
    """Schedules made by hand or by a script are in make test; for the others seeds are searched, in make long."""
    return pytest.param(
        mutation, marks=[] if "(hand)" in mutation.name or "(script)" in mutation.name else [pytest.mark.long]
    )


@pytest.mark.parametrize(
    "mutation", [_case(m) for m in MUTATIONS if m.name not in RARE], ids=lambda mutation: mutation.name
)
def test_a_rule_switched_off_is_noticed(mutation: Mutation) -> None:
    assert seeds_to_catch(mutation, 0, SEEDS_MAX) is not None


def test_the_table_lists_what_is_not_caught(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--seeds", "1", "--only", "proven"])
    shown = capsys.readouterr().out
    assert "   -    -    -" in shown
    assert "   1    1    1" in shown
    assert "caught never within 1 seeds: a follower commits beyond what was proven (swarm)" in shown
    assert "F7" in shown
