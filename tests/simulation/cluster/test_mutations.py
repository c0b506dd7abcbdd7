"""The checkers of whole nodes are awake: duties neglected in the real code are noticed. ``whole_mutations`` prints the table."""

from __future__ import annotations

import pytest

from tests.simulation.cluster.mutations import EXPLAINED, MUTATIONS, RARE, main
from tests.simulation.raft.mutations import Mutation, seeds_to_catch

SEEDS_MAX = 12

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "mutation",
    [
        pytest.param(mutation, marks=[] if number < 1 else [pytest.mark.long])
        for number, mutation in enumerate(m for m in MUTATIONS if m.name not in RARE and m.name not in EXPLAINED)
    ],
    ids=lambda mutation: mutation.name,
)
def test_a_duty_neglected_is_noticed(mutation: Mutation, logged_errors: object) -> None:
    try:
        assert seeds_to_catch(mutation, 0, SEEDS_MAX) is not None
    finally:
        logged_errors.flush()  # type: ignore[attr-defined]  # what is broken may say so


def test_the_table_lists_what_is_not_caught(capsys: pytest.CaptureFixture[str]) -> None:
    name = next(iter(EXPLAINED))
    main(["--seeds", "1", "--base", "0", "--only", name])
    assert f"within 1 seeds: {name}" in capsys.readouterr().out
