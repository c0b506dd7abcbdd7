"""Call a webhook, signed as Standard Webhooks says."""

import hashlib
import hmac
import json
import os
import socket
import time
from base64 import b64decode, b64encode
from datetime import UTC
from email.utils import parsedate_to_datetime
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any

from hyperlink import DecodedURL
from treq.client import HTTPClient
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.interfaces import IProtocol, IStreamClientEndpoint
from twisted.internet.ssl import optionsForClientTLS
from twisted.internet.threads import deferToThread
from twisted.web.client import URI, Agent, ResponseFailed
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgentEndpointFactory
from zope.interface import implementer

from tq_node import Context, Reject, Retry, task

SECRETS = [
    b64decode(word.removeprefix("whsec_"), validate=True) for word in os.environ.get("WEBHOOK_SECRET", "").split()
]
"""Usually one; two while one replaces the other: for the receiver one right signature is enough."""
if not SECRETS:
    raise RuntimeError("WEBHOOK_SECRET is not set")
ALLOWED = [ip_network(word) for word in os.environ.get("WEBHOOK_ALLOW", "").split()]
"""Networks that may be called although they are not public."""
ANSWER_S = 15
WAIT_S_MAX = 24 * 3600


@task(
    "webhook", timeout=30, max_attempts=12, backoff={"kind": "exponential", "base": 5, "cap": 6 * 3600}, run="reactor"
)
async def call_webhook(payload: Any, context: Context) -> dict[str, int]:
    try:
        url = DecodedURL.from_text(payload["url"]).to_uri()
        body = json.dumps(payload["event"], separators=(",", ":")).encode()
    except (KeyError, TypeError, ValueError) as why:
        raise Reject(f"the payload needs a url and an event: {why!r}") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise Reject(f"not a URL to call: {url.to_text()}")
    code, retry_after = await post(url, body, signed(context.task_id, int(time.time()), body))
    context.log(f"attempt {context.attempt}: {code}")
    if 200 <= code < 300:
        return {"status": code}
    if code == 410:
        raise Reject("410: nobody wants these calls any more")
    wait_s = seconds(retry_after)
    if wait_s is not None and (code == 429 or code >= 500):
        raise Retry(min(wait_s, WAIT_S_MAX), f"{code}, again in {wait_s:.0f} s")
    raise CallFailed(f"the answer was {code}")


class CallFailed(Exception):
    """The task's backoff says when the next attempt comes."""


async def post(url: Any, body: bytes, headers: Headers) -> tuple[int, str]:
    """The answer's status and Retry-After; not its body, which might have no end."""
    connection = PublicConnection()
    client = HTTPClient(Agent.usingEndpointFactory(reactor, connection))
    try:
        response = await client.post(
            url, data=body, headers=headers, allow_redirects=False, unbuffered=True, timeout=ANSWER_S
        )
    except (CancelledError, ResponseFailed) as why:
        raise CallFailed(f"no answer within {ANSWER_S} s, or only a part of one: {why!r}") from why
    finally:
        connection.abort()
    return response.code, response.headers.getRawHeaders("retry-after", [""])[0]


def signed(message_id: str, timestamp: int, body: bytes) -> Headers:
    message_id = message_id.replace(".", "%2E")  # a dot separates the three parts of what is signed
    content = f"{message_id}.{timestamp}.".encode() + body
    signatures = [b64encode(hmac.digest(secret, content, hashlib.sha256)).decode() for secret in SECRETS]
    return Headers(
        {
            "content-type": ["application/json"],
            "webhook-id": [message_id],
            "webhook-timestamp": [str(timestamp)],
            "webhook-signature": [" ".join(f"v1,{signature}" for signature in signatures)],
        }
    )


def seconds(retry_after: str) -> float | None:
    """Retry-After is a number of seconds or a date. None where it is neither."""
    if retry_after.isascii() and retry_after.isdigit():
        return float(retry_after)
    try:
        when = parsedate_to_datetime(retry_after)
    except ValueError:
        return None
    return max(0.0, when.replace(tzinfo=when.tzinfo or UTC).timestamp() - time.time())


# --- URLs come from others: they must not lead to the machines around us ---
def is_allowed(address: IPv4Address | IPv6Address) -> bool:
    address = getattr(address, "ipv4_mapped", None) or address
    return (address.is_global and not address.is_multicast) or any(address in network for network in ALLOWED)


@implementer(IAgentEndpointFactory, IStreamClientEndpoint)
class PublicConnection:
    """For one call. The name is looked up once; the address that was checked is connected to."""

    uri: URI
    protocol: Any = None

    def endpointForURI(self, uri: URI) -> IStreamClientEndpoint:
        self.uri = uri
        return self

    def connect(self, factory: Any) -> Deferred[IProtocol]:
        factory.noisy = False  # or Twisted logs two lines for each call
        return Deferred.fromCoroutine(self._connect(factory))

    async def _connect(self, factory: Any) -> IProtocol:
        host = self.uri.host.decode("ascii")
        found = await deferToThread(socket.getaddrinfo, host, self.uri.port, type=socket.SOCK_STREAM)
        addresses = [str(sockaddr[0]) for *_, sockaddr in found]
        if not all(is_allowed(ip_address(address)) for address in addresses):
            raise Reject(f"{host} is not a public address")
        if host.rpartition(".")[2][:1].isdigit() and host not in addresses:
            raise Reject(f"{host} is no usual way to write an address")  # 0x7f.1, say; TLS can't deal with them
        endpoint: IStreamClientEndpoint = HostnameEndpoint(reactor, addresses[0], self.uri.port)
        if self.uri.scheme == b"https":
            endpoint = wrapClientTLS(optionsForClientTLS(host), endpoint)
        protocol = self.protocol = await endpoint.connect(factory)
        return protocol

    def abort(self) -> None:
        if self.protocol is not None:
            self.protocol.transport.abortConnection()
