"""The checkers are awake: what is switched off in the real code is noticed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.simulation.families import FAMILIES
from tests.simulation.mutations import Mutation, main, seeds_to_catch, table_of

SEEDS_MAX = {"raft": 40, "replication": 40, "cluster": 12}
CLUSTER_QUICK = 1

pytestmark = pytest.mark.slow


def _cases() -> Iterator[object]:
    """Schedules made by hand or by a script are in make test; for the others seeds are searched, in make long."""
    for family in FAMILIES:
        table = table_of(family)
        tried = [one for one in table.MUTATIONS if one.name not in table.RARE and one.name not in table.EXPLAINED]
        for number, mutation in enumerate(tried):
            is_quick = "(hand)" in mutation.name or "(script)" in mutation.name
            if family == "cluster":
                is_quick = number < CLUSTER_QUICK
            marks = [] if is_quick else [pytest.mark.long]
            yield pytest.param(family, mutation, marks=marks, id=f"{family}-{mutation.name}")


@pytest.mark.parametrize(("family", "mutation"), list(_cases()))
def test_what_is_switched_off_is_noticed(family: str, mutation: Mutation, logged_errors: object) -> None:
    try:
        assert seeds_to_catch(mutation, 0, SEEDS_MAX[family]) is not None
    finally:
        if family == "cluster":
            logged_errors.flush()  # type: ignore[attr-defined]  # what is broken may say so


def test_each_mutation_patches_what_is_there() -> None:
    """Also those that are not caught, which run only in the printed table."""
    for family in FAMILIES:
        for mutation in table_of(family).MUTATIONS:
            for owner, name, _ in mutation.patches:
                assert hasattr(owner, name), f"{mutation.name}: {owner} has no {name}"


def test_the_table_lists_what_is_not_caught(capsys: pytest.CaptureFixture[str]) -> None:
    main(["raft", "--seeds", "1", "--only", "proven"])
    shown = capsys.readouterr().out
    assert "   -    -    -" in shown
    assert "   1    1    1" in shown
    assert "caught never within 1 seeds: a follower commits beyond what was proven (swarm)" in shown
    main(["replication", "--seeds", "1", "--only", "the trim no more"])
    assert "what is trimmed is applied" in capsys.readouterr().out
    name = next(iter(table_of("cluster").EXPLAINED))
    main(["cluster", "--seeds", "1", "--base", "0", "--only", name])
    assert f"within 1 seeds: {name}" in capsys.readouterr().out
