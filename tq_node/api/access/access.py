"""What a route asks of its caller, and who the caller is (section 12 of the contract)."""

from __future__ import annotations

import enum

import msgspec

from tq_node.tokens import Quotas, Role


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

    @property
    def sees_payloads(self) -> bool:
        """Whether payloads, results, logs and messages of errors of others' tasks are shown."""
        return Access.READ in self.may

    @property
    def sees_others(self) -> bool:
        """Whether it may know of tasks that its token did not submit."""
        return Access.LOOK in self.may

    @property
    def changes_others(self) -> bool:
        """Whether it may change tasks that its token did not submit."""
        return Access.OPERATE in self.may


UNCHECKED = Caller("", frozenset({Role.ADMIN}), _ALL)
"""Every caller, where tokens are not checked."""
