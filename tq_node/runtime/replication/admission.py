"""Whether a primary takes more work in: by what waits for disks and peers, in bytes, and how long it has waited.

The door of each node (``api.http.concurrency_limit``) lets in only so much; this is for what
comes through the doors of all others at once. No clock and no IO: it is told.
"""

from __future__ import annotations

from tq_node import limits


class Admission:
    """Looked at with each submission, and told some twenty times a second how long the oldest one has waited."""

    __slots__ = ("is_late",)

    def __init__(self) -> None:
        self.is_late = False

    def waited(self, ms: int) -> None:
        """:param ms: since the oldest caller that waits for a commit came; 0: nobody waits."""
        self.is_late = ms > limits.UNCOMMITTED_MS_MAX

    def is_full(self, uncommitted_bytes: int, *, is_large: bool) -> bool:
        """:param uncommitted_bytes: of entries proposed and not durable on all copies.

        :param is_large: a batch, or a long payload. One small task is taken even where others have waited for long: it adds next
            to nothing, and is not what they wait for.
        """
        if is_large and self.is_late and uncommitted_bytes > limits.UNCOMMITTED_BYTES_FREE:
            return True
        return uncommitted_bytes > limits.UNCOMMITTED_BYTES_MAX
