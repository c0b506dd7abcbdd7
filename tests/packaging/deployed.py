"""What tests of ``deploy/`` share: Dockerfiles and environment files as values."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import NamedTuple

from tests.support.harness import PROJECT

DEPLOY = PROJECT / "deploy"


class Instruction(NamedTuple):
    word: str
    text: str

    @property
    def listed(self) -> list[str]:
        """The exec form: a JSON array."""
        found = json.loads(self.text)
        assert isinstance(found, list)
        return found


def stages(dockerfile: Path) -> list[list[Instruction]]:
    """The instructions of each stage, from its FROM on; continued lines joined, comments left out."""
    found: list[list[Instruction]] = []
    text = re.sub(r"^\s*#.*\n", "", dockerfile.read_text(), flags=re.MULTILINE)
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        if not line.strip():
            continue
        word, _, rest = line.strip().partition(" ")
        if word == "FROM":
            found.append([])
        if found:
            found[-1].append(Instruction(word, rest.strip()))
    return found


def environment_file(text: str) -> dict[str, str]:
    """As systemd reads it, of the plain kind that we write."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)
