"""What the documents say of the client is so: their code runs, in order, against a node that runs its simulated handlers."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from _pytest.tmpdir import TempPathFactory

from tests.client import reference
from tests.support.harness import PROJECT, NodeProcess, Nodes
from tq_node.client import Queue

pytestmark = pytest.mark.cluster
ADDRESSES = "localhost:8080,8081,8082"
PAGES = ("docs/howto/use-the-python-client.md", "README.md")


@pytest.fixture(scope="module")
def plain_node(tmp_path_factory: TempPathFactory) -> Iterator[NodeProcess]:
    nodes = Nodes(tmp_path_factory.mktemp("plain"))
    try:
        yield nodes.start("--node-id", "n", environment={"TQ_TEST_BIRTH_GUARD_S": "0.2"})
    finally:
        nodes.close()


def blocks(page: str) -> list[str]:
    """Python that uses the client, or what an earlier block has made with it."""
    text = (PROJECT / page).read_text("utf-8")
    found = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    begun = next((place for place, code in enumerate(found) if "tq_node.client" in code), len(found))
    return [code for code in found[begun:] if "@task" not in code]


@pytest.mark.parametrize("page", PAGES)
def test_the_code_of_a_page_runs(page: str, plain_node: NodeProcess, capsys: pytest.CaptureFixture[str]) -> None:
    found = blocks(page)
    assert found
    names: dict[str, object] = {"__name__": "page"}
    try:
        for code in found:
            here = code.replace(ADDRESSES, f"localhost:{plain_node.http_port}")
            exec(compile(here, page, "exec"), names)
    finally:
        queue = names.get("queue")
        if isinstance(queue, Queue):
            queue.close()
    assert "Email sent: ann@example.com" in capsys.readouterr().out


def test_the_reference_is_what_the_code_says() -> None:
    """If not: ``python -m tests.client.reference > docs/reference/python-client.md``."""
    assert (PROJECT / "docs/reference/python-client.md").read_text("utf-8") == reference.page()
