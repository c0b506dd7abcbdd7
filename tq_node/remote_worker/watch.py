"""Says when the code of handlers has changed on disk, for ``tq-worker --watch``."""

from __future__ import annotations

import sys
from collections.abc import Collection
from pathlib import Path


class Watch:
    """The files of the packages that these modules belong to, by what the system says of them."""

    def __init__(self, modules: Collection[str]) -> None:
        self._packages = {name.partition(".")[0] for name in modules}
        self._seen = self._look()

    def has_changed(self) -> bool:
        """Whether a file was changed, came or went since the last time."""
        before, self._seen = self._seen, self._look()
        return before != self._seen

    def _look(self) -> dict[Path, tuple[int, int]]:
        found: dict[Path, tuple[int, int]] = {}
        for name, module in list(sys.modules.items()):
            file = getattr(module, "__file__", None)
            if file is None or name.partition(".")[0] not in self._packages:
                continue
            paths = Path(file).parent.rglob("*.py") if hasattr(module, "__path__") else [Path(file)]
            for path in paths:
                try:
                    state = path.stat()
                except OSError:
                    continue
                found[path] = state.st_mtime_ns, state.st_size
        return found
