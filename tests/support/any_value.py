"""Hypothesis strategies for whatever a struct can hold as it travels: types right, values anything, extremes above all."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from msgspec import inspect

EXTREMES = (-(2**63), -(2**62), -1, 0, 1, 2, 3, 2**31, 2**32, 2**33, 2**53, 2**62, 2**62 + 1, 2**63 - 1, 2**64 - 1)
numbers = st.sampled_from(EXTREMES) | st.integers(0, 70)
texts = st.sampled_from(("", "a", "n" * 64, "x" * 70, "\x00", "\u00e9\u2028", "node-1", "t" * 300))
blobs = st.sampled_from((b"", b"x", b"\x01garbage", b"\x90", b"null", b"\xff" * 70)) | st.binary(max_size=12)
floats = st.sampled_from((0.0, -1.0, 0.5, 1e308, float("inf"), float("-inf"), float("nan")))


def anything(kind: Any, **known: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """:param known: for fields of these names, wherever they are, besides anything: values that get past the first check."""
    return _of(inspect.type_info(kind), known)


def _of(info: inspect.Type, known: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[Any]:
    of = lambda part: _of(part, known)  # noqa: E731
    if isinstance(info, inspect.StructType):
        fields = {}
        for field in info.fields:
            plain = of(field.type)
            fields[field.name] = known[field.name] | plain if field.name in known else plain
        return st.builds(info.cls, **fields)
    if isinstance(info, inspect.UnionType):
        return st.one_of([of(part) for part in info.types])
    if isinstance(info, inspect.EnumType):
        return st.sampled_from(list(info.cls))
    if isinstance(info, inspect.DictType):
        return st.dictionaries(of(info.key_type), of(info.value_type), max_size=3)
    if isinstance(info, inspect.NamedTupleType):
        return st.tuples(*[of(field.type) for field in info.fields]).map(lambda values: info.cls(*values))
    if isinstance(info, inspect.TupleType):
        return st.tuples(*[of(part) for part in info.item_types])
    if isinstance(info, inspect.VarTupleType):
        return st.lists(of(info.item_type), max_size=3).map(tuple)
    if isinstance(info, inspect.ListType):
        return st.lists(of(info.item_type), max_size=3)
    if isinstance(info, inspect.SetType | inspect.FrozenSetType):
        return st.frozensets(of(info.item_type), max_size=3)
    for leaf, strategy in (
        (inspect.IntType, numbers),
        (inspect.FloatType, floats),
        (inspect.StrType, texts),
        (inspect.BytesType, blobs),
        (inspect.BoolType, st.booleans()),
        (inspect.NoneType, st.none()),
    ):
        if isinstance(info, leaf):
            return strategy
    raise TypeError(info)
