"""Names that callers choose and operators see: of task types and queues. They reach terminals, logs and pages."""

from __future__ import annotations

import re

from tq_node.errors import InvalidField

_UNSHOWN = r"\u0000-\u001f\u007f-\u009f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"
"""C0, DEL and C1, which terminals obey; ends of lines; marks that turn the direction of writing. Joiners of emoji may stay."""
NAME_PATTERN = f"^[^{_UNSHOWN}]*$"
_unshown = re.compile(f"[{_UNSHOWN}]").search


def is_shown(name: str) -> bool:
    return name.isprintable() or _unshown(name) is None


def refuse_unshown(field: str, name: str, at: str) -> None:
    """:raises InvalidField: the name of ``field`` has a letter that is obeyed and not shown."""
    if not is_shown(name):
        raise InvalidField(f"{field}: control characters and marks of direction are not allowed", field=f"{at}/{field}")
