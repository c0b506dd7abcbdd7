"""Who may call what, written down by hand, and tried on every operation of ``openapi.json`` at both ways in.

A route that the table lacks fails here, and so does any right of the product that is flipped.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.access_matrix import BAD, EXPIRED, GROUP_OF, MATRIX, NOBODY, ROLES, expected, request_of, verdict
from tests.support.memory_tokens import token_of
from tests.unit.tq_node.api.talk import NOW_S, World
from tq_node.api.access import access as product
from tq_node.api.access.access import Access, Caller
from tq_node.api.assembly import documented_routes
from tq_node.tokens import Role

SCOPES: tuple[tuple[str, ...] | None, ...] = (None, ("mail",))
"""Queues of a token."""


def operations() -> list[tuple[str, str]]:
    """Of the document: what the world is told that there is."""
    world = World()
    paths = world.get("/openapi.json").json["paths"]
    world.close()
    return [(method.upper(), path) for path, methods in paths.items() for method in methods]


class Callers:
    """One token of each role and scope, in a world."""

    def __init__(self, world: World) -> None:
        self.headers: list[tuple[str, dict[str, str]]] = [
            (NOBODY, {}),
            (BAD, {"Authorization": f"Bearer {token_of(999)}"}),
            (EXPIRED, shown(world.tokens.make(Role.ADMIN, expires_us=int(NOW_S * 1e6)))),
        ]
        for scope in SCOPES:
            for role in ROLES:
                self.headers.append((role, shown(world.tokens.make(Role(role), queues=scope))))


def shown(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def answer_to(world: World, operation: tuple[str, str], headers: dict[str, str]) -> str:
    connection = world.connect()
    connection.send(request_of(operation, "".join(f"{name}: {value}\r\n" for name, value in headers.items())))
    world.clock.advance(0.02)
    connection.transport.hang_up()
    return verdict(connection.received)


def test_the_table_has_every_operation_and_no_other() -> None:
    assert sorted(operations()) == sorted(GROUP_OF)


@pytest.mark.parametrize("fast_path", [False, True])
def test_every_cell(fast_path: bool) -> None:
    world = World(fast_path=fast_path)
    callers = Callers(world)
    wrong, tried = [], 0
    for operation in operations():
        for who, headers in callers.headers:
            found = answer_to(world, operation, headers)
            tried += 1
            if found != expected(operation, who):
                wrong.append((operation, who, found))
    world.close()
    print(f"{tried} cells")
    assert not wrong
    assert tried == len(GROUP_OF) * (3 + len(SCOPES) * len(ROLES)) >= 450


@pytest.mark.parametrize("fast_path", [False, True])
def test_without_tokens_every_operation_is_served_to_anybody(fast_path: bool) -> None:
    world = World(fast_path=fast_path)
    for operation in operations():
        for headers in ({}, {"Authorization": f"Bearer {token_of(1)}"}):
            assert answer_to(world, operation, headers) == "let in"
    world.close()


def test_head_asks_what_get_asks(judged: Judged) -> None:
    routing = judged.world.site.routing
    for method, path in GROUP_OF:
        if method == "GET" and "{" not in path:
            assert routing.access_of(b"HEAD", path.encode()) is routing.access_of(b"GET", path.encode())


def test_what_is_no_route_is_the_admin_s_alone(judged: Judged) -> None:
    for path in (b"/nothing", b"/tasks/submit/", b"/problem", b"*", b""):
        assert judged.world.site.routing.access_of(b"GET", path) is Access.ADMIN


def test_the_document_says_the_same() -> None:
    world = World()
    for path, methods in world.get("/openapi.json").json["paths"].items():
        for method, operation in methods.items():
            allowed = MATRIX[GROUP_OF[method.upper(), path]][0].split()
            named = [role for choice in operation["security"] for role in choice["token"]]
            assert named == [role for role in allowed if NOBODY not in allowed], path
    world.close()


# --- one right flipped ---
class Judged:
    """The matrix once more, asked of what both ways in ask."""

    def __init__(self) -> None:
        self.world = World()
        self._callers = Callers(self.world).headers[: 3 + len(ROLES)]
        self.world.clock.advance(1)

    def wrong_cells(self) -> list[tuple[tuple[str, str], str]]:
        routing = self.world.site.routing
        wrong = []
        for operation, group in GROUP_OF.items():
            method, path = operation
            access = routing.access_of(method.encode(), path.replace("{code}", "busy").encode())
            for who, headers in self._callers:
                header = headers["Authorization"].encode() if headers else None
                is_let_in = isinstance(self.world.site.server.authenticator.caller_of(header, access), Caller)
                if is_let_in != (who in MATRIX[group][0].split()):
                    wrong.append((operation, who))
        return wrong


@pytest.fixture
def judged() -> Iterator[Judged]:
    judged = Judged()
    yield judged
    judged.world.close()


def test_as_it_is_no_cell_is_wrong(judged: Judged) -> None:
    assert judged.wrong_cells() == []


def rights() -> list[tuple[Role, Access]]:
    """All of a role that some route asks for."""
    asked = {route.access for route in documented_routes()} - {Access.OPEN}
    return [(role, access) for role in Role for access in Access if access in asked]


@pytest.mark.parametrize(("role", "access"), rights())
def test_one_right_of_a_role_flipped_is_noticed(
    role: Role, access: Access, judged: Judged, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(product.ACCESS_OF, role, product.ACCESS_OF[role] ^ {access})
    found = judged.wrong_cells()
    assert found
    assert {who for _, who in found} == {str(role)}


@pytest.mark.parametrize("operation", sorted(GROUP_OF.keys() - {("GET", "/problems/{code}")}), ids=" ".join)
def test_a_route_that_asks_something_else_is_noticed(operation: tuple[str, str], judged: Judged) -> None:
    method, path = operation
    asked = judged.world.site.routing._access
    right = asked[method.encode(), path.encode()]
    for access in set(Access) - {right}:
        asked[method.encode(), path.encode()] = access
        assert {cell for cell, _ in judged.wrong_cells()} == {operation}, access
