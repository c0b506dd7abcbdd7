"""Fixtures for pytest, found by it wherever this distribution is installed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tq_node.testing.eager import EagerQueue


@pytest.fixture
def eager_queue() -> Iterator[EagerQueue]:
    """A queue that runs what is submitted at once; task functions submit to it in this test."""
    from tq_node.testing.eager import EagerQueue  # a run of pytest that never asks for it pays nothing

    with EagerQueue() as queue:
        yield queue
