"""Who calls, by header, tokens and time; nothing else has a say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.memory_tokens import MemoryTokens, token_of
from tq_node import limits
from tq_node.api.access.access import ACCESS_OF, UNCHECKED, Access, Caller
from tq_node.api.access.authenticator import ANONYMOUS, LEAST_ROLE, Authenticator
from tq_node.errors import Denied, NotReady, TaskQueueError, Unauthorized
from tq_node.facade import TokenTable
from tq_node.tokens import TOKEN_CHARS, Quotas, Role, hash_of, is_well_formed

START_S = 1_700_000_000.0


class Door:
    """An authenticator, its tokens and its clock."""

    def __init__(self) -> None:
        self.tokens = MemoryTokens()
        self.now_s = START_S
        self.looks = 0
        self.authenticator = Authenticator(self._table, lambda: self.now_s)

    def _table(self) -> TokenTable:
        self.looks += 1
        return self.tokens.table

    def ask(self, header: bytes | None, access: Access = Access.LOOK) -> Caller | TaskQueueError:
        return self.authenticator.caller_of(header, access)

    def show(self, token: str, access: Access = Access.LOOK) -> Caller | TaskQueueError:
        return self.ask(b"Bearer " + token.encode(), access)

    def reason(self, header: bytes | None, access: Access = Access.LOOK) -> str:
        found = self.ask(header, access)
        assert isinstance(found, Unauthorized)
        return found.reason

    def later(self, seconds: float = limits.TOKENS_LOOK_S) -> None:
        self.now_s += seconds


@pytest.fixture
def door() -> Door:
    return Door()


def test_without_tokens_everybody_may_everything(door: Door) -> None:
    for header in (None, b"Bearer x", b"Basic eDp5", b"\xff"):
        assert all(door.ask(header, access) is UNCHECKED for access in Access)


def test_a_token_s_caller(door: Door) -> None:
    quotas = Quotas(requests=5.0)
    token = door.tokens.make(Role.SUBMIT, Role.VIEW, name="mailer", queues=("mail",), quotas=quotas, expires_us=2**60)
    caller = door.show(token)
    assert caller == Caller(
        "mailer",
        frozenset({Role.SUBMIT, Role.VIEW}),
        ACCESS_OF[Role.SUBMIT] | ACCESS_OF[Role.VIEW],
        frozenset({"mail"}),
        quotas,
        2**60,
    )
    assert door.show(token) is caller, "remembered"


@pytest.mark.parametrize("role", list(Role))
@pytest.mark.parametrize("access", list(Access))
def test_a_role_gives_what_it_should_and_a_refusal_names_one_that_would_do(
    door: Door, role: Role, access: Access
) -> None:
    found = door.show(door.tokens.make(role, name="one"), access)
    if access in ACCESS_OF[role]:
        assert isinstance(found, Caller)
    else:
        assert isinstance(found, Denied)
        assert found.detail == f"the role {LEAST_ROLE[access]} is missing; one has {role}"
        assert access in ACCESS_OF[LEAST_ROLE[access]]


def test_the_least_role_of_each_access() -> None:
    assert {access.value: str(role) for access, role in LEAST_ROLE.items()} == {
        "open": "view",
        "look": "view",
        "read_own": "view",
        "read": "read",
        "submit": "submit",
        "change_own": "submit",
        "work": "work",
        "operate": "operate",
        "admin": "admin",
    }


def test_a_token_of_several_roles_may_what_any_of_them_may(door: Door) -> None:
    token = door.tokens.make(Role.WORK, Role.VIEW)
    assert isinstance(door.show(token, Access.WORK), Caller)
    assert isinstance(door.show(token, Access.LOOK), Caller)
    refused = door.show(token, Access.OPERATE)
    assert isinstance(refused, Denied)
    assert refused.detail.endswith("has view, work")


def test_open_is_served_to_anybody_whatever_is_shown(door: Door) -> None:
    token = door.tokens.make(Role.WORK)
    for header in (None, b"Bearer nonsense", b"Basic eDp5", b"Bearer " + token_of(99).encode()):
        assert door.ask(header, Access.OPEN) is ANONYMOUS
    assert door.show(token, Access.OPEN) == door.show(token, Access.WORK)
    door.tokens.set(is_fresh=False)
    door.later()
    assert door.show(token, Access.OPEN) is ANONYMOUS


WELL_FORMED = token_of(7).encode()


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (None, "missing"),
        (b"", "scheme"),
        (b"Bearer", "malformed"),
        (b"Bearer ", "malformed"),
        (b"Basic dXNlcjpwYXNz", "scheme"),
        (b"Basic " + WELL_FORMED, "scheme"),
        (b"Token " + WELL_FORMED, "scheme"),
        (b"Bearer:" + WELL_FORMED, "scheme"),
        (b"Bearer=" + WELL_FORMED, "scheme"),
        (b"Bearer\t" + WELL_FORMED, "scheme"),
        (b"Bearer" + WELL_FORMED, "scheme"),
        (WELL_FORMED, "scheme"),
        (b"B\xc3\xa9arer " + WELL_FORMED, "scheme"),
        (b"Bearer " + WELL_FORMED[:-1], "malformed"),
        (b"Bearer " + WELL_FORMED + b"0", "malformed"),
        (b"Bearer " + WELL_FORMED + b" ", "malformed"),
        (b"Bearer " + WELL_FORMED + b"," + WELL_FORMED, "malformed"),
        (b'Bearer "' + WELL_FORMED + b'"', "malformed"),
        (b"Bearer " + WELL_FORMED.lower(), "malformed"),
        (b"Bearer " + WELL_FORMED.replace(b"tq_", b"tq-"), "malformed"),
        (b"Bearer " + b"\xff" * TOKEN_CHARS, "malformed"),
        (b"Bearer " + "é".encode() * (TOKEN_CHARS // 2), "malformed"),
        (b"Bearer \x00" + WELL_FORMED[1:], "malformed"),
        (b"Bearer " + b"A" * 16_000, "malformed"),
        (b"Bearer " + WELL_FORMED, "unknown"),
    ],
)
def test_what_is_no_valid_token_is_refused(door: Door, header: bytes | None, reason: str) -> None:
    door.tokens.make(Role.ADMIN)
    assert door.reason(header) == reason


@pytest.mark.parametrize("scheme", [b"Bearer ", b"bearer ", b"BEARER ", b"beaReR   "])
def test_the_scheme_is_read_in_any_case(door: Door, scheme: bytes) -> None:
    token = door.tokens.make(Role.VIEW)
    assert isinstance(door.ask(scheme + token.encode()), Caller)


def test_each_character_of_a_token_counts(door: Door) -> None:
    token = door.tokens.make(Role.ADMIN)
    for place in range(TOKEN_CHARS):
        other = token[:place] + ("0" if token[place] != "0" else "1") + token[place + 1 :]
        assert door.reason(b"Bearer " + other.encode()) == "malformed"


def test_a_revoked_token_is_refused_as_soon_as_the_table_is_looked_at(door: Door) -> None:
    kept, token = door.tokens.make(Role.VIEW, name="kept"), door.tokens.make(Role.VIEW, name="gone")
    assert isinstance(door.show(token), Caller)
    door.tokens.revoke("gone")
    assert isinstance(door.show(token), Caller), "as last seen"
    door.later()
    assert door.reason(b"Bearer " + token.encode()) == "unknown"
    assert isinstance(door.show(kept), Caller)


def test_a_node_that_changed_the_table_itself_looks_at_once(door: Door) -> None:
    token = door.tokens.make(Role.VIEW, name="gone")
    assert isinstance(door.show(token), Caller)
    door.tokens.revoke("gone")
    door.authenticator.forget()
    assert door.reason(b"Bearer " + token.encode()) == "unknown"


def test_a_new_token_counts_at_once(door: Door) -> None:
    assert isinstance(door.show(door.tokens.make(Role.VIEW)), Caller)
    assert isinstance(door.show(door.tokens.make(Role.VIEW)), Caller)


def test_the_table_is_looked_at_once_in_a_while_however_many_ask(door: Door) -> None:
    token = door.tokens.make(Role.VIEW)
    for _ in range(1_000):
        door.show(token)
        door.later(limits.TOKENS_LOOK_S / 500)
    assert door.looks <= 3


@pytest.mark.parametrize("in_file", [False, True])
@pytest.mark.parametrize("looks", [0.4, 1.4, 3.0])
def test_a_token_expires_to_the_microsecond_though_remembered(door: Door, in_file: bool, looks: float) -> None:
    """Before the next look at the table, and behind it."""
    at_us = int((START_S + looks * limits.TOKENS_LOOK_S) * 1e6)
    token = door.tokens.make(Role.VIEW, expires_us=at_us, in_file=in_file)
    while door.now_s * 1e6 < at_us - 1:
        assert isinstance(door.show(token), Caller)
        door.later()
    door.now_s = (at_us - 1) / 1e6
    assert isinstance(door.show(token), Caller)
    door.now_s = at_us / 1e6
    assert door.reason(b"Bearer " + token.encode()) == "expired"
    assert door.reason(b"Bearer " + token.encode()) == "expired"


def test_a_clock_that_is_set_back_keeps_no_caller(door: Door) -> None:
    token = door.tokens.make(Role.VIEW, name="gone")
    assert isinstance(door.show(token), Caller)
    door.tokens.revoke("gone")
    door.later(-3_600)
    assert door.reason(b"Bearer " + token.encode()) == "unknown"


class TestStale:
    """The table is not proven fresh."""

    @pytest.fixture
    def door(self) -> Door:
        door = Door()
        door.tokens.set(is_fresh=False, is_checked=True)
        return door

    def test_tokens_of_the_table_get_not_ready(self, door: Door) -> None:
        for token in (door.tokens.make(Role.ADMIN), token_of(99)):
            assert isinstance(door.show(token), NotReady), "it may have been made, or revoked, meanwhile"

    def test_tokens_of_the_file_count(self, door: Door) -> None:
        assert isinstance(door.show(door.tokens.make(Role.ADMIN, in_file=True), Access.ADMIN), Caller)

    def test_an_expired_token_of_the_file_does_not(self, door: Door) -> None:
        token = door.tokens.make(Role.ADMIN, in_file=True, expires_us=1)
        assert door.reason(b"Bearer " + token.encode()) == "expired"

    def test_what_can_be_no_token_is_refused_for_good(self, door: Door) -> None:
        assert door.reason(None) == "missing"
        assert door.reason(b"Bearer x") == "malformed"

    def test_a_table_that_was_fresh_and_no_longer_is(self) -> None:
        door = Door()
        token = door.tokens.make(Role.VIEW)
        assert isinstance(door.show(token), Caller)
        door.tokens.set(is_fresh=False)
        door.later()
        assert isinstance(door.show(token), NotReady)
        door.tokens.set(is_fresh=True)
        door.later()
        assert isinstance(door.show(token), Caller)


class TestFile:
    def test_a_file_without_a_token_lets_nobody_in(self, door: Door) -> None:
        door.tokens.set(is_checked=True)
        assert door.reason(None) == "missing"

    def test_a_file_that_is_read_again_takes_the_place_of_the_earlier(self, door: Door) -> None:
        token = door.tokens.make(Role.VIEW, in_file=True)
        assert isinstance(door.show(token), Caller)
        door.tokens.set(of_file=())
        door.later()
        assert door.reason(b"Bearer " + token.encode()) == "unknown"

    def test_a_token_in_both_is_what_the_file_says(self, door: Door) -> None:
        token = door.tokens.make(Role.ADMIN, name="table")
        (entry,) = door.tokens.table.tokens
        door.tokens.set(of_file=(type(entry)("file", entry.hash, (Role.VIEW,)),))
        caller = door.show(token)
        assert isinstance(caller, Caller)
        assert (caller.name, caller.roles) == ("file", frozenset({Role.VIEW}))


def test_checking_goes_on_when_the_last_token_is_revoked(door: Door) -> None:
    door.tokens.make(Role.ADMIN, name="last")
    door.tokens.revoke("last")
    assert door.reason(None) == "missing"


def test_what_is_remembered_is_bounded(door: Door) -> None:
    token = door.tokens.make(Role.VIEW)
    for spaces in range(1, 3 * limits.CALLERS_CACHED_MAX):
        assert isinstance(door.ask(b"Bearer" + b" " * spaces + token.encode()), Caller)
    assert len(door.authenticator.callers) <= limits.CALLERS_CACHED_MAX


def test_what_is_refused_is_not_remembered(door: Door) -> None:
    door.tokens.make(Role.VIEW)
    for number in range(1_000, 1_100):
        door.show(token_of(number))
    assert not door.authenticator.callers


def test_who_is_refused_for_its_role_is_known_by_name(door: Door) -> None:
    token = door.tokens.make(Role.VIEW, name="reporter")
    header = b"Bearer " + token.encode()
    assert isinstance(door.ask(header, Access.ADMIN), Denied)
    assert door.authenticator.identified(header).name == "reporter"
    assert door.authenticator.identified(b"Bearer x") is ANONYMOUS


def test_where_nobody_is_asked_everybody_is_unchecked(door: Door) -> None:
    assert door.authenticator.caller_of(b"Bearer x", Access.ADMIN) is UNCHECKED
    assert door.authenticator.identified(b"Bearer x") is UNCHECKED


@given(st.binary(max_size=200))
def test_no_other_bytes_open_the_door(header: bytes) -> None:
    door = Door()
    token = door.tokens.make(Role.ADMIN)
    assert isinstance(door.ask(header), Unauthorized)
    assert isinstance(door.ask(b"Bearer " + header), Unauthorized)
    assert is_well_formed(token)
    assert hash_of(token) == door.tokens.table.tokens[0].hash
