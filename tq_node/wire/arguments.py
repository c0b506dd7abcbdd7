"""AMP argument types: each value has a bound and one form; no pickle, ``Decimal``, float: F38."""

from __future__ import annotations

import re
from typing import Any

from twisted.protocols.amp import AmpBox, Argument

from tq_node.wire import bounds
from tq_node.wire.errors import BoxTooLarge, MalformedBox

_NUMBER = re.compile(rb"0|[1-9][0-9]{0,18}")
_NUMBER_MAX = 2**63 - 1
_PRINTABLE = re.compile(r"[\x21-\x7e]*")


class Number(Argument):
    """A whole number from 0 to ``most``, in decimal digits. AMP's ``Integer`` has no bound."""

    def __init__(self, most: int = _NUMBER_MAX, optional: bool = False) -> None:
        super().__init__(optional)
        assert 0 < most <= _NUMBER_MAX
        self.most = most

    def toString(self, inObject: int) -> bytes:
        if not 0 <= inObject <= self.most:
            raise MalformedBox(f"{inObject} is not within 0 and {self.most}")
        return b"%d" % inObject

    def fromString(self, inString: bytes) -> int:
        if _NUMBER.fullmatch(inString) is None or int(inString) > self.most:
            raise MalformedBox(f"not a number within 0 and {self.most}")
        return int(inString)


class Flag(Argument):
    """``1`` or ``0``."""

    def toString(self, inObject: bool) -> bytes:
        return b"1" if inObject else b"0"

    def fromString(self, inString: bytes) -> bool:
        if inString not in (b"0", b"1"):
            raise MalformedBox("not a flag")
        return inString == b"1"


class Word(Argument):
    """Printable ASCII without spaces: ids, names, addresses.

    :param least: characters; 0 where the word may be unknown."""

    def __init__(self, most: int = bounds.ID_CHARS_MAX, least: int = 1, optional: bool = False) -> None:
        super().__init__(optional)
        self.least, self.most = least, most

    def toString(self, inObject: str) -> bytes:
        return self._checked(inObject).encode("ascii")

    def fromString(self, inString: bytes) -> str:
        return self._checked(inString.decode("latin-1"))

    def _checked(self, text: str) -> str:
        if not self.least <= len(text) <= self.most or _PRINTABLE.fullmatch(text) is None:
            raise MalformedBox(f"not {self.least} to {self.most} printable characters")
        return text


class Octets(Argument):
    """Exactly ``length`` bytes."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.length = length

    def toString(self, inObject: bytes) -> bytes:
        return self.fromString(inObject)

    def fromString(self, inString: bytes) -> bytes:
        if len(inString) != self.length:
            raise MalformedBox(f"not {self.length} bytes")
        return inString


class Blob(Argument):
    """Bytes of any length up to ``bytes_max``, cut into values that fit: ``name``, ``name.1``,
    ``name.2``, …

    All pieces but the last have ``bounds.VALUE_BYTES_MAX`` bytes exactly, so that a value has one
    form only."""

    def __init__(self, bytes_max: int = bounds.BLOB_BYTES_MAX) -> None:
        super().__init__()
        self.bytes_max = bytes_max

    def toBox(self, name: bytes, strings: AmpBox, objects: dict[str, Any], proto: object) -> None:
        data: bytes = objects[name.decode("ascii")]
        size, piece = len(data), bounds.VALUE_BYTES_MAX
        if size > self.bytes_max:
            raise BoxTooLarge(f"{size} bytes of {name.decode()}, more than {self.bytes_max}")
        if size <= piece:
            strings[name] = data
            return
        for number, start in enumerate(range(0, size, piece)):
            strings[_piece_name(name, number)] = data[start : start + piece]

    def fromBox(self, name: bytes, strings: AmpBox, objects: dict[str, Any], proto: object) -> None:
        first = strings.get(name)
        if first is None:
            raise MalformedBox(f"{name.decode()} is missing")
        if len(first) < bounds.VALUE_BYTES_MAX and name + b".1" not in strings:
            if len(first) > self.bytes_max:
                raise MalformedBox(f"{name.decode()} is longer than {self.bytes_max} bytes")
            objects[name.decode("ascii")] = first
            return
        pieces, size = [first], len(first)
        while (piece := strings.get(_piece_name(name, len(pieces)))) is not None:
            if len(pieces[-1]) != bounds.VALUE_BYTES_MAX or not piece:
                raise MalformedBox(f"{name.decode()} is cut in the wrong places")
            size += len(piece)
            if size > self.bytes_max:
                break
            pieces.append(piece)
        if size > self.bytes_max:
            raise MalformedBox(f"{name.decode()} is longer than {self.bytes_max} bytes")
        objects[name.decode("ascii")] = first if len(pieces) == 1 else b"".join(pieces)


def _piece_name(name: bytes, number: int) -> bytes:
    return b"%s.%d" % (name, number) if number else name
