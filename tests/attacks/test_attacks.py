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
        name = attack.name.replace(" ", "-")
        if not attack.by_tls_only:
            yield pytest.param(attack, False, id=name, marks=[pytest.mark.long] if attack.is_long else [])
        is_long = attack.is_long or not attack.by_tls_only
        yield pytest.param(attack, True, id=f"{name}-by-TLS", marks=[pytest.mark.long] if is_long else [])


@pytest.mark.parametrize(("attack", "by_tls"), list(each()))
def test_an_attack_holds_no_reactor_and_keeps_no_memory(attack: Attack, by_tls: bool, tmp_path: Path) -> None:
    found = measure(attack, tmp_path, by_tls=by_tls)
    print(f"\n{HEADING}\n{row(found)}")
    assert not found.faults(timed=False)
