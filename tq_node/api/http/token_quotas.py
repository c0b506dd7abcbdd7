"""Quotas of tokens, kept at each node: requests a second, connections, streams and waits at once.

Requests are a token bucket that holds what a second brings, at least one request. It counts what a
token's requests ask for, not what becomes of them; one over the quota takes nothing from the
bucket. Bounds of all callers (``limits``) hold besides. Reactor thread only."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Literal

import msgspec

from tq_node import limits
from tq_node.api.access.access import Caller
from tq_node.errors import Busy

Held = Literal["connections", "streams", "waits"]
"""What a token may have so many of at once; names of fields of ``Quotas``."""


class OverQuota(Busy):
    """A token asks for more than its quota. Nothing was done.

    :ivar quota: its name, a field of ``Quotas``.
    :ivar headers: ``RateLimit-Policy`` and ``RateLimit``, each with its line end, as in
        draft-ietf-httpapi-ratelimit-headers-09."""

    title = "Over the quota of the token"

    def __init__(
        self, detail: str, *, quota: str, most: str, left: str, retry_after_s: float = limits.RETRY_AFTER_S
    ) -> None:
        super().__init__(detail, retry_after_s=retry_after_s)
        self.quota = quota
        self.headers = f'RateLimit-Policy: "{quota}";{most}\r\nRateLimit: "{quota}";{left}\r\n'.encode("ascii")


class Bucket(msgspec.Struct):
    """What is left of a token's requests, and when that was so."""

    left: float
    at_s: float


class TokenQuotas:
    """What each token uses of its quotas at this node.

    :param now_s: monotonic clock."""

    def __init__(self, now_s: Callable[[], float]) -> None:
        self._now_s = now_s
        self._held: Counter[tuple[str, Held]] = Counter()
        self._buckets: dict[str, Bucket] = {}

    def take_request(self, caller: Caller) -> OverQuota | None:
        """Count a request; the refusal if the token has sent too many."""
        rate = caller.quotas.requests
        if rate is None:
            return None
        now_s, most = self._now_s(), max(1.0, rate)
        bucket = self._buckets.get(caller.name)
        if bucket is None:
            bucket = self._add_bucket(caller.name, most, now_s)
        bucket.left = min(most, bucket.left + max(0.0, now_s - bucket.at_s) * rate)
        bucket.at_s = now_s
        if rate and bucket.left >= 1.0:
            bucket.left -= 1.0
            return None
        wait_s = (1.0 - bucket.left) / rate if rate else math.inf
        return _too_many_requests(caller.name, rate, min(wait_s, limits.QUOTA_RETRY_AFTER_S_MAX))

    def hold(self, what: Held, caller: Caller) -> OverQuota | None:
        """Count one more that the token has; the refusal if it has too many, which counts none. A
        caller without a token has no quota, and is not counted."""
        name = caller.name
        if not name:
            return None
        quota: int | None = getattr(caller.quotas, what)
        count = self._held[name, what]
        if quota is not None and count >= quota:
            return _too_many_held(what, name, quota)
        self._held[name, what] = count + 1
        return None

    def give_back(self, what: Held, caller: Caller) -> None:
        """The token has one less; a caller without a token held none."""
        name = caller.name
        if name:
            left = self._held[name, what] - 1
            if left:
                self._held[name, what] = left
            else:
                del self._held[name, what]

    def held(self, what: Held, name: str) -> int:
        """How many a token has now."""
        return self._held.get((name, what), 0)

    def _add_bucket(self, name: str, most: float, now_s: float) -> Bucket:
        if len(self._buckets) >= limits.QUOTA_BUCKETS_MAX:
            # Most are of tokens revoked since. Who is forgotten begins anew.
            self._buckets.clear()
        bucket = self._buckets[name] = Bucket(most, now_s)
        return bucket


def _too_many_requests(name: str, rate: float, wait_s: float) -> OverQuota:
    # Both are whole numbers in the headers: one request in so many seconds, or so many in one.
    count, window_s = (int(rate), 1) if rate >= 1 else (1, math.ceil(1 / rate)) if rate else (0, 1)
    return OverQuota(
        f"the token {name} may send {rate:g} requests a second to a node",
        quota="requests",
        most=f"q={count};w={window_s}",
        left=f"r=0;t={math.ceil(wait_s)}",
        retry_after_s=wait_s,
    )


def too_many_open(quota: str, name: str, most: int, what: str) -> OverQuota:
    """The refusal of a submit of a token that has as many open as it may have."""
    return OverQuota(f"the token {name} may have {most} {what}", quota=quota, most=f"q={most}", left="r=0")


def _too_many_held(what: Held, name: str, quota: int) -> OverQuota:
    return OverQuota(
        f"the token {name} may have {quota} {what} at once at a node",
        quota=what,
        most=f'q={quota};qu="concurrent-requests"',
        left="r=0",
    )
