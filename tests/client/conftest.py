"""One real node for each module that asks for it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from _pytest.tmpdir import TempPathFactory

from tests.support.harness import NodeProcess, Nodes

HANDLERS = "tests.client.handlers"


@pytest.fixture(scope="module")
def node(tmp_path_factory: TempPathFactory) -> Iterator[NodeProcess]:
    nodes = Nodes(tmp_path_factory.mktemp("node"))
    try:
        node = nodes.start(
            "--node-id", "n", "--handlers", HANDLERS, environment={"TQ_TEST_BIRTH_GUARD_S": "0.2"}
        )  # fmt: skip
        yield node
        assert node.terminate() == 0, node.log_tail()
        node.assert_log_is_clean()
    finally:
        nodes.close()
