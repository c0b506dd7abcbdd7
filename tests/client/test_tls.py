"""HTTPS, with the certificate checked; the token, and who gets it."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from tests.client.scripted import Reply, Request, accept, run, scripted, until
from tests.howto.conftest import make_certificate
from tests.support.certificates import HOSTS, make_ca
from tq_node.client import AsyncQueue, OutcomeUnknown, Unreachable, limits


def test_https_with_a_context_of_ones_own(tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path / "node.pem")
    here = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    here.load_cert_chain(certificate)
    trusting = ssl.create_default_context(cafile=str(certificate))

    async def story() -> None:
        async with scripted(tls=here) as node:
            async with AsyncQueue(node.address, tls=trusting, discover=False) as queue:
                for _ in range(3):
                    await queue.submit("email")
            async with AsyncQueue(f"https://{node.address}", tls=trusting, discover=False) as queue:
                await queue.submit("email")
            async with AsyncQueue(node.address, tls=True, deadline=1.5, discover=False) as queue:
                with pytest.raises(Unreachable, match="certificate"):
                    await queue.submit("email")
            async with AsyncQueue(node.address, deadline=1.5, discover=False) as queue:
                with pytest.raises(OutcomeUnknown):  # it was sent to somebody, in the clear
                    await queue.submit("email")
            assert len(node.requests) == 4

    run(story())


def test_an_authority_by_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate = make_certificate(tmp_path / "node.pem")
    here = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    here.load_cert_chain(certificate)

    async def story() -> None:
        async with scripted(tls=here) as node:
            async with AsyncQueue(f"https://{node.address}", ca=certificate, discover=False) as queue:
                await queue.submit("email")
            monkeypatch.setenv("TQ_CA", str(certificate))
            async with AsyncQueue(f"https://{node.address}", discover=False) as queue:
                await queue.submit("email")
            assert len(node.requests) == 2

    run(story())
    with pytest.raises(ValueError, match="holds no certificate"):
        AsyncQueue("localhost:1", ca=tmp_path / "none.pem")
    with pytest.raises(ValueError, match="one of them"):
        AsyncQueue("localhost:1", ca=certificate, tls=here)


def test_members_that_say_https_are_asked_by_https_and_get_the_token_where_the_authority_vouches(
    tmp_path: Path,
) -> None:
    """A real certificate of an authority for one, and one of somebody else for the other (A14)."""
    ours, theirs = (make_ca(tmp_path / name, f"node-1={HOSTS}") for name in ("ours", "theirs"))

    def serving(folder: Path) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(folder / "node-1.crt", folder / "node-1.key")
        return context

    async def story() -> None:
        async with scripted(tls=serving(ours)) as other, scripted(tls=serving(theirs)) as thief:
            named = [other.address, thief.address]
            nodes = [{"status": "active", "services": {"http": f"https://{address}"}} for address in named]

            async def script(request: Request) -> Reply | str:
                return (
                    Reply(200, {"cluster": {"nodes": nodes}}) if request.path == "/cluster" else await accept(request)
                )

            async with scripted(script, tls=serving(ours)) as given:
                queue = AsyncQueue(f"https://{given.address}", token="s3cret", ca=ours / "ca.crt", batching=False)
                async with queue:
                    await queue.submit("email")
                    await until(lambda: list(queue.addresses) == [given.address, *named])
                    while len(other.requests) < 3:  # it has to be probed first; ``run`` has a deadline
                        await queue.submit("email")
                assert {request.headers.get("authorization") for request in other.requests} == {"bearer s3cret"}
                assert not thief.requests, "nothing is said to whom the authority does not know"

    run(story())


def test_a_token_comes_from_its_file_and_a_new_one_counts_without_a_new_queue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "TOKEN_LOOK_S", 0.0)
    file = tmp_path / "token"
    file.write_text("first\n")

    async def story() -> None:
        async with scripted() as node, AsyncQueue(node.address, token_file=file, discover=False) as queue:
            for text in ("", "second\n", "two words\n", None, "third\n"):
                if text is None:
                    file.unlink()
                elif text:
                    (tmp_path / "new").write_text(text)
                    (tmp_path / "new").replace(file)
                await queue.submit("email")
            shown = [request.headers["authorization"] for request in node.requests]
            assert shown == [f"bearer {word}" for word in ("first", "second", "second", "second", "third")]

    run(story())
    with pytest.raises(ValueError, match="No such file"):
        AsyncQueue("localhost:1", token_file=tmp_path / "none")
    with pytest.raises(ValueError, match="one of them"):
        AsyncQueue("localhost:1", token="x", token_file=file)


def test_a_token_of_the_environment_is_shown_where_none_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TQ_TOKEN", "around")

    async def story() -> None:
        async with scripted() as node:
            for given in (None, "mine"):
                async with AsyncQueue(node.address, token=given, discover=False) as queue:
                    await queue.submit("email")
            assert [request.headers["authorization"] for request in node.requests] == ["bearer around", "bearer mine"]

    run(story())
