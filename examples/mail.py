"""Send mail by SMTP, one recipient a task."""

import os
import smtplib
import ssl
from contextlib import closing, suppress
from email.errors import MessageError
from email.headerregistry import Address
from email.message import EmailMessage
from email.utils import localtime, parseaddr
from typing import Any, NoReturn
from urllib.parse import quote

from tq_node import Context, Reject, Retry, task

HOST = os.environ.get("SMTP_HOST", "localhost")
PORT = int(os.environ.get("SMTP_PORT", "25"))
USER = os.environ.get("SMTP_USER")
"""With a user, the connection is encrypted by STARTTLS first, and SMTP_PASSWORD is the password."""
SENDER = os.environ.get("MAIL_FROM", "taskqueue@localhost")
LATER_S = float(os.environ.get("MAIL_LATER_S", "300"))
"""Servers that put strangers off at first (greylisting) want to wait some minutes."""
ANSWER_S = 20
"""How long the server may take for one answer."""


@task("mail", timeout=60, max_attempts=10, backoff={"kind": "exponential", "base": 15, "cap": 3600})
def send_mail(payload: Any, context: Context) -> dict[str, str]:
    message = compose(payload, context.task_id)
    try:
        with closing(smtplib.SMTP(HOST, PORT, timeout=ANSWER_S)) as server:
            if USER:
                server.starttls(context=ssl.create_default_context())
                server.login(USER, os.environ["SMTP_PASSWORD"])
            server.send_message(message)
            with suppress(smtplib.SMTPException):
                server.quit()  # the mail is accepted: whatever comes now must not send it again
    except smtplib.SMTPRecipientsRefused as refused:
        ((code, text),) = refused.recipients.values()
        refuse(code, text)
    except (smtplib.SMTPSenderRefused, smtplib.SMTPDataError) as refused:
        refuse(refused.smtp_code, refused.smtp_error)
    context.log(f"accepted by {HOST}:{PORT}")
    return {"message_id": message["Message-ID"]}


def compose(payload: Any, task_id: str) -> EmailMessage:
    """The same mail at each attempt, but for its date."""
    message = EmailMessage()
    try:
        message["From"] = SENDER
        message["To"] = Address(addr_spec=payload["to"])
        message["Subject"] = payload["subject"]  # with a line break, it could add headers of its own: a ValueError
        message.set_content(payload["text"])
    except (AttributeError, LookupError, TypeError, ValueError, MessageError) as why:
        raise Reject(f"the payload is no mail: {why!r}") from None
    domain = parseaddr(SENDER)[1].rpartition("@")[2]
    message["Message-ID"] = f"<{quote(task_id, safe='').replace('.', '%2E')}@{domain}>"
    message["Date"] = localtime()
    return message


def refuse(code: int, text: bytes | str) -> NoReturn:
    """4xx: not now; 5xx: never (RFC 5321, 4.2.1)."""
    said = f"{code} {text.decode('utf-8', 'replace') if isinstance(text, bytes) else text}"
    if 400 <= code < 500:
        raise Retry(LATER_S, said)
    raise Reject(said)
