"""The description and the program are the same: routes, statuses, schemas, and the kept copy."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from werkzeug.routing import Map

from tests.support.harness import PROJECT
from tests.unit.tq_node.api.talk import World
from tq_node.api import openapi
from tq_node.api.assembly import documented_routes
from tq_node.api.routes import klein_app


def document(world: World) -> dict[str, Any]:
    value: dict[str, Any] = world.get("/openapi.json").json
    return value


def routes_of(url_map: Map) -> set[tuple[str, str]]:
    return {
        (method, re.sub(r"<(\w+)>", r"{\1}", rule.rule))
        for rule in url_map.iter_rules()
        for method in (rule.methods or ())
        if method != "HEAD"
    }


def references(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for part in value.values():
            yield from references(part)
    elif isinstance(value, list):
        for part in value:
            yield from references(part)


def test_klein_and_the_document_have_the_same_routes(world: World) -> None:
    described = {(method.upper(), path) for path, methods in document(world)["paths"].items() for method in methods}
    assert described == routes_of(klein_app(documented_routes()).url_map)
    assert len(described) > 25


def test_the_contract_s_routes_are_there(world: World) -> None:
    described = {f"{method.upper()} {path}" for path, methods in document(world)["paths"].items() for method in methods}
    assert described >= {
        *("POST /tasks/submit", "POST /tasks/batch", "GET /tasks/status", "GET /tasks/list", "GET /tasks/stats"),
        *("POST /tasks/cancel", "POST /tasks/retry", "GET /tasks/dead", "POST /tasks/pause", "POST /tasks/resume"),
        *(
            "GET /tasks/events",
            "GET /cluster",
            "GET /cluster/partitions",
            "POST /cluster/drain",
            "POST /cluster/undrain",
            "POST /cluster/remove",
        ),
        *(
            "POST /cluster/rebalance",
            "POST /cluster/shutdown",
            "POST /cluster/snapshot",
            "POST /cluster/unsafe-recover",
            "POST /cluster/join",
        ),
        *("GET /health", "GET /livez", "GET /ready", "GET /readyz", "GET /metrics", "GET /openapi.json", "GET /"),
    }


def test_every_reference_leads_somewhere(world: World) -> None:
    whole = document(world)
    found = set(references(whole))
    assert found
    for reference in found:
        assert reference.removeprefix("#/components/schemas/") in whole["components"]["schemas"], reference


def test_every_operation_lists_its_problems(world: World) -> None:
    for path, methods in document(world)["paths"].items():
        for operation in methods.values():
            problem = operation["responses"]["default"]["content"]["application/problem+json"]["schema"]
            assert problem == {"$ref": "#/components/schemas/Problem"}, path
            assert operation["operationId"]


def test_orders_tell_what_they_are_refused_with(world: World) -> None:
    paths = document(world)["paths"]
    for path in ("drain", "undrain", "remove", "rebalance", "shutdown", "unsafe-recover"):
        responses = paths[f"/cluster/{path}"]["post"]["responses"]
        assert {"202", "400", "403", "409", "429", "503", "504"} <= responses.keys()
        for code in ("no_controller", "peer_unreachable"):
            assert code in responses["503"]["description"]
        assert "Retry-After" in responses["503"]["headers"]
    assert "denied" in paths["/cluster/join"]["post"]["responses"]["403"]["description"]


def test_operation_ids_are_unique(world: World) -> None:
    names = [
        operation["operationId"] for methods in document(world)["paths"].values() for operation in methods.values()
    ]
    assert len(names) == len(set(names))


def test_the_kept_copy_is_current() -> None:
    done = subprocess.run([sys.executable, "-m", "tq_node.api.openapi"], cwd=PROJECT, capture_output=True, check=True)
    kept = (PROJECT / "docs/reference/openapi.json").read_bytes()
    assert done.stdout == kept, "python -m tq_node.api.openapi > docs/reference/openapi.json"


@pytest.mark.parametrize("margin", ["", "    ", "\t"])
def test_it_does_not_depend_on_what_msgspec_does_with_docstrings(margin: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its release 0.23 takes their margin away, those before don't."""
    expected = openapi.document(documented_routes(), "0")
    assert b"\\n\\n``version``" in expected, "a docstring of several lines"
    real = msgspec.json.schema_components

    def described(text: str) -> str:
        first, *rest = inspect.cleandoc(text).split("\n")
        return "\n".join([first, *(line and margin + line for line in rest)])

    def with_margins(*arguments: Any, **options: Any) -> Any:
        references, components = real(*arguments, **options)
        for schema in components.values():
            if "description" in schema:
                schema["description"] = described(schema["description"])
        return references, components

    monkeypatch.setattr(msgspec.json, "schema_components", with_margins)
    assert openapi.document(documented_routes(), "0") == expected


def test_it_is_openapi_3_1(world: World) -> None:
    assert document(world)["openapi"] == "3.1.0"
    assert document(world)["info"]["version"] == "1.2.3"
    assert msgspec.json.encode(document(world))
