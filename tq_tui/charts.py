"""PURE. Draws a view as text: cards, charts, sums. A line: pieces ``(text, style)`` of Textual."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.cells import cell_len

from tq_tui import format as f
from tq_tui.client.models import STATES
from tq_tui.state.cluster_view import ClusterView, NodeView, Phase, Sample
from tq_tui.state.health import JUST_NOW_S, node_trouble

Piece = tuple[str, str]
Line = list[Piece]
CARD_WIDTH = 25
CARD_WIDTH_MAX = 66
CARD_GAP = 1
METRICS_STALE_S = 5.0
"""Age from which on the figures of slots are shown with it."""
BESIDE_WIDTH = 100
BESIDE_HEIGHT = 8
"""Size from which on charts are boxes, two beside one another."""
SHORT = {
    "scheduled": "sched", "pending": "pend", "processing": "run", "completed": "done", "failed": "fail",
    "cancelled": "canc",
}  # fmt: skip


def shown(line: Line) -> list[tuple[f.Text, str]]:
    """The line as it goes to the terminal, made printable: names and errors are others' text."""
    return [(f.printable(text), style) for text, style in line]


def length(line: Line) -> int:
    return sum(cell_len(text) for text, _ in shown(line))


def filled(line: Line, width: int) -> Line:
    """The line, cut or padded to ``width`` cells."""
    room = width
    cut: Line = []
    for text, style in shown(line):
        if cell_len(text) >= room:
            cut.append((f.fit(text, room) if cell_len(text) > room else text, style))
            return cut
        cut.append((text, style))
        room -= cell_len(text)
    return [*cut, (" " * room, "")]


# --- nodes ---
def node_word(view: ClusterView, node: NodeView) -> str:
    """A node's status as shown: what the console sees itself, else what the cluster map says."""
    if node.phase is Phase.DOWN:
        return "down"
    if node.phase is Phase.CONNECTING:
        return "connecting"
    return view.status_of(node) or "up"


def node_role(view: ClusterView, node: NodeView) -> str:
    if node.name and node.name == view.leader:
        return "leader"
    member = view.members.get(node.name)
    return "" if member is None else "voter" if member.voter else "member"


def uptime(view: ClusterView, node: NodeView) -> str:
    if node.metrics is None or not node.metrics.started_at_s or not node.is_up:
        return "-"
    return f.duration(view.now_s - node.metrics.started_at_s)


def cards(view: ClusterView, width: int, height: int) -> list[Line]:
    """A card for each node where there is room for all of them, else a line each."""
    number = len(view.nodes)
    if not number:
        return [[("no nodes yet", "$foreground-muted")]]
    columns = max(1, min(number, (width + CARD_GAP) // (CARD_WIDTH + CARD_GAP)))
    rows = -(-number // columns)
    card_width = min(CARD_WIDTH_MAX, (width + CARD_GAP) // columns - CARD_GAP)
    drawn = [card(view, node, card_width) for node in view.nodes]
    if width < CARD_WIDTH or rows * len(drawn[0]) > height:
        return node_lines(view, width)
    lines: list[Line] = []
    for row in range(rows):
        beside = drawn[row * columns : (row + 1) * columns]
        for pieces in zip(*beside, strict=True):
            line: Line = []
            for place, piece in enumerate(pieces):
                line += [(" " * CARD_GAP, "")] if place else []
                line += piece
            lines.append(line)
    return lines


def card(view: ClusterView, node: NodeView, width: int) -> list[Line]:
    """One node in ten framed lines; grey, with its last answer, while it is down."""
    word = node_word(view, node)
    alive = node.is_up
    edge = f.NODE_STYLES.get(word, "") if word != "active" else "$panel-lighten-2"
    grey = "" if alive else "$foreground-disabled"
    inner = width - 4
    role = node_role(view, node) if alive else ""
    title = f" {node.label} "
    badge = f" {f.NODE_GLYPHS.get(word, '?')} {word} "
    room = width - 4 - cell_len(badge)
    if cell_len(title) > room:
        title = f" {f.fit_middle(node.label, max(0, room - 2))} "  # addresses of one machine differ at their ends
    rule = "─" * (width - 4 - cell_len(title) - cell_len(badge))
    top: Line = [
        ("╭─", edge), (title, "bold" if alive else grey), (rule, edge), (badge, f.NODE_STYLES.get(word, "")), ("─╮", edge),
    ]  # fmt: skip
    body = _card_body(view, node, inner, role, grey)
    frame = [[("│ ", edge), *filled(line, inner), (" │", edge)] for line in body]
    return [top, *frame, [("╰" + "─" * (width - 2) + "╯", edge)]]


def _card_body(view: ClusterView, node: NodeView, inner: int, role: str, grey: str) -> list[Line]:
    led, held = view.held(node.name)
    behind, out_of_sync = view.lag(node.name)
    counts = node.primary
    metrics = node.metrics
    dim = grey or "$foreground-muted"
    if node.is_up:
        head: Line = [
            (("★ " if role == "leader" else "") + (role or "no member"), "bold $accent" if role == "leader" else ""),
            (f"  up {uptime(view, node)}", dim),
        ]
    elif node.phase is Phase.DOWN:
        head = [(_down(view, node, inner), "bold $error")]
    else:
        head = [(f"asking {node.address}" if inner >= 40 else "asking …", dim)]
    lag: Line = [("in sync", grey)] if not out_of_sync and not behind else [(f"{out_of_sync} out of sync", "$warning")]
    if out_of_sync == 0 and behind:
        lag = [(f"{f.count(behind)} {'entry' if behind == 1 else 'entries'} behind", grey or "$warning")]
    if not held:
        lag = [("no copies", dim)]
    elif not node.is_up and not out_of_sync:
        lag = [("not known", dim)]
    room = max(4, inner - 16)
    slots: Line = [(f.meter(0, 0, room), dim), (" -", dim)]
    if metrics is not None and node.is_up:
        asked = f" {metrics.busy}/{metrics.slots}"
        slots = [(f.meter(metrics.busy, metrics.slots, room), "$primary"), (asked, "")]
        if (age_s := view.now_s - node.metrics_at_s) > METRICS_STALE_S:
            aged = f"{asked} {f.duration(age_s)} ago"  # a node with many queues is asked for its metrics seldom
            slots = [(f.meter(metrics.busy, metrics.slots, max(2, inner - 6 - cell_len(aged))), dim), (aged, dim)]
    return [
        head,
        [("leads ", dim), (str(led), grey or "bold"), ("  holds ", dim), (str(held), grey or "bold")],
        [("lag   ", dim), *lag],
        [("slots ", dim), *slots],
        _states_line(counts, ("pending", "processing", "scheduled"), inner, grey),
        _states_line(counts, ("completed", "failed", "cancelled"), inner, grey),
        _last_line(view, node, dim),
    ]


def _down(view: ClusterView, node: NodeView, width: int) -> str:
    """How long a node has been down, and since what time of the day where there is room."""
    seconds = view.now_s - node.since_s
    if seconds < JUST_NOW_S:
        return "down"
    words = f"down for {f.duration(seconds)}"
    since = f"{words}, since {f.clock_second(node.since_s)}"
    return since if cell_len(since) <= width else words


def _last_line(view: ClusterView, node: NodeView, dim: str) -> Line:
    """The last line of a card: what is wrong with the node, else its rates."""
    if node.phase is Phase.DOWN:
        return [(node.error, "$error")]
    if trouble := node_trouble(view, node):
        return [(trouble, "$warning")]
    return [(f"{f.rate(node.rates.submitted)} in, {f.rate(node.rates.completed)} done", dim)]


def _states_line(counts: object, states: Sequence[str], width: int, grey: str) -> Line:
    line: Line = []
    each = width // len(states)
    for state in states:
        number = f.count(getattr(counts, state))
        style = grey or (f.STYLES[state] if number != "0" else "$foreground-muted")
        gap = " " if len(number) + 2 < each else ""
        line.append((f.fit(f"{f.GLYPHS[state]}{gap}{number}", each), style))
    return line


def node_lines(view: ClusterView, width: int) -> list[Line]:
    """A line for each node, for small terminals and many nodes."""
    label = min(20, max((cell_len(node.label) for node in view.nodes), default=6) + 1)
    lines = []
    for node in view.nodes:
        word = node_word(view, node)
        grey = "" if node.is_up else "$foreground-disabled"
        style = f.NODE_STYLES.get(word, "")
        star = "★" if node.name and node.name == view.leader else " "
        line: Line = [(f"{f.NODE_GLYPHS.get(word, '?')}{star}", style), (f.fit(node.label, label), grey or "bold")]
        line.append((f.fit(word, 7 if node.is_up and len(word) < 7 else 9), style))
        if node.is_up:
            led, held = view.held(node.name)
            busy, slots = (node.metrics.busy, node.metrics.slots) if node.metrics is not None else (0, 0)
            counts = node.primary
            line.append((f"{led}/{held} led {busy}/{slots} busy ", ""))
            for state in ("pending", "processing", "failed"):
                number = counts.of(state)
                line.append(
                    (f"{f.GLYPHS[state]}{f.count(number)} ", f.STYLES[state] if number else "$foreground-muted")
                )
            if trouble := node_trouble(view, node):
                line.append((f"{trouble} ", "$warning"))
            else:
                line.append((f"up {uptime(view, node)}", "$foreground-muted"))
        else:
            line.append((node_trouble(view, node), grey or "$foreground-muted"))
        lines.append(filled(line, width))
    return lines


# --- sums and charts ---
def totals(view: ClusterView, width: int) -> list[Line]:
    """Two lines: the cluster's tasks by state; the longest wait, slots and paused queues."""
    long, words = width >= 100, width >= 72
    line: Line = []
    at_least = "" if view.counts_are_whole or not view.partitions or not view.living else "≥"
    for state in STATES:
        number = view.counts.of(state)
        word = f"{state} " if long else f"{SHORT[state]} " if words else ""
        shown = "-" if not view.living else f.exact(number) if long else f.count(number)
        style = f.STYLES[state] if number else "$foreground-muted"
        line += [
            (f"{f.GLYPHS[state]} {word}", style if number else "$foreground-muted"),
            (f"{at_least}{shown}", f"bold {style}"),
            ("  ", ""),
        ]
    second: Line = [("oldest pending ", "$foreground-muted")]
    if view.oldest is None:
        second.append(("none", ""))
    else:
        queue, age_s = view.oldest
        second.append((f.duration(age_s), "bold $error" if age_s > 60 else "bold $warning" if age_s > 5 else "bold"))
        second.append((f" in {queue}", ""))
    busy, slots = view.slots
    second += [("   slots ", "$foreground-muted"), (f"{busy}/{slots}", "")]
    if view.paused:
        second += [("   ⏸ paused: ", "$warning"), (", ".join(view.paused), "bold $warning")]
    return [filled(line, width), filled(second, width)]


CHARTS: tuple[tuple[str, str, str, Callable[[Sample], float], Callable[[float], str]], ...] = (
    ("in", "submitted", "$primary", lambda one: one.rates.submitted, f.rate),
    ("done", "completed", "$success", lambda one: one.rates.completed, f.rate),
    ("failed", "failed", "$error", lambda one: one.rates.failed, f.rate),
    ("depth", "pending", "$warning", lambda one: float(one.pending), f.count),
    ("running", "processing", "$secondary", lambda one: float(one.processing), f.count),
)
"""Word, long word, style, the value of a sample, its format."""


def charts(view: ClusterView, width: int, height: int) -> list[Line]:
    """Rates and depth over the last minutes, as blocks, taller where there is room."""
    if height < 1:
        return []
    chosen = CHARTS if height >= 5 else (CHARTS[0], CHARTS[1], CHARTS[3], CHARTS[2])[:height]
    if width >= BESIDE_WIDTH and height >= BESIDE_HEIGHT:
        return _charts_beside(view, width, height)
    tall = max(1, min(5, height // len(chosen)))
    label = 18 if width >= 50 else 14
    lines: list[Line] = []
    for word, _, style, pick, say in chosen:
        values = [pick(sample) for sample in view.history]
        drawn = f.bar_chart(values, width - label, tall) if tall > 1 else [f.sparkline(values, width - label)]
        peak = f"max {say(max(values, default=0.0))}"
        now = say(values[-1]) if values else "-"
        for row, text in enumerate(drawn):
            head = f.fit(f"{word:<8}{now}", label) if row == tall - 1 else f.fit(peak if row == 0 else "", label)
            lines.append([(head, style if row == tall - 1 else "$foreground-muted"), (text, style)])
    return lines


def _charts_beside(view: ClusterView, width: int, height: int) -> list[Line]:
    half = (width - 3) // 2
    pairs = ((CHARTS[0], CHARTS[1]), (CHARTS[3], CHARTS[2]))
    tall = max(2, min(14, height // len(pairs) - 2))
    lines: list[Line] = []
    for pair in pairs:
        columns = [_boxed_chart(view, chart, half, tall) for chart in pair]
        lines += [[*left, (" ", ""), *right] for left, right in zip(*columns, strict=True)]
    return lines[:height]


def _boxed_chart(
    view: ClusterView,
    chart: tuple[str, str, str, Callable[[Sample], float], Callable[[float], str]],
    width: int,
    tall: int,
) -> list[Line]:
    word, long, style, pick, say = chart
    values = [pick(sample) for sample in view.history]
    now = say(values[-1]) if values else "-"
    edge = "$panel-lighten-2"
    title, right = f" {word} {now} ", f" {long}, max {say(max(values, default=0.0))} "
    rule = "─" * max(0, width - 4 - cell_len(title) - cell_len(right))
    top: Line = [("╭─", edge), (title, f"bold {style}"), (rule, edge), (right, "$foreground-muted"), ("─╮", edge)]
    body: list[Line] = [[("│", edge), (text, style), ("│", edge)] for text in f.bar_chart(values, width - 2, tall)]
    return [top, *body, [("╰" + "─" * (width - 2) + "╯", edge)]]
