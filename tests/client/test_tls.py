"""HTTPS, with the certificate checked."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from tests.client.scripted import run, scripted
from tests.howto.conftest import make_certificate
from tq_node.client import AsyncQueue, OutcomeUnknown, Unreachable


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
