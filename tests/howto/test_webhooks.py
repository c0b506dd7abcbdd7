"""docs/howto/call-a-webhook.md, against a real HTTP server on loopback that checks signatures by itself."""

from __future__ import annotations

import base64
import hashlib
import hmac
import importlib
import json
import ssl
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address, ip_network
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
import pytest_twisted
from twisted.internet.protocol import Factory, Protocol
from twisted.web.client import URI

from tests.howto.conftest import Page, Run, lines, make_certificate
from tests.support.harness import NodeProcess, Nodes, until
from tq_node import Reject

pytestmark = pytest.mark.cluster
PAGE = "call-a-webhook"
EVENT = {"type": "order.paid", "timestamp": "2025-11-03T10:00:00Z", "data": {"order": 7, "note": "Grüße"}}
PRIVATE = """
127.0.0.1 10.1.2.3 192.168.0.1 172.16.0.1 169.254.169.254 100.64.0.1 224.0.0.1 0.0.0.0 255.255.255.255
::1 fe80::1%eth0 fd00::1 ff02::1 2001:db8::1 ::ffff:10.0.0.1
"""
PUBLIC = "1.1.1.1 8.8.8.8 2606:4700:4700::1111 ::ffff:1.1.1.1"
SOON = {"backoff": 0.1}


class Call(NamedTuple):
    at: float
    headers: Mapping[str, str]
    body: bytes


class Receiver(ThreadingHTTPServer):
    """Answers what ``answers`` says, in order, then 204."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.calls: list[Call] = []
        self.answers: deque[tuple[int, Mapping[str, str]] | None] = deque()
        self.release = threading.Event()
        self.hung_up = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}/hook"

    def use_tls(self, certificate: Path) -> None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate)
        self.socket = context.wrap_socket(self.socket, server_side=True)
        self.url = self.url.replace("http:", "https:")


class Handler(BaseHTTPRequestHandler):
    server: Receiver
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.calls.append(Call(time.time(), headers, body))
        answer = self.server.answers.popleft() if self.server.answers else (204, {})
        if answer is None:  # never
            self.server.release.wait(30)
            self.close_connection = True
            return
        code, extra = answer
        self.send_response(code)
        for name, value in extra.items():
            self.send_header(name, value)
        if code != 204 and "X-Endless" not in extra:
            self.send_header("Content-Length", "0")
        self.end_headers()
        if "X-Endless" in extra:
            self._write_for_ever()

    def _write_for_ever(self) -> None:
        self.close_connection = True
        try:
            while True:
                self.wfile.write(b"x" * 65_536)
        except OSError:
            self.server.hung_up.set()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def environment(certificate: Path) -> Mapping[str, str]:
    return {"SSL_CERT_FILE": str(certificate)}


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server
        server.release.set()
        server.shutdown()
        thread.join()


def check_signature(call: Call, secret: str) -> None:
    """As a receiver does it: standard-webhooks.md, "Signature scheme"."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    said = call.headers
    assert abs(int(said["webhook-timestamp"]) - call.at) < 300
    signed = b".".join([said["webhook-id"].encode(), said["webhook-timestamp"].encode(), call.body])
    right = "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    assert any(hmac.compare_digest(right, one) for one in said["webhook-signature"].split(" "))


def test_a_signed_call(run: Run, page: Page, receiver: Receiver, node: NodeProcess) -> None:
    task = run("webhook", {**page.task["payload"], "url": receiver.url})
    assert (task["status"], task["result"]) == ("completed", {"status": 204}), task
    (call,) = receiver.calls
    secret = page.node[0]["WEBHOOK_SECRET"]
    check_signature(call, secret)
    with pytest.raises(AssertionError):
        check_signature(call._replace(body=call.body + b" "), secret)
    assert call.headers["webhook-id"] == task["id"]
    assert call.headers["content-type"] == "application/json"
    assert json.loads(call.body) == page.task["payload"]["event"]
    assert "factory" not in node.log


def test_the_page_s_event_is_of_the_shape_that_the_standard_recommends(page: Page) -> None:
    assert page.task["type"] == "webhook"
    assert set(page.task["payload"]["event"]) == {"type", "timestamp", "data"}


def test_it_is_the_same_message_at_each_attempt(run: Run, receiver: Receiver, page: Page) -> None:
    receiver.answers += [(500, {}), (404, {}), (302, {"Location": "http://127.0.0.1:1/"})]
    task = run("webhook", {"url": receiver.url, "event": EVENT}, id="order.7", **SOON)
    assert (task["status"], task["attempt"]) == ("completed", 4), task
    errors = [attempt["error"]["message"] for attempt in task["attempts"][:3]]
    assert errors == ["the answer was 500", "the answer was 404", "the answer was 302"]
    assert {call.headers["webhook-id"] for call in receiver.calls} == {"order%2E7"}
    assert len({call.body for call in receiver.calls}) == 1
    for call in receiver.calls:
        check_signature(call, page.node[0]["WEBHOOK_SECRET"])
    assert lines(task) == ["attempt 1: 500", "attempt 2: 404", "attempt 3: 302", "attempt 4: 204"]


def test_retry_after_is_honoured(run: Run, receiver: Receiver) -> None:
    receiver.answers += [(429, {"Retry-After": "1"}), (503, {"Retry-After": formatdate(time.time() - 60)})]
    task = run("webhook", {"url": receiver.url, "event": EVENT}, backoff=600)
    assert (task["status"], task["attempt"]) == ("completed", 3), task
    assert [attempt["error"]["type"] for attempt in task["attempts"][:2]] == ["Retry", "Retry"]
    assert receiver.calls[1].at - receiver.calls[0].at >= 1


@pytest.mark.parametrize("said", ["nonsense", "-5", ""])
def test_a_retry_after_that_says_nothing_leaves_it_to_the_backoff(run: Run, receiver: Receiver, said: str) -> None:
    receiver.answers.append((503, {"Retry-After": said}))
    task = run("webhook", {"url": receiver.url, "event": EVENT}, **SOON)
    assert (task["status"], task["attempt"]) == ("completed", 2)
    assert task["attempts"][0]["error"]["type"] == "CallFailed"


def test_a_retry_after_is_a_day_off_at_most(node: NodeProcess, receiver: Receiver) -> None:
    receiver.answers.append((503, {"Retry-After": "9" * 30}))
    task_id = node.submit("webhook", {"url": receiver.url, "event": EVENT})
    (attempt,) = until(lambda: node.status(task_id)["attempts"], what="the first attempt")
    task = node.status(task_id)
    assert (task["status"], attempt["error"]["type"]) == ("scheduled", "Retry")
    waits = datetime.fromisoformat(task["run_at"]) - datetime.fromisoformat(attempt["ended_at"])
    assert timedelta(hours=23) < waits < timedelta(hours=25)
    assert node.post(f"/tasks/cancel?id={task_id}").status == 200


def test_410_is_for_good(run: Run, receiver: Receiver) -> None:
    receiver.answers.append((410, {}))
    task = run("webhook", {"url": receiver.url, "event": EVENT}, **SOON)
    assert (task["status"], task["attempt"], task["error"]["type"]) == ("failed", 1, "Reject")
    assert len(receiver.calls) == 1


def test_a_silent_receiver_costs_the_attempt_its_timeout(run: Run, receiver: Receiver) -> None:
    receiver.answers.append(None)
    task = run("webhook", {"url": receiver.url, "event": EVENT}, timeout=0.5, **SOON)
    assert (task["status"], task["attempt"]) == ("completed", 2)
    assert task["attempts"][0]["error"]["type"] == "timeout"


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_an_answer_without_end_is_hung_up_on(run: Run, receiver: Receiver, certificate: Path, scheme: str) -> None:
    if scheme == "https":
        receiver.use_tls(certificate)
    receiver.answers.append((200, {"X-Endless": "yes"}))
    task = run("webhook", {"url": receiver.url, "event": EVENT})
    assert task["status"] == "completed"
    assert receiver.hung_up.wait(10)


def test_tls_with_the_right_certificate(run: Run, receiver: Receiver, certificate: Path) -> None:
    receiver.use_tls(certificate)
    assert run("webhook", {"url": receiver.url, "event": EVENT})["status"] == "completed"
    assert len(receiver.calls) == 1


def test_tls_with_a_certificate_of_nobody_we_know(run: Run, receiver: Receiver, tmp_path: Path) -> None:
    receiver.use_tls(make_certificate(tmp_path / "stranger.pem"))
    task = run("webhook", {"url": receiver.url, "event": EVENT}, max_attempts=1)
    assert task["status"] == "failed"
    assert "certificate verify failed" in task["error"]["message"]
    assert receiver.calls == []


@pytest.mark.parametrize("host", ["127.0.0.2", "0x7f.2", "0.0.0.0", "2130706434"])
def test_private_addresses_are_not_called(run: Run, receiver: Receiver, host: str) -> None:
    """The node may call 127.0.0.1, and nothing else that is private."""
    task = run("webhook", {"url": f"http://{host}:{receiver.server_port}/", "event": EVENT}, **SOON)
    assert (task["status"], task["attempt"], task["error"]["type"]) == ("failed", 1, "Reject"), task["error"]
    assert f"{host} is not a public address" == task["error"]["message"]
    assert receiver.calls == []


@pytest.mark.parametrize(
    "payload",
    [
        None,
        {"url": "http://127.0.0.1/"},
        {"url": 7, "event": EVENT},
        {"url": "file:///etc/passwd", "event": EVENT},
        {"url": "ftp://127.0.0.1/", "event": EVENT},
        {"url": "/hook", "event": EVENT},
        {"url": "http://127.0.0.1:port/", "event": EVENT},
        {"url": "http://", "event": EVENT},
        {"url": "http://[::1]/", "event": EVENT},
        {"url": "https://2130706433/", "event": EVENT},
    ],
)
def test_what_is_no_call_is_rejected(run: Run, payload: object) -> None:
    task = run("webhook", payload)
    assert (task["status"], task["attempt"], task["error"]["type"]) == ("failed", 1, "Reject"), task["error"]


@pytest.fixture
def webhooks(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setenv("WEBHOOK_SECRET", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    return importlib.import_module("examples.webhooks")


def test_a_known_signature(webhooks: ModuleType) -> None:
    """The example of the Standard Webhooks libraries."""
    headers = webhooks.signed("msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert headers.getRawHeaders("webhook-signature") == ["v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="]


def test_two_secrets_are_two_signatures(webhooks: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    new, old = b"n" * 24, b"o" * 24
    monkeypatch.setattr(webhooks, "SECRETS", [new, old])
    headers = webhooks.signed("m", int(time.time()), b"{}")
    said = {name: headers.getRawHeaders(name)[0] for name in ("webhook-id", "webhook-timestamp", "webhook-signature")}
    for secret in (new, old):
        check_signature(Call(time.time(), said, b"{}"), "whsec_" + base64.b64encode(secret).decode())


def test_nothing_private_is_allowed_by_default(webhooks: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhooks, "ALLOWED", [])
    for text in PRIVATE.split():
        assert not webhooks.is_allowed(ip_address(text)), text
    for text in PUBLIC.split():
        assert webhooks.is_allowed(ip_address(text)), text
    monkeypatch.setattr(webhooks, "ALLOWED", [ip_network("10.0.0.0/8")])
    assert webhooks.is_allowed(ip_address("::ffff:10.0.0.1"))
    assert not webhooks.is_allowed(ip_address("192.168.0.1"))


@pytest_twisted.ensureDeferred  # type: ignore[untyped-decorator]
async def test_one_private_address_among_public_ones_is_enough(
    webhooks: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [(0, 0, 0, "", (address, 1)) for address in ("127.0.0.1", "8.8.8.8")]
    monkeypatch.setattr(webhooks, "ALLOWED", [])
    monkeypatch.setattr(webhooks.socket, "getaddrinfo", lambda *_, **__: found)
    endpoint = webhooks.PublicConnection().endpointForURI(URI.fromBytes(b"http://both.example:1/"))
    with pytest.raises(Reject, match=r"both.example is not a public address"):
        await endpoint.connect(Factory.forProtocol(Protocol))


def test_without_a_secret_the_node_says_so_and_does_not_start(nodes: Nodes, page: Page) -> None:
    _, options = page.node
    ended = nodes.run(*options, environment={"WEBHOOK_SECRET": ""})
    assert ended.code == 1
    assert "WEBHOOK_SECRET is not set" in ended.out + ended.err
