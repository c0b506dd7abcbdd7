"""What a route asks of its caller, and who the caller is (section 12 of the contract)."""

from __future__ import annotations

import enum

import msgspec

from tq_node.tokens import Asker, Quotas, Role


class Access(enum.Enum):
    """What a route asks of its caller. The value is what stands in the OpenAPI document."""

    __hash__ = object.__hash__  # members are compared as objects, and each request looks one up
    OPEN = "open"
    """Nothing."""
    LOOK = "look"
    """To see lists, counts, cluster and events; the role ``view`` gets them redacted."""
    READ_OWN = "read_own"
    """As ``LOOK``, and ``submit`` sees what its token made."""
    READ = "read"
    """To see what is redacted for ``view`` as a whole."""
    SUBMIT = "submit"
    """To submit tasks."""
    CHANGE_OWN = "change_own"
    """To cancel: ``operate`` any task, ``submit`` what its token made."""
    WORK = "work"
    """To claim and end attempts."""
    OPERATE = "operate"
    """To change tasks, queues and workers."""
    ADMIN = "admin"
    """To change the cluster and the tokens."""


_ALL = frozenset(Access)
_LOOK = frozenset({Access.OPEN, Access.LOOK, Access.READ_OWN})
_OPERATE = _ALL - {Access.ADMIN}
ACCESS_OF: dict[Role, frozenset[Access]] = {
    Role.VIEW: _LOOK,
    Role.READ: _LOOK | {Access.READ},
    Role.SUBMIT: frozenset({Access.OPEN, Access.READ_OWN, Access.SUBMIT, Access.CHANGE_OWN}),
    Role.WORK: frozenset({Access.OPEN, Access.WORK, Access.SUBMIT}),
    Role.OPERATE: _OPERATE,
    Role.ADMIN: _ALL,
}


class Caller(msgspec.Struct, frozen=True):
    """Who makes a request, with all that its token allows."""

    name: str
    """Of its token; empty: tokens are not checked."""
    roles: frozenset[Role]
    may: frozenset[Access]
    queues: frozenset[str] | None = None
    """Its tasks are those of these queues; None: of any."""
    quotas: Quotas = Quotas()
    expires_us: int | None = None

    # --- what follows from these: worked out once, for each request looks at it ---
    sees_payloads: bool = False
    """Whether payloads, results, logs and messages of errors of others' tasks are shown."""
    sees_others: bool = False
    """Whether it may know of tasks that its token did not submit."""
    changes_others: bool = False
    """Whether it may change tasks that its token did not submit."""
    to_see: Asker | None = None
    """Who asks to see a task; None: one that may know of all."""
    to_change: Asker | None = None
    """Who asks for the change of a task; None where nobody had to prove who it is."""

    def __post_init__(self) -> None:
        queues = None if self.queues is None else tuple(sorted(self.queues))
        sees_others, changes_others = Access.LOOK in self.may, Access.OPERATE in self.may
        sees, changes = Asker(self.name, queues, not sees_others), Asker(self.name, queues, not changes_others)
        for field, value in (
            ("sees_payloads", Access.READ in self.may),
            ("sees_others", sees_others),
            ("changes_others", changes_others),
            ("to_see", sees if sees.is_restricted else None),
            ("to_change", changes if changes.is_restricted or self.name else None),
        ):
            msgspec.structs.force_setattr(self, field, value)


UNCHECKED = Caller("", frozenset({Role.ADMIN}), _ALL)
"""Every caller, where tokens are not checked."""
