"""What an audit log costs a hot submit: nothing where there is none, and a bounded part of it where there is."""

from __future__ import annotations

import pytest

from bench.instructions import measuring
from tests.costs.test_instructions import needs_callgrind

LINE_INSTRUCTIONS_MAX = 60_000
"""Of one line: to make the record, the line and its hash, and to write it."""


@needs_callgrind
@pytest.mark.slow
def test_instructions_of_a_line() -> None:
    without, with_log = (measuring.measure(part) for part in ("request, submit", "request, submit, audited"))
    print(f"\nsubmit: {without:,.0f} instructions, with an audit log {with_log:,.0f}")
    assert without < with_log < without + LINE_INSTRUCTIONS_MAX
