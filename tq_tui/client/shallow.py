"""PURE. JSON nested too deep to be decoded: what lies below a level is cut off, the rest is shown.

Results kept by releases without a bound have up to 988 levels; decoders end at some 950."""

from __future__ import annotations

import re

DEPTH_MAX = 220
"""What is kept: as deep as a result may be, in a task, a list of them, an answer, and some more."""
CUT = '"… (nested deeper than 200 levels)"'.encode()
_TOKENS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[{]|[\]}]', re.DOTALL)


def is_deep(body: bytes, depth_max: int) -> bool:
    """Whether a list or object lies below so many levels."""
    return body.count(b"[") + body.count(b"{") > depth_max and shallow(body, depth_max) != body


def shallow(body: bytes, depth_max: int = DEPTH_MAX) -> bytes:
    """The same JSON, ``CUT`` for what nests below ``depth_max`` levels.
    What is no JSON stays as it is."""
    kept: list[bytes] = []
    begin = depth = 0
    for token in _TOKENS.finditer(body):
        kind = token[0][:1]
        if kind in b"[{":
            depth += 1
            if depth == depth_max + 1:
                kept += body[begin : token.start()], CUT
        elif kind in b"]}":
            if depth == depth_max + 1:
                begin = token.end()
            depth -= 1
    if depth <= depth_max:
        kept.append(body[begin:])
    return b"".join(kept)
