"""The list of cases, and how one says what it found otherwise than it should be."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from tq_node.conformance.probe import Probe

Run = Callable[[Probe], None]


class Differs(Exception):
    """What the server does is not what the worker API says: one line for a person."""


class Case(NamedTuple):
    """``run`` raises ``Differs``; what it is about is its docstring's first line."""

    name: str
    about: str
    run: Run
    asks_token: bool
    """Only where the server asks for tokens, and one was given."""


CASES: list[Case] = []
"""All of them, in the order in which they are shown."""


def case(run: Run) -> Run:
    """Make a function a case."""
    return _add(run, asks_token=False)


def case_with_token(run: Run) -> Run:
    """Make a function a case for servers that ask for tokens."""
    return _add(run, asks_token=True)


def _add(run: Run, *, asks_token: bool) -> Run:
    about = " ".join((run.__doc__ or "").split()).removesuffix(".")
    CASES.append(Case(run.__name__.replace("_", "-"), about, run, asks_token))
    return run


def equal(found: object, wanted: object, what: str) -> None:
    """:raises Differs: they are not equal."""
    if found != wanted:
        raise Differs(f"{what}: {_shown(found)}, not {_shown(wanted)}")


def must(truth: object, what: str) -> None:
    """:raises Differs: it is false. ``what`` says what should be."""
    if not truth:
        raise Differs(what)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 300 else f"{text[:300]}…"
