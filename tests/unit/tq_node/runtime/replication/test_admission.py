"""What a primary takes in while much waits for the disks."""

from __future__ import annotations

import pytest

from tq_node import limits
from tq_node.runtime.replication.admission import Admission

FREE, MOST = limits.UNCOMMITTED_BYTES_FREE, limits.UNCOMMITTED_BYTES_MAX
LATE_MS = limits.UNCOMMITTED_MS_MAX + 1


@pytest.mark.parametrize(
    ("waited_ms", "waiting_bytes", "is_large", "is_full"),
    [
        (0, MOST, True, False),
        (0, MOST + 1, True, True),
        (0, MOST + 1, False, True),
        (LATE_MS - 1, MOST, True, False),
        (LATE_MS, FREE + 1, True, True),
        (LATE_MS, FREE, True, False),
        (LATE_MS, MOST, False, False),
    ],
)
def test_full(waited_ms: int, waiting_bytes: int, is_large: bool, is_full: bool) -> None:
    admission = Admission()
    admission.waited(waited_ms)
    assert admission.is_full(waiting_bytes, is_large=is_large) is is_full


def test_it_is_over_when_nobody_waits_for_long_any_more() -> None:
    admission = Admission()
    admission.waited(LATE_MS)
    admission.waited(0)
    assert not admission.is_full(MOST, is_large=True)
