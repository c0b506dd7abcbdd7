"""The lowest versions that ``setup.cfg`` allows, as constraints for pip: ``name==bound`` for each ``name >= bound``.

What those packages themselves need is left to pip, and so are the tools that test: who installs a node has none of them.
"""

from __future__ import annotations

import configparser
import re
import sys
from collections.abc import Iterator
from pathlib import Path

SETUP = Path(__file__).resolve().parent.parent / "setup.cfg"
EXTRAS = ("examples",)
BOUND = re.compile(r"([A-Za-z0-9._-]+)(?:\[[^]]*\])? >= ([0-9.]+)")


def lowest(text: str) -> Iterator[str]:
    """A line for each package that the given ``setup.cfg`` names. :raises ValueError: one has no lower bound."""
    parser = configparser.ConfigParser()
    parser.read_string(text)
    extras = parser["options.extras_require"]
    for listed in (parser["options"]["install_requires"], *(extras[name] for name in EXTRAS)):
        for line in listed.strip().splitlines():
            bound = BOUND.fullmatch(line)
            if bound is None:
                raise ValueError(f"no lower bound, or more than that: {line}")
            yield f"{bound[1]}=={bound[2]}"


if __name__ == "__main__":
    sys.stdout.write("".join(f"{line}\n" for line in lowest(SETUP.read_text())))
