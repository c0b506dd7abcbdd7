"""The file that ``tq-token invite`` writes and ``--invitation`` takes: TOML.

    invitation = "tq_…"
    join = ["https://node-1:8080"]
    expires_at = "2030-01-31T00:00:00Z"

Whoever reads it may join once, and is given the cluster's secret."""

from __future__ import annotations

import os
import stat
import tomllib
from collections.abc import Sequence
from pathlib import Path

import msgspec

from tq_node.tokens import is_well_formed

BYTES_MAX = 16 * 1024


class BadInvitation(ValueError):
    """One line that names the file and what is wrong with it."""


class InvitationFile(msgspec.Struct, forbid_unknown_fields=True):
    """``join``: addresses of members; ``expires_at`` is for people."""

    invitation: str
    join: list[str] = []
    expires_at: str = ""

    def __repr__(self) -> str:
        """Without the invitation: this could end up in a log."""
        return f"InvitationFile(join={self.join}, expires_at={self.expires_at!r})"


def read(path: Path) -> InvitationFile:
    """:raises BadInvitation: it can't be read, can be read by others, or is none."""
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            content = file.read(BYTES_MAX + 1)
    except OSError as why:
        raise BadInvitation(f"{str(path)!r}: {why.strerror}") from None
    if mode & (stat.S_IROTH | stat.S_IWOTH | stat.S_IWGRP):
        raise BadInvitation(f"{str(path)!r} can be read or changed by others than its owner: chmod 600 {path}")
    try:
        found = msgspec.convert(tomllib.loads(content[:BYTES_MAX].decode()), InvitationFile)
    except (ValueError, msgspec.ValidationError) as why:
        raise BadInvitation(f"{str(path)!r} is no invitation: {why}") from None
    if not is_well_formed(found.invitation):
        raise BadInvitation(f"{str(path)!r} is no invitation: its letters are not those of one")
    return found


def text_of(invitation: str, join: Sequence[str], expires_at: str) -> str:
    """What the file holds."""
    addresses = ", ".join(f'"{address}"' for address in join)
    return (
        "# Lets one node join, once: --invitation THIS-FILE. Nobody else should read it.\n"
        f'invitation = "{invitation}"\njoin = [{addresses}]\nexpires_at = "{expires_at}"\n'
    )
