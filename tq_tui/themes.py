"""The console's own looks: dark, light, high contrast. Textual's are in the palette too."""

from __future__ import annotations

from textual.theme import Theme

THEMES = (
    Theme(
        name="taskqueue",
        primary="#5ea1ff",
        secondary="#b48cff",
        accent="#ffb454",
        warning="#f2c14e",
        error="#ff6b6b",
        success="#5fd38d",
        foreground="#d9dee8",
        background="#0f1319",
        surface="#161b23",
        panel="#1f2630",
        dark=True,
    ),
    Theme(
        name="taskqueue-light",
        primary="#1f5fbf",
        secondary="#6b3fc0",
        accent="#a85200",
        warning="#8a6100",
        error="#b3261e",
        success="#1b7a43",
        foreground="#1b1f24",
        background="#fbfbf9",
        surface="#f2f2ee",
        panel="#e4e5e0",
        dark=False,
    ),
    Theme(
        name="taskqueue-contrast",
        primary="#00d7ff",
        secondary="#ff87ff",
        accent="#ffff00",
        warning="#ffff00",
        error="#ff5f5f",
        success="#00ff5f",
        foreground="#ffffff",
        background="#000000",
        surface="#000000",
        panel="#303030",
        dark=True,
    ),
)
