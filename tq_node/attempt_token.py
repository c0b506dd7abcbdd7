"""An attempt's token as a remote worker holds it: text, opaque to all but us.

It holds partition, attempt and the claim's place in the log. Nothing about it is secret: what it
names is judged by the partition's primary."""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Annotated

import msgspec
from msgspec import Meta

from tq_node import limits
from tq_node.types import Token

CHARS_MAX = 64
_encode = msgspec.msgpack.Encoder().encode


class AttemptToken(msgspec.Struct, frozen=True, array_like=True):
    """What the text holds."""

    partition: Annotated[int, Meta(ge=0, lt=limits.PARTITIONS_MAX)]
    attempt: Annotated[int, Meta(ge=0, le=2**31)]
    epoch: Annotated[int, Meta(ge=0, le=2**62)]
    sequence: Annotated[int, Meta(ge=0, le=2**62)]

    @property
    def token(self) -> Token:
        """The place of the claim, which only grows from claim to claim of a task."""
        return Token(self.epoch, self.sequence)


_decode = msgspec.msgpack.Decoder(AttemptToken).decode


def text_of(partition: int, attempt: int, token: Token) -> str:
    """The text for a claim."""
    packed = _encode(AttemptToken(partition, attempt, token.epoch, token.sequence))
    return urlsafe_b64encode(packed).rstrip(b"=").decode("ascii")


def read(text: str) -> AttemptToken:
    """The inverse of ``text_of``; raises ``ValueError``: it is no such text."""
    packed = urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4))
    return _decode(packed)
