"""``/tokens/…``: what is made, what is told, and to whom."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from zope.interface import implementer

from tests.unit.tq_node.api.talk import NOW_S, Reply, World
from tq_node import limits
from tq_node.errors import ClusterRefused, NoController, OutcomeUnknown, Upgrading
from tq_node.tokens import Quotas, Role, TokenEntry, hash_of, is_well_formed

NOW_US = int(NOW_S * 1e6)


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.close()


def put(world: World, **fields: Any) -> Reply:
    return world.post("/tokens/put", {"name": "ops", "roles": ["admin"], **fields})


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def kept(world: World) -> tuple[TokenEntry, ...]:
    return world.queue.tokens.tokens


class TestPut:
    def test_the_token_is_told_once_and_its_hash_is_kept(self, world: World) -> None:
        reply = put(world)
        token = reply.json["token"]
        assert (reply.status, reply.json) == (200, {"success": True, "name": "ops", "token": token})
        assert is_well_formed(token)
        assert kept(world) == (TokenEntry("ops", hash_of(token), (Role.ADMIN,), created_us=NOW_US),)
        assert reply.headers["cache-control"] == "no-store"

    def test_it_counts_from_then_on(self, world: World) -> None:
        assert world.get("/cluster").status == 200
        token = put(world).json["token"]
        assert world.get("/cluster").status == 401
        assert world.get("/cluster", **bearer(token)).status == 200
        assert put(world, name="two").status == 401
        second = world.post("/tokens/put", {"name": "two", "roles": ["view"]}, **bearer(token))
        assert second.status == 200
        assert kept(world)[1].created_by == "ops"
        assert world.post("/tokens/put", {"name": "x", "roles": ["view"]}, **bearer(second.json["token"])).status in (
            401,
            403,
        )

    def test_no_two_are_the_same(self, world: World) -> None:
        first = put(world).json["token"]
        second = world.post("/tokens/put", {"name": "two", "roles": ["view"]}, **bearer(first))
        assert second.json["token"] != first

    def test_all_that_is_asked_for_is_kept_in_one_order(self, world: World) -> None:
        reply = put(
            world,
            roles=["work", "submit"],
            queues=["mail", "sms"],
            expires_in=90.5,
            quotas={"requests": 2.5, "connections": 1, "streams": 2, "waits": 3, "open_tasks": 4, "queues": 5},
        )
        assert reply.status == 200
        (entry,) = kept(world)
        assert (entry.roles, entry.queues) == ((Role.SUBMIT, Role.WORK), ("mail", "sms"))
        assert (entry.expires_us, entry.quotas) == (NOW_US + 90_500_000, Quotas(2.5, 1, 2, 3, 4, 5))

    def test_null_is_not_given(self, world: World) -> None:
        made = put(world, queues=None, expires_in=None, quotas=None)
        assert msgspec.structs.astuple(kept(world)[0])[3:6] == (None, None, Quotas())
        again = {"name": "ops", "roles": ["admin"], "quotas": {"waits": None}}
        assert world.post("/tokens/put", again, **bearer(made.json["token"])).status == 200
        assert kept(world)[0].quotas == Quotas()

    def test_a_whole_number_may_be_written_with_a_point(self, world: World) -> None:
        assert put(world, quotas={"waits": 3.0, "requests": 0.5}).status == 200
        quotas = kept(world)[0].quotas
        assert (quotas.waits, quotas.requests) == (3, 0.5)
        assert type(quotas.waits) is int

    @pytest.mark.parametrize(
        ("fields", "code", "field"),
        [
            ({"name": "a b"}, "invalid_field", "/name"),
            ({"name": ""}, "invalid_field", "/name"),
            ({"name": "a" * 64}, "invalid_field", "/name"),
            ({"name": "a\n"}, "invalid_field", "/name"),
            ({"name": 7}, "invalid_field", "/name"),
            ({"roles": []}, "invalid_field", "/roles"),
            ({"roles": ["root"]}, "invalid_field", "/roles"),
            ({"roles": ["view", "view"]}, "invalid_field", "/roles/1"),
            ({"roles": "view"}, "invalid_field", "/roles"),
            ({"queues": [""]}, "invalid_field", "/queues"),
            ({"queues": ["a", "b", "a"]}, "invalid_field", "/queues/2"),
            ({"queues": ["a\x1b"]}, "invalid_field", "/queues/0"),
            ({"queues": ["q" * (limits.QUEUE_CHARS_MAX + 1)]}, "invalid_field", "/queues"),
            ({"queues": [str(n) for n in range(limits.TOKEN_QUEUES_MAX + 1)]}, "invalid_field", "/queues"),
            ({"expires_in": 0}, "invalid_field", "/expires_in"),
            ({"expires_in": limits.TOKEN_EXPIRES_S_MAX + 1}, "invalid_field", "/expires_in"),
            ({"quotas": {"requests": -1}}, "invalid_field", "/quotas/requests"),
            ({"quotas": {"waits": 1.5}}, "invalid_field", "/quotas/waits"),
            ({"quotas": {"other": 1}}, "unknown_field", "/quotas/other"),
            ({"role": "view"}, "unknown_field", "/role"),
            ({"hash": "ab"}, "unknown_field", "/hash"),
        ],
        ids=lambda value: str(value)[:40],
    )
    def test_what_is_wrong_is_named(self, world: World, fields: dict[str, Any], code: str, field: str) -> None:
        reply = put(world, **fields)
        assert (reply.status, reply.json["code"], reply.json["field"]) == (422, code, field)
        assert kept(world) == ()

    def test_name_and_roles_are_needed(self, world: World) -> None:
        for body in ({"name": "a"}, {"roles": ["view"]}):
            assert world.post("/tokens/put", body).json["code"] == "missing_field"

    def test_a_long_body_is_not_read(self, world: World) -> None:
        assert put(world, queues=["x" * limits.LARGE_BODY_BYTES]).json["code"] == "body_too_large"

    def test_only_json_is(self, world: World) -> None:
        assert world.post("/tokens/put", b"{}", Content_Type="text/plain").status == 415
        assert world.post("/tokens/put", b"{").status == 400
        assert world.post("/tokens/put?name=a", {"name": "a", "roles": ["view"]}).json["code"] == "bad_parameter"

    @pytest.mark.parametrize(
        ("failure", "status"),
        [
            (ClusterRefused("the table keeps so many"), 409),
            (NoController(), 503),
            (Upgrading(), 503),
            (OutcomeUnknown(), 504),
        ],
    )
    def test_where_it_is_not_kept_no_token_is_told(self, world: World, failure: Exception, status: int) -> None:
        world.queue.fail_next("put_token", failure)
        reply = put(world)
        assert reply.status == status
        assert b"tq_" not in reply.body


class TestList:
    def test_table_and_file_without_token_or_hash(self, world: World) -> None:
        token = put(world, queues=["mail"], expires_in=60, quotas={"waits": 1}).json["token"]
        of_file = TokenEntry("glass", b"h" * 32, (Role.ADMIN, Role.VIEW))
        world.tokens.set(of_file=(of_file,), is_fresh=False)
        admin = world.tokens.make(Role.ADMIN, name="z", in_file=True)
        reply = world.get("/tokens/list", **bearer(admin))
        assert reply.json == {
            "tokens": [
                {
                    "name": "ops",
                    "roles": ["admin"],
                    "queues": ["mail"],
                    "created_at": "2023-11-14T22:13:20.000000Z",
                    "created_by": None,
                    "expires_at": "2023-11-14T22:14:20.000000Z",
                    "quotas": {"waits": 1},
                    "kept_in": "table",
                },
                *(
                    {
                        "name": name,
                        "roles": roles,
                        "queues": None,
                        "created_at": None,
                        "created_by": None,
                        "expires_at": None,
                        "quotas": {},
                        "kept_in": "file",
                    }
                    for name, roles in (("glass", ["admin", "view"]), ("z", ["admin"]))
                ),
            ],
            "checked": True,
            "fresh": False,
        }
        for secret in (token, hash_of(token).hex(), admin):
            assert secret.encode() not in reply.body

    def test_without_any(self, world: World) -> None:
        assert world.get("/tokens/list").json == {"tokens": [], "checked": False, "fresh": True}


class TestRevoke:
    def test_it_ends_and_the_asker_is_named(self, world: World) -> None:
        admin = put(world).json["token"]
        other = world.post("/tokens/put", {"name": "v", "roles": ["view"]}, **bearer(admin)).json["token"]
        assert world.get("/cluster", **bearer(other)).status == 200
        reply = world.post("/tokens/revoke?name=v", **bearer(admin))
        assert (reply.status, reply.json) == (200, {"success": True, "name": "v"})
        assert world.get("/cluster", **bearer(other)).status == 401
        assert world.queue.orders[-1] == ("revoke_token", "ops")

    def test_a_name_that_is_not_there(self, world: World) -> None:
        reply = world.post("/tokens/revoke?name=x")
        assert (reply.status, reply.json["code"]) == (404, "not_found")
        assert world.post("/tokens/revoke").json["code"] == "bad_parameter"
        assert world.post("/tokens/revoke?name=a%20b").json["code"] == "bad_parameter"

    def test_one_of_the_file_is_ended_there(self, world: World) -> None:
        admin = world.tokens.make(Role.ADMIN, name="glass", in_file=True)
        reply = world.post("/tokens/revoke?name=glass", **bearer(admin))
        assert reply.status == 404
        assert "tokens file" in reply.json["detail"]


class TestNarrowed:
    """A token of some queues makes, sees and ends none that reaches beyond them."""

    @pytest.fixture
    def narrow(self, world: World) -> dict[str, str]:
        world.tokens.make(Role.ADMIN, name="wide")
        world.tokens.make(Role.VIEW, name="other", queues=("sms",))
        world.tokens.make(Role.VIEW, name="within", queues=("mail",))
        return bearer(world.tokens.make(Role.ADMIN, name="narrow", queues=("mail", "news")))

    @pytest.mark.parametrize(
        ("queues", "status"), [(["mail"], 200), ([], 200), (["mail", "sms"], 403), (None, 403), (["news", "mail"], 200)]
    )
    def test_what_it_makes(self, world: World, narrow: dict[str, str], queues: list[str] | None, status: int) -> None:
        reply = world.post("/tokens/put", {"name": "new", "roles": ["view"], "queues": queues}, **narrow)
        assert reply.status == status
        assert status == 200 or reply.json["code"] == "denied"

    @pytest.mark.parametrize(("name", "status"), [("wide", 403), ("other", 403), ("within", 200)])
    def test_what_it_replaces(self, world: World, narrow: dict[str, str], name: str, status: int) -> None:
        body = {"name": name, "roles": ["view"], "queues": ["mail"]}
        assert world.post("/tokens/put", body, **narrow).status == status

    def test_what_it_sees(self, world: World, narrow: dict[str, str]) -> None:
        shown = world.get("/tokens/list", **narrow).json["tokens"]
        assert [token["name"] for token in shown] == ["within", "narrow"]

    @pytest.mark.parametrize(("name", "status"), [("wide", 404), ("other", 404), ("within", 200), ("none", 404)])
    def test_what_it_ends(self, world: World, narrow: dict[str, str], name: str, status: int) -> None:
        assert world.post(f"/tokens/revoke?name={name}", **narrow).status == status


class TestNoAdmin:
    def test_it_is_said_once_nobody_is_left_to_make_the_next(self, world: World, said: list[str]) -> None:
        admin = bearer(put(world).json["token"])
        put_again = {"name": "ops", "roles": ["view"]}
        world.tokens.make(Role.ADMIN, name="glass", in_file=True)
        assert world.post("/tokens/put", put_again, **admin).status == 200
        assert said == [], "the file has one"
        world.tokens.set(of_file=())
        admin = bearer(world.tokens.make(Role.ADMIN, name="last"))
        assert world.post("/tokens/revoke?name=ops", **admin).status == 200
        assert said == []
        assert world.post("/tokens/revoke?name=last", **admin).status == 200
        (line,) = said
        assert "--tokens-file" in line

    def test_an_expired_one_is_none(self, world: World, said: list[str]) -> None:
        world.tokens.make(Role.ADMIN, name="old", expires_us=NOW_US)
        admin = world.tokens.make(Role.ADMIN, name="now", expires_us=NOW_US + 1)
        assert world.post("/tokens/revoke?name=now", **bearer(admin)).status == 200
        assert len(said) == 1


@pytest.fixture
def said() -> Iterator[list[str]]:
    from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher

    lines: list[str] = []

    @implementer(ILogObserver)
    def observe(event: LogEvent) -> None:
        if event.get("event") == "no_admin":
            lines.append(formatEvent(event))

    globalLogPublisher.addObserver(observe)
    yield lines
    globalLogPublisher.removeObserver(observe)
