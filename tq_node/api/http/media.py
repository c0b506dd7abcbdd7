"""Media types of bodies: JSON, or newline-delimited JSON."""

from __future__ import annotations

from tq_node.errors import NotJson

NDJSON = "application/x-ndjson"
JSON_TYPE = b"application/json"


def refuse_media_type(header: bytes, *, ndjson: bool) -> None:
    """Refuse a ``Content-Type`` that no body could make acceptable.

    :raises NotJson: neither JSON nor, if allowed, newline-delimited JSON."""
    takes_lines(header, b"{", ndjson=ndjson)


def takes_lines(header: bytes, body: bytes, *, ndjson: bool) -> bool:
    """Whether the body is newline-delimited.

    :raises NotJson: it is neither that nor JSON, or not in UTF-8.

    ``curl -d`` calls everything a form, and the scripts of the original example send their JSON so:
    what claims to be a form and looks like JSON is read as JSON. (What a page of another site sends
    has been refused before: ``heads``.)"""
    media_type, _, parameters = header.partition(b";")
    media_type = media_type.strip().lower()
    is_lines = ndjson and media_type == NDJSON.encode("ascii")
    is_json = media_type == JSON_TYPE or (media_type.startswith(b"application/") and media_type.endswith(b"+json"))
    if media_type == b"application/x-www-form-urlencoded":
        is_json = body[:64].lstrip()[:1] in (b"{", b"[")
    if not is_lines and not is_json:
        hint = "; with curl, add -H 'Content-Type: application/json'" if media_type.endswith(b"form-urlencoded") else ""
        raise NotJson(f"Content-Type {media_type[:100].decode('latin-1')}: JSON is expected{hint}")
    for parameter in parameters.split(b";"):
        name, _, value = parameter.partition(b"=")
        if name.strip().lower() == b"charset" and value.strip(b' \t"').lower() not in (b"utf-8", b"utf8", b"us-ascii"):
            raise NotJson("JSON is expected in UTF-8")
    return is_lines


def refuse_encoded(encoding: bytes | None) -> None:
    """Refuse a ``Content-Encoding``; raises ``NotJson`` if the body is compressed."""
    if encoding is not None and encoding.strip().lower() not in (b"", b"identity"):
        raise NotJson(
            f"Content-Encoding {encoding[:100].decode('latin-1')}: bodies are taken as they are, not compressed"
        )
