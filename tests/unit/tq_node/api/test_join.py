"""``POST /cluster/join``: the secret goes to programs on this machine, and to nobody else."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from twisted.internet.address import HostnameAddress, IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IAddress
from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher
from zope.interface import implementer

from tests.support.memory_cluster import CHALLENGE, CLUSTER_ID, INVITED_UNTIL_US, SECRET
from tests.unit.tq_node.api.talk import Reply, World
from tq_node import errors, limits
from tq_node.api.http import local_only
from tq_node.api.joining import InvitedAnswer, JoinAnswer
from tq_node.facade import CHALLENGE_BYTES, INVITATION_SCHEME, JOIN_SCHEME, PROOF_BYTES
from tq_node.runtime.join_proof import proof
from tq_node.tokens import Role, hash_of, is_well_formed

JOIN = "/cluster/join"


@pytest.fixture(autouse=True)
def _own_users(monkeypatch: pytest.MonkeyPatch) -> None:
    """The connections of these tests are in memory; ``test_socket_owner`` has real ones."""
    monkeypatch.setattr(local_only, "is_own_users", lambda transport: True)


@pytest.fixture
def logged() -> Iterator[list[str]]:
    lines: list[str] = []

    @implementer(ILogObserver)
    def observe(event: LogEvent) -> None:
        lines.append(f"{formatEvent(event)} {event}")

    globalLogPublisher.addObserver(observe)
    yield lines
    globalLogPublisher.removeObserver(observe)


def is_denied(world: World, reply: Reply) -> bool:
    assert SECRET.encode() not in reply.body
    assert "invite" not in world.queue.calls
    return (reply.status, reply.code) == (403, "denied")


def test_a_program_on_this_machine_gets_the_secret(three: World, logged: list[str]) -> None:
    reply = three.post(JOIN)
    assert reply.status == 200
    assert reply.body == (
        b'{"success":true,"cluster_id":"%b","secret":"%b","peer":"127.0.0.1:9080"}'
        % (CLUSTER_ID.encode(), SECRET.encode())
    )
    assert reply.headers["cache-control"] == "no-store"
    assert not any(SECRET in line for line in logged)


def test_an_answer_that_is_shown_hides_the_secret() -> None:
    assert SECRET not in repr(JoinAnswer(True, CLUSTER_ID, SECRET, "127.0.0.1:9080"))


def test_a_body_is_not_looked_at(world: World) -> None:
    assert world.post(JOIN, b"{").status == 200
    assert world.post(JOIN, {"node": "node-2"}).status == 200


@pytest.mark.parametrize(
    "peer",
    [
        IPv4Address("TCP", "127.0.0.1", 1),
        IPv4Address("TCP", "127.8.9.10", 1),
        IPv6Address("TCP", "::1", 1),
        IPv6Address("TCP", "::ffff:127.0.0.1", 1),
        UNIXAddress(b"/run/taskqueue"),
        UNIXAddress(None),
    ],
    ids=repr,
)
def test_where_this_machine_asks_from(world: World, peer: IAddress) -> None:
    world.peer = peer
    assert world.post(JOIN).status == 200


@pytest.mark.parametrize(
    "peer",
    [
        IPv4Address("TCP", "192.168.1.5", 1),
        IPv4Address("TCP", "0.0.0.0", 1),
        IPv4Address("TCP", "128.0.0.1", 1),
        IPv6Address("TCP", "fe80::1", 1),
        IPv6Address("TCP", "fe80::1%lo", 1),
        IPv6Address("TCP", "::", 1),
        IPv6Address("TCP", "::ffff:10.0.0.1", 1),
        IPv4Address("TCP", "localhost", 1),
        HostnameAddress(b"localhost", 1),
    ],
    ids=repr,
)
def test_where_strangers_ask_from(world: World, peer: IAddress) -> None:
    world.peer = peer
    assert is_denied(world, world.post(JOIN))


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "localhost:8080",
        "LocalHost:8080",
        "127.0.0.1",
        "127.0.0.1:8080",
        "127.1.2.3:80",
        "[::1]",
        "[::1]:8080",
    ],
)
def test_names_that_mean_this_machine(world: World, host: str) -> None:
    assert world.post(JOIN, Host=host).status == 200


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "evil.example:8080", "localhost.evil.example", "127.0.0.1.evil.example", "evil.example:127"),
        *("127.evil.example", "localhost@evil.example", "xlocalhost", "localhost:x", "localhost:", "", "10.0.0.1:8080"),
        *("0.0.0.0:8080", "[::]:8080", "::1", "127.1", "2130706433", "localhost, evil.example"),
    ],
)
def test_a_page_whose_name_leads_here_is_refused(world: World, host: str) -> None:
    # A browser sends the page's own name, and calls this the same origin.
    for headers in ({}, {"Origin": f"http://{host}"}):
        reply = world.post(JOIN, Host=host, **headers)
        assert is_denied(world, reply) or reply.code in ("misdirected", "malformed")


def test_a_known_name_that_is_no_loopback_name_is_not_enough() -> None:
    world = World(host_names=frozenset({"localhost", "node-1"}))
    assert world.get("/cluster", Host="node-1:8080").status == 200
    assert is_denied(world, world.post(JOIN, Host="node-1:8080"))
    assert is_denied(world, world.post("http://node-1/cluster/join"))
    world.close()


def test_a_page_of_another_site_is_refused(world: World) -> None:
    reply = world.post(JOIN, Origin="http://evil.example")
    assert (reply.status, reply.code) == (403, "cross_origin")
    assert "invite" not in world.queue.calls


@pytest.mark.parametrize("lines", [b"", b"Host: localhost\r\nHost: evil.example\r\n"], ids=["no host", "two hosts"])
def test_one_host_is_named(world: World, lines: bytes) -> None:
    client = world.connect()
    client.send(b"POST /cluster/join HTTP/1.0\r\n%bContent-Length: 0\r\n\r\n" % lines)
    assert SECRET.encode() not in client.received
    assert b" 400 " in client.received or b" 403 " in client.received


@pytest.mark.parametrize("header", ["X_Forwarded_For", "Forwarded", "X_Real_IP", "Via"])
def test_what_a_proxy_passes_on_is_refused(world: World, header: str) -> None:
    assert is_denied(world, world.post(JOIN, **{header: "127.0.0.1"}))


def test_strangers_learn_nothing_of_parameters(world: World) -> None:
    assert world.post(f"{JOIN}?node=node-2").code == "bad_parameter"
    world.peer = IPv4Address("TCP", "10.0.0.1", 1)
    assert is_denied(world, world.post(f"{JOIN}?node=node-2"))


def test_only_by_post(world: World) -> None:
    for method in ("GET", "HEAD", "PUT"):
        assert world.call(method, JOIN).status == 405
    assert not world.queue.calls


def test_what_the_node_says_to_it(world: World) -> None:
    world.queue.fail_next("invite", errors.Denied("the secret of this cluster is in a file"))
    reply = world.post(JOIN)
    assert (reply.status, reply.code, "retry-after" in reply.headers) == (403, "denied", False)
    world.queue.members.invitation = None
    reply = world.post(JOIN)
    assert (reply.status, reply.code, reply.headers["retry-after"]) == (503, "not_ready", "1")


def test_another_user_of_this_machine_is_a_stranger(monkeypatch: pytest.MonkeyPatch) -> None:
    """A5 (a): any process of the machine got the secret, and with it could end any node."""
    world = World()
    try:
        monkeypatch.setattr(local_only, "is_own_users", lambda transport: False)
        reply = world.post(JOIN)
        assert (reply.status, reply.code) == (403, "denied")
        assert SECRET not in reply.body.decode()
        monkeypatch.setattr(local_only, "is_own_users", lambda transport: None)
        assert is_denied(world, world.post(JOIN)), "where the kernel tells nobody, nobody is told"
    finally:
        world.close()


# --- who proves the secret ---
STRANGER = IPv4Address("TCP", "192.168.1.5", 1)
OFFERED = f'{JOIN_SCHEME} challenge="{CHALLENGE}"'
PROOF = proof(bytes.fromhex(SECRET), bytes.fromhex(CHALLENGE)).hex()


def shown(challenge: str = CHALLENGE, proof: str = PROOF) -> str:
    return f'{JOIN_SCHEME} challenge="{challenge}", proof="{proof}"'


def test_a_stranger_is_given_a_challenge_and_learns_nothing_else(world: World) -> None:
    world.peer = STRANGER
    reply = world.post(JOIN)
    assert is_denied(world, reply)
    assert reply.headers["www-authenticate"] == OFFERED
    assert not any(word.encode() in reply.body for word in (CLUSTER_ID, SECRET, "9080", "node-"))


def test_a_node_without_a_secret_gives_no_challenge(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.peer = STRANGER
    monkeypatch.setattr(world.queue, "challenge", lambda: "")
    assert "www-authenticate" not in world.post(JOIN).headers


def test_a_member_whose_secret_is_in_a_file_gives_one_on_loopback_too(world: World) -> None:
    world.queue.fail_next("invite", errors.Denied("the secret of this cluster is in a file"))
    assert world.post(JOIN).headers["www-authenticate"] == OFFERED


def test_who_proves_the_secret_learns_the_peers_and_nothing_else(three: World, logged: list[str]) -> None:
    three.peer = STRANGER
    reply = three.post(JOIN, Authorization=shown())
    assert (reply.status, reply.body) == (
        200,
        b'{"success":true,"peers":["127.0.0.1:9080","127.0.0.1:9081","127.0.0.1:9082"]}',
    )
    assert "invite" not in three.queue.calls
    assert not any(PROOF in line for line in logged)


@pytest.mark.parametrize(
    "authorization",
    [
        shown(proof="00" * PROOF_BYTES),
        shown(challenge="00" * CHALLENGE_BYTES),
        shown(proof=PROOF[:-2]),
        shown(proof=PROOF.upper()),
        shown(proof=""),
        shown() + ", more",
        JOIN_SCHEME,
        f"{JOIN_SCHEME} {PROOF}",
        f"{JOIN_SCHEME}x",
    ],
)
def test_what_proves_nothing(world: World, authorization: str) -> None:
    """On loopback, too: who shows a proof is judged by it."""
    for peer in (STRANGER, IPv4Address("TCP", "127.0.0.1", 1)):
        world.peer = peer
        reply = world.post(JOIN, Authorization=authorization)
        assert (reply.status, reply.code) == (401, "unauthorized")
        assert not any(word.encode() in reply.body for word in (CLUSTER_ID, SECRET, "9080"))
    assert "invite" not in world.queue.calls


def test_wrong_proofs_come_at_the_pace_of_wrong_tokens(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.peer = STRANGER
    held: list[object] = []
    monkeypatch.setattr(world.site.server.refused_callers, "refuse", held.append)
    client = world.connect()
    client.send(f"POST {JOIN} HTTP/1.1\r\nHost: localhost\r\nAuthorization: {JOIN_SCHEME}\r\n\r\n".encode())
    assert len(held) == 1
    assert client.received == b""


@pytest.mark.parametrize("path", [JOIN, "/health"])
@pytest.mark.parametrize("more", ["Content-Length: {}", "Transfer-Encoding: chunked"])
def test_no_body_is_held_for_a_stranger_where_tokens_are_asked_for(world: World, path: str, more: str) -> None:
    """Five of them would have taken all that may be held of bodies, and nobody else could have sent a batch."""
    size = limits.ANONYMOUS_BODY_BYTES_MAX + 1
    head = f"{'GET' if path == '/health' else 'POST'} {path} HTTP/1.1\r\nHost: localhost\r\n{more.format(size)}\r\n\r\n"
    body = b"%x\r\n" % size + b"a" * size if "chunked" in more else b"a" * size
    token = {"Authorization": f"Bearer {world.tokens.make(Role.ADMIN)}"}
    client = world.connect()
    client.send(head.encode() + body)
    assert b" 413 " in client.received
    assert world.site.server.bodies_held_bytes == 0
    assert world.call("GET" if path == "/health" else "POST", path, b"a" * size, **token).status in (200, 403)


def test_two_authorizations_are_none(world: World) -> None:
    client = world.connect()
    both = f"Authorization: {shown()}\r\n" * 2
    client.send(f"POST {JOIN} HTTP/1.1\r\nHost: localhost\r\n{both}Content-Length: 0\r\n\r\n".encode())
    assert b"9080" not in client.received


# --- who was invited ---
INVITE = "/cluster/invite"


def invited(world: World) -> str:
    reply = world.post(INVITE)
    assert reply.status == 200
    return str(reply.json["invitation"])


def test_an_invitation_is_told_once_and_kept_as_its_hash(world: World, logged: list[str]) -> None:
    reply = world.post(INVITE)
    assert reply.json.keys() == {"success", "invitation", "expires_at"}
    assert reply.json["expires_at"].startswith("2027-01-15T08:00:00")
    assert is_well_formed(reply.json["invitation"])
    assert world.queue.members.invitations == {hash_of(reply.json["invitation"])}
    assert not any(reply.json["invitation"] in line for line in logged)
    assert reply.json["invitation"] not in repr(InvitedAnswer(True, reply.json["invitation"], ""))
    assert world.post(INVITE).json["invitation"] != reply.json["invitation"]


def test_who_was_invited_gets_all_that_it_needs_and_nobody_after_it(three: World, logged: list[str]) -> None:
    three.peer = STRANGER
    invitation = invited(three)
    reply = three.post(JOIN, Authorization=f"{INVITATION_SCHEME} {invitation}")
    assert reply.json == {
        "success": True,
        "cluster_id": CLUSTER_ID,
        "secret": SECRET,
        "peer": "127.0.0.1:9080",
        "peers": ["127.0.0.1:9081", "127.0.0.1:9082"],
    }
    again = three.post(JOIN, Authorization=f"{INVITATION_SCHEME} {invitation}")
    assert (again.status, again.code) == (401, "unauthorized")
    assert SECRET.encode() not in again.body
    assert not any(invitation in line or SECRET in line for line in logged)


@pytest.mark.parametrize("shown", ["", " ", " x", " tq_" + "0" * 49, "x"])
def test_what_is_no_invitation_is_not_even_looked_for(world: World, shown: str) -> None:
    world.peer = STRANGER
    reply = world.post(JOIN, Authorization=f"{INVITATION_SCHEME}{shown}")
    assert (reply.status, reply.code) == (401, "unauthorized")
    assert "take_invitation" not in world.queue.calls


def test_an_access_token_is_no_invitation_and_the_other_way_round(world: World) -> None:
    token = world.tokens.make(Role.ADMIN)
    reply = world.post(JOIN, Authorization=f"{INVITATION_SCHEME} {token}")
    assert (reply.status, reply.code) == (401, "unauthorized")
    invitation = str(world.post(INVITE, Authorization=f"Bearer {token}").json["invitation"])
    assert world.post(INVITE, Authorization=f"Bearer {invitation}").status == 401
    assert world.queue.orders[-1][0] == "put_invitation"
    assert INVITED_UNTIL_US
