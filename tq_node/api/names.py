"""Names of task types and queues: callers choose them, and they reach terminals, logs and pages."""

from __future__ import annotations

import re

from tq_node.errors import InvalidField

_UNSHOWN = r"\u0000-\u001f\u007f-\u009f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"
"""C0, DEL, C1, which terminals obey; line ends; direction marks. Joiners of emoji are allowed."""
NAME_PATTERN = f"^[^{_UNSHOWN}]*$"
_unshown = re.compile(f"[{_UNSHOWN}]").search


def is_shown(name: str) -> bool:
    """Whether the name has no control characters and no marks of direction."""
    return name.isprintable() or _unshown(name) is None


def refuse_unshown(field: str, name: str, at: str) -> None:
    """Check a name; raises ``InvalidField`` (below ``at``) for control or direction characters."""
    if not is_shown(name):
        raise InvalidField(f"{field}: control characters and marks of direction are not allowed", field=f"{at}/{field}")
