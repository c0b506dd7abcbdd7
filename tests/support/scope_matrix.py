"""What a token may do with whose tasks, written down by hand: role x operation x whose task x queues of the token.

``whole``, ``redacted``: it sees the task so; ``done``: the change is made; ``404``: the task is as one that never was;
``409``: so an attempt is that never was; ``403``: refused by role or, where the caller names the queue, by scope. ``own``:
the token made it; the tokens with queues have ``mail``.
"""

from __future__ import annotations

ROLES = ("view", "read", "submit", "work", "operate", "admin")
TABLE = """
operation                 token  whose  queue  view      read   submit  work  operate  admin
GET /tasks/status         any    own    mail   whole     whole  whole   403   whole    whole
GET /tasks/status         any    other  mail   redacted  whole  404     403   whole    whole
GET /tasks/status         mail   own    mail   whole     whole  whole   403   whole    whole
GET /tasks/status         mail   other  mail   redacted  whole  404     403   whole    whole
GET /tasks/status         mail   own    sms    404       404    404     403   404      404
GET /tasks/status         mail   other  sms    404       404    404     403   404      404
GET /tasks/status wait    any    other  mail   redacted  whole  404     403   whole    whole
GET /tasks/status wait    mail   other  sms    404       404    404     403   404      404
GET /tasks/list           any    own    mail   whole     whole  403     403   whole    whole
GET /tasks/list           any    other  mail   redacted  whole  403     403   whole    whole
GET /tasks/list           mail   own    mail   whole     whole  403     403   whole    whole
GET /tasks/list           mail   other  mail   redacted  whole  403     403   whole    whole
GET /tasks/list           mail   own    sms    404       404    403     403   404      404
GET /tasks/list           mail   other  sms    404       404    403     403   404      404
GET /tasks/dead           any    other  mail   redacted  whole  403     403   whole    whole
GET /tasks/dead           mail   other  mail   redacted  whole  403     403   whole    whole
GET /tasks/dead           mail   other  sms    404       404    403     403   404      404
GET /tasks/stats          any    other  sms    whole     whole  403     403   whole    whole
GET /tasks/stats          mail   other  mail   whole     whole  403     403   whole    whole
GET /tasks/stats          mail   other  sms    404       404    403     403   404      404
GET /tasks/events         any    own    mail   whole     whole  whole   403   whole    whole
GET /tasks/events         any    other  mail   whole     whole  404     403   whole    whole
GET /tasks/events         mail   own    mail   whole     whole  whole   403   whole    whole
GET /tasks/events         mail   other  mail   whole     whole  404     403   whole    whole
GET /tasks/events         mail   own    sms    404       404    404     403   404      404
GET /tasks/events         mail   other  sms    404       404    404     403   404      404
POST /tasks/submit        any    own    mail   403       403    done    done  done     done
POST /tasks/submit        mail   own    mail   403       403    done    done  done     done
POST /tasks/submit        mail   own    sms    403       403    403     403   403      403
POST /tasks/batch         any    own    mail   403       403    done    done  done     done
POST /tasks/batch         mail   own    mail   403       403    done    done  done     done
POST /tasks/batch         mail   own    sms    403       403    403     403   403      403
POST /tasks/cancel        any    own    mail   403       403    done    403   done     done
POST /tasks/cancel        any    other  mail   403       403    404     403   done     done
POST /tasks/cancel        mail   own    mail   403       403    done    403   done     done
POST /tasks/cancel        mail   other  mail   403       403    404     403   done     done
POST /tasks/cancel        mail   own    sms    403       403    404     403   404      404
POST /tasks/cancel        mail   other  sms    403       403    404     403   404      404
POST /tasks/retry         any    own    mail   403       403    403     403   done     done
POST /tasks/retry         any    other  mail   403       403    403     403   done     done
POST /tasks/retry         mail   own    mail   403       403    403     403   done     done
POST /tasks/retry         mail   other  mail   403       403    403     403   done     done
POST /tasks/retry         mail   own    sms    403       403    403     403   404      404
POST /tasks/retry         mail   other  sms    403       403    403     403   404      404
POST /tasks/purge         any    own    mail   403       403    403     403   done     done
POST /tasks/purge         any    other  mail   403       403    403     403   done     done
POST /tasks/purge         mail   own    mail   403       403    403     403   done     done
POST /tasks/purge         mail   other  mail   403       403    403     403   done     done
POST /tasks/purge         mail   own    sms    403       403    403     403   404      404
POST /tasks/purge         mail   other  sms    403       403    403     403   404      404
POST /tasks/pause         any    -      mail   403       403    403     403   done     done
POST /tasks/pause         mail   -      mail   403       403    403     403   done     done
POST /tasks/pause         mail   -      sms    403       403    403     403   403      403
POST /tasks/resume        any    -      mail   403       403    403     403   done     done
POST /tasks/resume        mail   -      mail   403       403    403     403   done     done
POST /tasks/resume        mail   -      sms    403       403    403     403   403      403
POST /work/claim          any    other  mail   403       403    403     done  done     done
POST /work/claim          mail   own    mail   403       403    403     done  done     done
POST /work/claim          mail   other  mail   403       403    403     done  done     done
POST /work/claim          mail   other  sms    403       403    403     403   403      403
POST /work/extend         any    other  mail   403       403    403     done  done     done
POST /work/extend         mail   other  mail   403       403    403     done  done     done
POST /work/extend         mail   own    sms    403       403    403     409   409      409
POST /work/extend         mail   other  sms    403       403    403     409   409      409
POST /work/finish         any    other  mail   403       403    403     done  done     done
POST /work/finish         mail   other  mail   403       403    403     done  done     done
POST /work/finish         mail   own    sms    403       403    403     409   409      409
POST /work/finish         mail   other  sms    403       403    403     409   409      409
"""
WITHOUT = """
GET / : no task
GET /health : no task
GET /livez : no task
GET /ready : no task
GET /readyz : no task
GET /openapi.json : no task
GET /problems/{code} : no task
GET /handlers : types, not tasks
GET /workers : workers, not tasks
GET /metrics : counts of all queues by name, for whoever runs the node
GET /cluster : nodes
GET /cluster/partitions : partitions
POST /workers/reload : handlers
POST /workers/quiet : workers
POST /workers/stop : workers
POST /workers/resume : workers
GET /types/list : types, without those of other queues
POST /types/put : types, for tokens of all queues alone
POST /types/delete : as put
POST /workers/announce : types, none into another queue
POST /cluster/join : nodes
POST /cluster/invite : nodes
POST /cluster/drain : nodes
POST /cluster/undrain : nodes
POST /cluster/remove : nodes
POST /cluster/rebalance : nodes
POST /cluster/shutdown : nodes
POST /cluster/snapshot : the node's whole store, on its own disk
POST /cluster/unsafe-recover : partitions
GET /audit : the log of all callers, for whoever runs the node
POST /tokens/put : see test_tokens: none that reaches beyond its own queues
GET /tokens/list : as put
POST /tokens/revoke : as put
"""
"""Operations on which a token's queues have no bearing, and why."""


class Row:
    """One line of the table."""

    def __init__(self, line: str) -> None:
        words = line.split()
        *operation, self.token, self.whose, self.queue = words[: -len(ROLES)]
        self.method, self.path, *more = operation
        self.waits = more == ["wait"]
        self.expected = dict(zip(ROLES, words[-len(ROLES) :], strict=True))

    def __repr__(self) -> str:
        return f"{self.method} {self.path} token={self.token} whose={self.whose} queue={self.queue}"


ROWS = [Row(line) for line in TABLE.strip().split("\n")[1:]]
COVERED = {(row.method, row.path) for row in ROWS} | {
    (line.split()[0], line.split()[1]) for line in WITHOUT.strip().split("\n")
}
