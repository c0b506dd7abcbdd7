"""Proof over HTTP that a joiner knows the cluster's secret, without the secret on the way.

A member gives a *challenge*, which it can tell for its own without keeping it; the joiner answers
with an HMAC over it. Who proves the secret learns the members' peer addresses. So a proof that is
overheard, or passed on by whoever was asked in a member's place, is worth these addresses alone,
for ``VALID_S``; the handshake at a peer port has challenges of its own."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Sequence

from tq_node.facade import CHALLENGE_BYTES

VALID_S = 30
"""From a challenge to its proof."""
_AT_BYTES, _SALT_BYTES, _MARK_BYTES = 8, 16, 16
_CONTEXT = b"taskqueue join 1"


def proof(secret: bytes, challenge: bytes) -> bytes:
    """What a joiner answers to a challenge."""
    parts = (_CONTEXT, challenge)
    return hmac.digest(secret, b"".join(len(part).to_bytes(4, "big") + part for part in parts), "sha256")


def is_proven(secrets: Sequence[bytes], challenge: bytes, given: bytes) -> bool:
    """Whether the proof was made with one of the secrets; all are compared, in constant time."""
    return sum(hmac.compare_digest(proof(secret, challenge), given) for secret in secrets) > 0


class Challenges:
    """Makes challenges and knows them again, of this run alone; keeps none, so nobody fills it.

    :param now_s: monotonic."""

    def __init__(self, random_bytes: Callable[[int], bytes], now_s: Callable[[], float]) -> None:
        self._random_bytes = random_bytes
        self._now_s = now_s
        self._key = random_bytes(32)

    def make(self) -> bytes:
        head = int(self._now_s()).to_bytes(_AT_BYTES, "big") + self._random_bytes(_SALT_BYTES)
        return head + self._mark(head)

    def is_valid(self, challenge: bytes) -> bool:
        """Whether it was made here, within ``VALID_S``."""
        if len(challenge) != CHALLENGE_BYTES:
            return False
        head, mark = challenge[:-_MARK_BYTES], challenge[-_MARK_BYTES:]
        if not hmac.compare_digest(self._mark(head), mark):
            return False
        return 0 <= int(self._now_s()) - int.from_bytes(head[:_AT_BYTES], "big") <= VALID_S

    def _mark(self, head: bytes) -> bytes:
        return hmac.digest(self._key, head, "sha256")[:_MARK_BYTES]


assert CHALLENGE_BYTES == _AT_BYTES + _SALT_BYTES + _MARK_BYTES
