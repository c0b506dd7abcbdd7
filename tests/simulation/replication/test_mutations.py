"""The checkers of the data plane are awake: rules switched off in the real code are noticed. ``data_mutations`` prints the
table."""

from __future__ import annotations

import pytest

from tests.simulation.raft.mutations import Mutation, seeds_to_catch
from tests.simulation.replication.mutations import EXPLAINED, MUTATIONS, RARE, main

SEEDS_MAX = 40

pytestmark = pytest.mark.slow


def _case(mutation: Mutation) -> object:
    """Schedules made by hand or by a script are in make test; for the others seeds are searched, in make long."""
    return pytest.param(
        mutation, marks=[] if "(hand)" in mutation.name or "(script)" in mutation.name else [pytest.mark.long]
    )


@pytest.mark.parametrize(
    "mutation",
    [_case(m) for m in MUTATIONS if m.name not in RARE and m.name not in EXPLAINED],
    ids=lambda mutation: mutation.name,
)
def test_a_rule_switched_off_is_noticed(mutation: Mutation) -> None:
    assert seeds_to_catch(mutation, 0, SEEDS_MAX) is not None


def test_the_table_lists_what_is_not_caught(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--seeds", "1", "--only", "the trim no more"])
    assert "what is trimmed is applied" in capsys.readouterr().out
