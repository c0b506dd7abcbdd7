"""docs/howto/report-errors.md, with Sentry's own SDK and a server that takes what it sends."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.howto.conftest import Page, ended
from tests.support.harness import PROJECT, NodeProcess, until

pytestmark = pytest.mark.cluster
PAGE = "report-errors"
received: list[dict[str, Any]] = []
"""Events of all envelopes."""


class Ingest(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        lines = [json.loads(line) for line in body.split(b"\n") if line.startswith(b"{")]
        received.extend(line for line in lines if "exception" in line)
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (named so in the standard library)
        """Nothing: pytest shows what it prints."""


@pytest.fixture(scope="module")
def dsn() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Ingest)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://key@127.0.0.1:{server.server_port}/1"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def environment(dsn: str, home: Path) -> Mapping[str, str]:
    """A distribution beside the node that offers the hooks, as the page's ``pyproject.toml`` says."""
    said = Page(PAGE).text.partition('entry-points."taskqueue.middleware"]\n')[2].partition("\n")[0].replace('"', "")
    info = home / "shop-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shop\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[taskqueue.middleware]\n{said}\n")
    return {"SENTRY_DSN": dsn, "PYTHONPATH": f"{home}:{PROJECT}"}


def test_what_a_handler_raises_is_reported_with_its_task(node: NodeProcess, page: Page) -> None:
    task = ended(node, node.post("/tasks/submit", page.task).json["task_id"])
    assert task["error"]["type"] == "ZeroDivisionError"
    until(lambda: received, deadline_s=20, what="an event arrived")
    (event,) = received
    assert event["exception"]["values"][0]["type"] == "ZeroDivisionError"
    assert event["transaction"] == "charge"
    assert event["tags"]["queue"] == "default"
    assert event["contexts"]["task"] == {"id": task["id"], "attempt": 1, "left": 0}
