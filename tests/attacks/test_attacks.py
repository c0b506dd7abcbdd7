"""Every attack against real nodes. What the machine's load can't excuse is asserted: the CPU of one call, and memory.

How long ``/health`` took is printed; ``python -m tests.attacks`` judges that, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.attacks.harness import HEADING, Attack, all_attacks, measure, row

pytestmark = pytest.mark.cluster


def each() -> Iterator[object]:
    for attack in all_attacks():
        yield pytest.param(attack, id=attack.name.replace(" ", "-"), marks=[pytest.mark.long] if attack.is_long else [])


@pytest.mark.parametrize("attack", list(each()))
def test_an_attack_holds_no_reactor_and_keeps_no_memory(attack: Attack, tmp_path: Path) -> None:
    found = measure(attack, tmp_path)
    print(f"\n{HEADING}\n{row(found)}")
    assert not found.faults(timed=False)
