"""The palette: every action possible now, with its key, found by any part of its name."""

from __future__ import annotations

from functools import partial
from typing import Protocol, cast

from textual.command import DiscoveryHit, Hit, Hits, Provider

from tq_tui import keys


class PaletteHost(Protocol):
    """What the palette uses of the app: the screen in front, a way to run one of ``keys.ACTS``."""

    @property
    def kind(self) -> str: ...
    @property
    def readonly(self) -> bool: ...
    def action_act(self, name: str) -> None: ...


class ActionPalette(Provider):
    """From the table of keys, and the themes."""

    def _commands(self) -> list[tuple[str, partial[None]]]:
        """What belongs to the screen comes before what works everywhere."""
        console = cast("PaletteHost", self.app)
        acts = keys.available(console.kind, readonly=console.readonly)
        acts = sorted(acts, key=lambda act: act.where == keys.EVERYWHERE)
        found = [
            (f"{' '.join(map(keys.shown, act.keys)):<10} {act.title}", partial(console.action_act, act.id))
            for act in acts
        ]
        return found + [
            (f"{'':<10} Theme: {name}", partial(setattr, self.app, "theme", name))
            for name in sorted(self.app.available_themes)
        ]

    async def discover(self) -> Hits:
        for title, command in self._commands():
            yield DiscoveryHit(title.replace("[", "\\["), command, title)

    async def search(self, query: str) -> Hits:
        matcher = self.matcher(query)
        for title, command in self._commands():
            score = matcher.match(title)
            if score > 0:
                yield Hit(score, matcher.highlight(title), command, title)
