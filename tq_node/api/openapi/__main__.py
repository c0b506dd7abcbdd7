"""``python -m tq_node.api.openapi > docs/reference/openapi.json`` writes the kept copy."""

from __future__ import annotations

import msgspec

from tq_node.api.assembly import documented_routes
from tq_node.api.openapi import document


def main() -> None:
    """Print the document, sorted and indented."""
    print(  # noqa: T201  # this is a command
        msgspec.json.format(document(documented_routes(), "0"), indent=2).decode("utf-8")
    )


if __name__ == "__main__":
    main()
