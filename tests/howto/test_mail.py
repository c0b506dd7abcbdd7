"""docs/howto/send-mail.md, against a real SMTP server on loopback that has moods."""

from __future__ import annotations

import email
import smtplib
import ssl
from collections import deque
from collections.abc import Iterator, Mapping
from email.message import EmailMessage
from email.policy import default
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult

from tests.howto.conftest import Page, Run, lines
from tests.support.harness import NodeProcess, free_port
from tq_node import Context

pytestmark = pytest.mark.cluster
PAGE = "send-mail"
SOON = {"backoff": 0.1}


class Mailbox:
    """Takes mail, unless ``moods`` says otherwise: what it answers to the next DATA or RCPT commands."""

    def __init__(self) -> None:
        self.mails: list[EmailMessage] = []
        self.seen: list[str] = []
        """Message-ID of all that was sent, taken or not."""
        self.at_rcpt: deque[str] = deque()
        self.at_data: deque[str] = deque()

    async def handle_RCPT(self, server: Any, session: Any, envelope: Any, address: str, options: Any) -> str:
        if self.at_rcpt:
            return self.at_rcpt.popleft()
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        mail = email.message_from_bytes(envelope.content, policy=default)
        assert isinstance(mail, EmailMessage)
        self.seen.append(mail["Message-ID"])
        if self.at_data:
            return self.at_data.popleft()
        self.mails.append(mail)
        return "250 taken"


class MailServer:
    """Goes and comes back at the same port."""

    def __init__(self) -> None:
        self.port = free_port()
        self.box = Mailbox()
        self._controller: Controller | None = None

    def start(self) -> None:
        self._controller = Controller(self.box, hostname="127.0.0.1", port=self.port)
        self._controller.start()

    def stop(self) -> None:
        if self._controller is not None:
            self._controller.stop()
            self._controller = None

    def empty(self) -> Mailbox:
        self.stop()
        self.box = Mailbox()
        self.start()
        return self.box


@pytest.fixture(scope="module")
def server() -> Iterator[MailServer]:
    server = MailServer()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def environment(server: MailServer) -> Mapping[str, str]:
    return {"SMTP_HOST": "127.0.0.1", "SMTP_PORT": str(server.port), "MAIL_LATER_S": "0.1"}


@pytest.fixture
def box(server: MailServer) -> Mailbox:
    return server.empty()


def test_the_page_s_mail_arrives(run: Run, page: Page, box: Mailbox) -> None:
    task = run(**submission(page.task))
    assert task["status"] == "completed", task
    (mail,) = box.mails
    said = page.task["payload"]
    assert (mail["To"], mail["Subject"], mail.get_content().strip()) == (said["to"], said["subject"], said["text"])
    assert mail["From"] == "shop@example.com"
    assert mail["Message-ID"] == task["result"]["message_id"] == f"<{task['id']}@example.com>"
    assert lines(task)[-1].startswith("accepted by")


def submission(task: Mapping[str, Any]) -> dict[str, Any]:
    return {"task_type": task["type"], **{name: value for name, value in task.items() if name != "type"}}


MAIL = {"to": "ann@example.com", "subject": "Grüße", "text": "…"}


def test_451_is_tried_again_with_the_same_message_id(run: Run, box: Mailbox) -> None:
    box.at_data.append("451 greylisted, come back later")
    task = run("mail", MAIL, id="order:7.paid")
    assert (task["status"], task["attempt"]) == ("completed", 2)
    assert task["attempts"][0]["error"]["type"] == "Retry"
    assert "greylisted" in task["attempts"][0]["error"]["message"]
    assert box.seen == ["<order%3A7%2Epaid@example.com>"] * 2
    assert [mail["Subject"] for mail in box.mails] == ["Grüße"]


@pytest.mark.parametrize("when", ["at_rcpt", "at_data"])
def test_5xx_is_for_good(run: Run, box: Mailbox, when: str) -> None:
    getattr(box, when).append("550 no such user")
    task = run("mail", MAIL)
    assert (task["status"], task["attempt"], task["error"]["type"]) == ("failed", 1, "Reject")
    assert "550" in task["error"]["message"]
    assert box.mails == []


@pytest.mark.parametrize(
    "payload",
    [
        None,
        {"to": "ann@example.com"},
        {**MAIL, "to": "ann@example.com\nBcc: all@example.com"},
        {**MAIL, "subject": "a\r\nX-Header: b"},
        {**MAIL, "to": "ann@example.com, bob@example.com"},
        {**MAIL, "to": "nobody"},
        {**MAIL, "to": ["ann@example.com"]},
        {**MAIL, "to": ""},
        {**MAIL, "to": 7},
        {**MAIL, "subject": ["a"]},
        {**MAIL, "text": 7},
    ],
)
def test_what_is_no_mail_is_rejected_before_anybody_is_asked(run: Run, box: Mailbox, payload: object) -> None:
    task = run("mail", payload)
    assert (task["status"], task["attempt"], task["error"]["type"]) == ("failed", 1, "Reject"), task["error"]
    assert box.seen == []


def test_a_server_that_is_away_costs_attempts(run: Run, box: Mailbox, server: MailServer, node: NodeProcess) -> None:
    server.stop()
    try:
        task = run("mail", MAIL, max_attempts=2, **SOON)
        assert task["status"] == "failed"
        assert [attempt["error"]["type"] for attempt in task["attempts"]] == ["ConnectionRefusedError"] * 2
    finally:
        server.start()
    assert node.post(f"/tasks/retry?id={task['id']}").status == 200
    again = node.status(task["id"], wait_s=20)
    assert again["status"] == "completed"
    assert box.seen == [f"<{task['id']}@example.com>"]


class Login:
    """Knows one user. ``handled=False`` leaves the answer to the server."""

    def __call__(self, server: Any, session: Any, envelope: Any, mechanism: str, data: Any) -> AuthResult:
        return AuthResult(success=(data.login, data.password) == (b"shop", b"right"), handled=False)


@pytest.mark.filterwarnings("ignore:Session.login_data is deprecated")
def test_a_user_means_tls_and_a_login(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a wrong password is not the mail's fault."""
    from examples import mail

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    box = Mailbox()
    controller = Controller(
        box,
        hostname="127.0.0.1",
        port=free_port(),
        tls_context=context,
        require_starttls=True,
        auth_required=True,
        authenticator=Login(),
    )
    controller.start()
    try:
        monkeypatch.setattr(mail, "HOST", "127.0.0.1")
        monkeypatch.setattr(mail, "PORT", controller.port)
        monkeypatch.setattr(mail, "USER", "shop")
        monkeypatch.setenv("SMTP_PASSWORD", "right")
        with pytest.raises(ssl.SSLCertVerificationError):
            mail.send_mail(MAIL, Context())
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        mail.send_mail(MAIL, Context())
        monkeypatch.setenv("SMTP_PASSWORD", "wrong")
        with pytest.raises(smtplib.SMTPAuthenticationError):
            mail.send_mail(MAIL, Context())
    finally:
        controller.stop()
    assert len(box.mails) == 1
