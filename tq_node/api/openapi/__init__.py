"""OpenAPI 3.1, generated from the route table and from the structs that validate and render.

``python -m tq_node.api.openapi > docs/reference/openapi.json`` writes the copy that the
documentation keeps."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

import msgspec

from tq_node.api.access.access import ACCESS_OF, Access
from tq_node.api.problems import Problem
from tq_node.api.routes import Answer, Route
from tq_node.errors import (
    BadParameter,
    Busy,
    CrossOrigin,
    Denied,
    Malformed,
    Misdirected,
    NotReady,
    TaskQueueError,
    Unauthorized,
)
from tq_node.tokens import Role

_REF = "#/components/schemas/{name}"
_NDJSON_TEXT = "one task on each line, each a SubmitRequest"
_COMMON_ERRORS: tuple[type[TaskQueueError], ...] = (Malformed, CrossOrigin, Misdirected, Busy)
_TOKEN_ERRORS: tuple[type[TaskQueueError], ...] = (Unauthorized, Denied, NotReady)
"""Of every operation that is not open to all."""
_SECURITY_SCHEMES = {
    "token": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "tq_ and 49 characters of base62",
        "description": "Needed where the cluster has tokens. An operation lists the roles of which a token needs one; "
        "without a list it is open to all. A token with queues sees, and changes, tasks of these queues alone.",
    }
}
_EXCLUSIVE = {
    # null counts as not sent, hence the types.
    "not": {
        "required": ["delay", "run_at"],
        "properties": {"delay": {"type": "number"}, "run_at": {"type": ["string", "number"]}},
    }
}


def document(routes: Sequence[Route], version: str) -> bytes:
    """The whole document as compact JSON."""
    types = _types(routes)
    references, components = _schema_components(types)
    schema_of = dict(zip((repr(type_) for type_ in types), references, strict=True))
    components["SubmitRequest"].update(_EXCLUSIVE)
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        path = re.sub(r"<(\w+)>", r"{\1}", route.path)
        paths.setdefault(path, {})[route.method.lower()] = _operation(route, schema_of)
    return msgspec.json.encode(
        {
            "openapi": "3.1.0",
            "info": {
                "title": "taskqueue",
                "version": version,
                "description": "A distributed task queue. Every node answers every call. HEAD works wherever GET does.",
            },
            "paths": paths,
            "components": {"schemas": components, "securitySchemes": _SECURITY_SCHEMES},
        }
    )


def _schema_components(types: Sequence[Any]) -> tuple[Sequence[dict[str, Any]], dict[str, dict[str, Any]]]:
    """References to the types, and the schemas, the same by every release of msgspec."""
    references, components = msgspec.json.schema_components(types, ref_template=_REF)
    return references, {name: _settled(schema) for name, schema in components.items()}


def _settled(schema: Any) -> Any:
    """A schema: docstrings unindented, null as last choice, least length behind the greatest."""
    if isinstance(schema, dict):
        return {
            key: inspect.cleandoc(value) if key == "description" and isinstance(value, str) else _settled(value)
            for key, value in sorted(schema.items(), key=lambda item: item[0] == "minLength")
        }
    if isinstance(schema, list):
        return sorted(map(_settled, schema), key=[{"type": "null"}].count)
    return schema


def _types(routes: Sequence[Route]) -> list[Any]:
    found: dict[str, Any] = {repr(Problem): Problem}
    for route in routes:
        for type_ in (*route.bodies.values(), *(answer.body for answer in route.answers.values())):
            if type_ is not None:
                found.setdefault(repr(type_), type_)
    return list(found.values())


def _operation(route: Route, schema_of: dict[str, Any]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": re.sub(r"\W+", "_", f"{route.method.lower()} {route.path}").strip("_"),
        "summary": route.summary,
        "x-access": route.access.value,
        "security": _security(route.access),
        "parameters": _parameters(route),
        "responses": _responses(route, schema_of),
    }
    if route.bodies:
        operation["requestBody"] = {
            "required": True,
            "content": {
                content_type: {"schema": schema_of[repr(type_)] if type_ is not None else _text(_NDJSON_TEXT)}
                for content_type, type_ in route.bodies.items()
            },
        }
    return operation


def _security(access: Access) -> list[dict[str, list[str]]]:
    """The roles that may call what asks this, one choice each; none for what is open to all."""
    return [] if access is Access.OPEN else [{"token": [role]} for role in Role if access in ACCESS_OF[role]]


def _parameters(route: Route) -> list[dict[str, Any]]:
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": schema} for name, schema in route.path_values.items()
    ]
    _, components = _schema_components([route.query])
    struct = components[route.query.__name__]
    required = struct.get("required", [])
    for name, schema in struct["properties"].items():
        description = schema.pop("description", None)
        parameter: dict[str, Any] = {
            "name": name,
            "in": "query",
            "required": name in required,
            "schema": _not_null(schema),
        }
        if description is not None:
            parameter["description"] = description
        parameters.append(parameter)
    for name, schema in route.headers.items():
        parameters.append({"name": name, "in": "header", "required": False, "schema": schema})
    return parameters


def _not_null(schema: dict[str, Any]) -> dict[str, Any]:
    """Without null: an optional parameter is one that isn't there."""
    options = [option for option in schema.get("anyOf", ()) if option.get("type") != "null"]
    if len(options) == 1:
        return dict(options[0])
    if schema.get("default", ...) is None:
        return {name: value for name, value in schema.items() if name != "default"}
    return schema


def _responses(route: Route, schema_of: dict[str, Any]) -> dict[str, Any]:
    responses = {str(code): _response(answer, schema_of) for code, answer in route.answers.items()}
    kinds = [
        *_COMMON_ERRORS,
        *(() if route.access is Access.OPEN else _TOKEN_ERRORS),
        *((BadParameter,) if not route.open_query else ()),
        *route.errors,
    ]
    by_status: dict[int, list[type[TaskQueueError]]] = {}
    for kind in kinds:
        by_status.setdefault(kind.status, []).append(kind)
    if any(kind.code == "outcome_unknown" for kind in kinds):
        by_status.setdefault(503, [])
    for status, of_status in sorted(by_status.items()):
        codes = ", ".join(sorted({kind.code for kind in of_status}))
        problem = {
            "description": f"{HTTPStatus(status).phrase}: {codes}",
            "headers": _common_headers(_headers_of(of_status)),
            "content": {"application/problem+json": {"schema": schema_of[repr(Problem)]}},
        }
        responses.setdefault(str(status), problem)
    responses["default"] = {
        "description": "any other problem",
        "headers": _common_headers(()),
        "content": {"application/problem+json": {"schema": schema_of[repr(Problem)]}},
    }
    return responses


def _headers_of(kinds: Sequence[type[TaskQueueError]]) -> list[str]:
    return [
        *(["Retry-After"] if any(kind.retryable for kind in kinds) else []),
        *(["WWW-Authenticate"] if Unauthorized in kinds else []),
    ]


def _response(answer: Answer, schema_of: dict[str, Any]) -> dict[str, Any]:
    schema = schema_of[repr(answer.body)] if answer.body is not None else {"type": "string"}
    return {
        "description": answer.text,
        "headers": _common_headers(answer.headers),
        "content": {answer.content_type: {"schema": schema}},
    }


def _common_headers(more: Sequence[str]) -> dict[str, Any]:
    return {name: {"schema": {"type": "string"}} for name in ("X-Request-Id", *more)}


def _text(description: str) -> dict[str, Any]:
    return {"type": "string", "description": description}
