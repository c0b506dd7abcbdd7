"""Rules of the cluster map on who may join: invitations, and certificates that nodes have shown."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tq_node import limits
from tq_node.cluster.commands import NoteCertificate, PutInvitation, TakeInvitation
from tq_node.cluster.map_edit import MapEdit
from tq_node.cluster.refusals import Refusal
from tq_node.cluster.soundness import is_invitation_sound
from tq_node.tokens import HASH_BYTES


def put_invitation(edit: MapEdit, command: PutInvitation) -> None:
    entry = command.entry
    kept = tuple(one for one in edit.before.invitations if one.expires_us > command.now_us)
    if not is_invitation_sound(entry) or any(one.hash == entry.hash for one in kept):
        edit.refuse(Refusal.BAD_SETTINGS)
    elif len(kept) >= limits.INVITATIONS_MAX:
        edit.refuse(Refusal.TOO_MANY)
    else:
        edit.set(invitations=(*kept, entry))


def take_invitation(edit: MapEdit, command: TakeInvitation) -> None:
    """One that has expired goes as well, and is refused."""
    found = next((one for one in edit.before.invitations if one.hash == command.hash), None)
    if found is None or found.expires_us <= command.now_us:
        edit.refuse(Refusal.NOT_NEEDED)
    else:
        edit.set(invitations=tuple(one for one in edit.before.invitations if one is not found))


def note_certificate(edit: MapEdit, command: NoteCertificate) -> None:
    node = edit.before.nodes.get(command.node_id)
    shown = edit.before.certificates.get(command.node_id, ())
    if len(command.certificate) != HASH_BYTES:
        edit.refuse(Refusal.BAD_SETTINGS)
    elif node is None or not node.is_member:
        edit.refuse(Refusal.NO_SUCH_NODE)
    elif shown[-1:] != (command.certificate,):
        others = [one for one in shown if one != command.certificate]
        last = (*others, command.certificate)[-limits.CERTIFICATES_OF_NODE_MAX :]
        edit.set(certificates=dict(sorted({**edit.before.certificates, command.node_id: last}.items())))


JOINING_RULES: dict[type, Callable[[MapEdit, Any], None]] = {
    PutInvitation: put_invitation,
    TakeInvitation: take_invitation,
    NoteCertificate: note_certificate,
}
