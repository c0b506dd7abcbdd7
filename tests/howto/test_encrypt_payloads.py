"""docs/howto/encrypt-payloads.md: what is sealed is nowhere at the node, and comes back as it was."""

from __future__ import annotations

import inspect
import os
import secrets
import textwrap
from pathlib import Path
from typing import Any

import pytest

from examples.sealed import Sealed, key_in
from tests.howto.conftest import Page
from tests.support.harness import NodeProcess, Nodes
from tq_node.client import Queue, Undecoded

pytestmark = pytest.mark.cluster
SECRET = "Ann Example of 12 Private Lane"


def test_the_page_s_program(nodes: Nodes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = Page("encrypt-payloads")
    key_file = tmp_path / "sealed.key"
    key_file.write_text(secrets.token_hex(64))
    environment, options = page.node
    assert environment == {"SEALED_KEY_FILE": key_file.name}
    node = nodes.start(*options, cwd=tmp_path, environment=environment)
    told = page.code.replace("localhost:8080", f"localhost:{node.http_port}").replace("Ann Example", SECRET)
    exec(compile(told.replace("sealed.key", str(key_file)), "page", "exec"), {})
    invoice = {"customer": SECRET, "amount": 120}
    assert capsys.readouterr().out == f"{ {'settled': 120, 'of': SECRET} }\n{invoice}\n"
    check_others(node, key_file, invoice)
    assert node.terminate() == 0
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert SECRET.encode() not in path.read_bytes(), path


def check_others(node: NodeProcess, key_file: Path, invoice: dict[str, Any]) -> None:
    """Who has no key, or another one, reads nothing; the same submit is the same task."""
    assert SECRET not in node.get("/tasks/list").body.decode()
    codec = Sealed(key_in(key_file))
    with Queue(f"localhost:{node.http_port}", codec=codec) as queue:
        ours = [queue.submit("settle", invoice, id="mine") for _ in range(2)]
        assert ours[0].result(timeout=30) == {"settled": 120, "of": SECRET}
    with Queue(f"localhost:{node.http_port}", codec=Sealed(secrets.token_bytes(64))) as stranger:
        read = stranger.get("mine")
        assert isinstance(read.payload, Undecoded)
        assert isinstance(read.result, Undecoded)


def test_the_page_shows_the_code_as_it_is() -> None:
    shown = [body for language, body in Page("encrypt-payloads").blocks if body.startswith("class Sealed")]
    assert shown == [textwrap.dedent(inspect.getsource(Sealed))]


def test_a_key_of_another_length_is_refused(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(os.urandom(32).hex())
    with pytest.raises(ValueError, match="no key of 64 bytes"):
        key_in(tmp_path / "key")
