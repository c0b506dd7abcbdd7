"""Report what handlers raise to Sentry, by a hook around each attempt."""

import os
from typing import Any

import sentry_sdk

from tq_node import Context, Reject, Retry, task

FLUSH_S = 2
"""How long an attempt that failed may wait for its report to be sent."""


class SentryHooks:
    """Named by an entry point of the group ``taskqueue.middleware``; made once in each process."""

    def __init__(self) -> None:
        sentry_sdk.init(dsn=os.environ.get("SENTRY_DSN"), send_default_pii=False)

    def error(self, context: Context, error: BaseException) -> None:
        """Report an unexpected error; ``Retry`` and ``Reject`` are a handler's own words."""
        if isinstance(error, (Retry, Reject)):
            return
        with sentry_sdk.new_scope() as scope:
            scope.set_transaction_name(context.type)
            scope.set_tag("queue", context.queue)
            scope.set_context(
                "task", {"id": context.task_id, "attempt": context.attempt, "left": context.attempts_left}
            )
            scope.capture_exception(error)
        sentry_sdk.flush(FLUSH_S)


@task("charge", max_attempts=1)
def charge(payload: Any, context: Context) -> float:
    """Something to fail: a price for each, where there may be none."""
    return float(payload["total"] / payload["count"])
