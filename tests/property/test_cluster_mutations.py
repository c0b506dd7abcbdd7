"""Every rule of the controller switched off once, in the code that runs: each must be caught, or be listed with the reason."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from tests.unit.tq_node.cluster.deaths import DeathWorld
from tests.unit.tq_node.cluster.laws import LawBroken
from tests.unit.tq_node.cluster.random_table import RandomTable
from tests.unit.tq_node.cluster.settling import settle
from tests.unit.tq_node.cluster.shares import shares_are_kept
from tests.unit.tq_node.cluster.tables import Table
from tests.unit.tq_node.cluster.voting import voters_are_sound
from tq_node.cluster import commands as c
from tq_node.cluster import (
    liveness,
    map,  # noqa: A004
    map_edit,
    placement,
    planner,
    primary_choice,
    rules_moves,
    rules_nodes,
    rules_partitions,
    rules_tokens,
    soundness,
    voters,
)
from tq_node.cluster.liveness import Liveness
from tq_node.cluster.planner import Planner
from tq_node.cluster.records import FEATURE_LEVEL_MAX, HANDLERS_LEVEL
from tq_node.types import HandlerKind

pytestmark = pytest.mark.slow
SEEDS = 400
BASES = (0, 10_000, 20_000)
Patch = Callable[[pytest.MonkeyPatch], None]
World = Callable[[int], None]


def entries(seed: int) -> None:
    world = RandomTable(random.Random(seed))
    world.run(60)
    world.replay()


def deaths(seed: int) -> None:
    DeathWorld(random.Random(seed)).run(60)


def rest(seed: int) -> None:
    settle(random.Random(seed), 40)


def made_up(_: int) -> None:
    """A move that leaves one copy where two are asked for: raised in between, ``min_isr`` would never let it end."""
    table = Table(3, factor=2)
    table.do(table.begin((2,), (1,)))
    table.do(table.alter(1, 2))
    table.do(c.RaiseMinIsr((table.seen(),)))
    table.do(c.PlanPrimary((table.primary_step(2),)))
    table.do(table.step_down(1, 0))
    assert not table.do(table.alter(2)).refused


def later(_: int) -> None:
    """The others have raised the level to what this code has never heard of (F44)."""
    table = Table(2)
    for number in (1, 2):
        table.register(number, 2, feature_level_max=FEATURE_LEVEL_MAX + 1)
    try:
        map.apply(table.map, table.index + 1, c.RaiseFeatureLevel(FEATURE_LEVEL_MAX + 1))
    except map.UnreadableMap:
        return
    raise LawBroken("F44: a table is made that this code cannot read")


def upgraded(_: int) -> None:
    """Nodes with handlers of their own, before and after the table can keep that there are any (F44)."""
    table = Table(1)
    for number in (1, 2):
        table.register(number, 2, feature_level_max=FEATURE_LEVEL_MAX, handlers=HandlerKind.OWN)
    table.do(c.RaiseFeatureLevel(HANDLERS_LEVEL))
    table.register(3, feature_level_max=FEATURE_LEVEL_MAX, handlers=HandlerKind.OWN)


def returns(_: object) -> Any:
    return lambda *args, **kwargs: _


def off(owner: Any, name: str, value: Any) -> Patch:
    """Replace a rule by an answer; wherever its name was imported, too."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(owner, name, returns(value) if not callable(value) else value)
        if not isinstance(owner, type):
            for module in (
                primary_choice,
                map,
                rules_moves,
                planner,
                rules_nodes,
                rules_partitions,
                rules_tokens,
                liveness,
                voters,
            ):
                if module is not owner and hasattr(module, name):
                    monkeypatch.setattr(module, name, getattr(owner, name))

    return patch


def _without_leader(self: Liveness, node: Any, nodes: Any, voters_now: Any, me: Any) -> bool:
    said = self._evidence.get(node, {})
    return liveness.is_majority([r for r, e in said.items() if liveness.is_of_present_sessions(e, nodes)], voters_now)


def _stirred(self: placement._Layout, node: Any) -> list[int]:
    for partition in sorted(self.held[node])[:2]:
        self.relocate(partition, node, self.find_place)
    return sorted(self.held[node])


def rule(kind: type[c.Command], instead: Callable[[map_edit.MapEdit, Any], None]) -> Patch:
    """Replace the rule of a kind of command."""
    return lambda monkeypatch: monkeypatch.setitem(map.RULES, kind, instead)


def _put_beside(edit: map_edit.MapEdit, command: c.PutToken) -> None:
    tokens = (*edit.before.tokens, command.entry)
    edit.set(tokens=tuple(sorted(tokens, key=lambda token: token.name)), tokens_seen=True)
    edit.note_token(command.entry.name)


def _put_last(edit: map_edit.MapEdit, command: c.PutToken) -> None:
    rules_tokens.put(edit, command)
    others = tuple(token for token in edit.before.tokens if token.name != command.entry.name)
    if not edit.refused and command.entry not in edit.before.tokens:
        edit.set(tokens=(*others, command.entry))


def _revoke_and_forget(edit: map_edit.MapEdit, command: c.RevokeToken) -> None:
    rules_tokens.revoke(edit, command)
    if not edit.refused:
        edit.set(tokens_seen=len(edit.before.tokens) > 1)


def _below_its_level(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = {kind: level for kind, level in c.FEATURE_LEVEL_OF.items() if kind is not c.PutToken}
    monkeypatch.setattr(c, "FEATURE_LEVEL_OF", kinds)


MUTATIONS: dict[str, tuple[World, Patch]] = {
    # --- R1 to R3 ---
    "R1: any copy may lead": (
        entries,
        off(primary_choice, "candidates", lambda e, nodes: [n for n in e.copies if nodes[n].is_up]),
    ),
    "R1: the dead may lead": (entries, off(primary_choice, "candidates", lambda e, nodes: list(e.isr))),
    "R2: a choice is no new epoch": (entries, off(primary_choice, "next_epoch", lambda epoch: epoch)),
    "R2: a new run stays primary": (
        entries,
        off(rules_nodes, "is_choice_due", lambda e, n: e.primary is None and n in e.isr),
    ),
    "R1: a member that returns ends no waiting": (
        entries,
        off(rules_nodes, "is_choice_due", lambda e, n: e.primary == n),
    ),
    "R3: the dead leave without end": (entries, off(primary_choice, "may_shrink", lambda members, least: members > 1)),
    "R3: the dead never leave": (entries, off(primary_choice, "may_shrink", False)),
    "R3: AlterIsr below min_isr": (entries, off(rules_partitions, "is_enough", True)),
    # --- R4 ---
    "R4: any epoch": (entries, off(rules_partitions, "is_epoch_present", True)),
    "R4: any version": (entries, off(rules_partitions, "is_version_present", True)),
    "R4: twice in one entry": (entries, off(map_edit.MapEdit, "is_touched", False)),
    "R4: any sender": (entries, off(rules_partitions, "is_primary", True)),
    "R4: any session (F25)": (entries, off(rules_nodes, "is_session_present", lambda d, n, s: n in d.nodes)),
    "R4: the primary may leave": (entries, off(rules_partitions, "keeps_primary", True)),
    "R4: any number of steps": (entries, off(rules_partitions, "is_one_step", lambda e, isr: True)),
    "R4: the added need not be up": (
        entries,
        off(rules_partitions, "is_copy_up", lambda d, e, added: all(n in e.copies for n in added)),
    ),
    "R4: the added need not be a copy": (
        entries,
        off(rules_partitions, "is_copy_up", lambda d, e, added: all(n in d.nodes and d.nodes[n].is_up for n in added)),
    ),
    "R4: the living may leave before the dead (F25)": (entries, off(rules_partitions, "dead_go_first", True)),
    # --- registration ---
    "F15: any cluster": (entries, off(rules_nodes, "is_wrong_cluster", False)),
    "the removed come back": (entries, off(rules_nodes, "is_removed", False)),
    "F13: any name": (entries, off(rules_nodes, "is_name_taken", False)),
    "F14: a cloned store": (entries, off(rules_nodes, "is_store_cloned", False)),
    # --- leaving ---
    "a removal leaves nobody": (entries, off(rules_nodes, "is_last_node", False)),
    "a removal gives up the last copy": (entries, off(rules_nodes, "is_last_copy", False)),
    "a living node is removed with its copies": (entries, off(rules_nodes, "holds_copies", False)),
    "the removed stay copies": (entries, off(primary_choice, "without_removed", lambda entry, nodes: entry)),
    "min_isr is lowered to 1 by any removal": (entries, off(rules_nodes, "lowered_min_isr", lambda d, e: 1)),
    "min_isr is not lowered for two members": (entries, off(rules_nodes, "lowered_min_isr", lambda d, e: e.min_isr)),
    "min_isr above the set": (entries, off(rules_partitions, "allows_min_isr", True)),
    "min_isr while some move away": (
        made_up,
        off(rules_partitions, "allows_min_isr", lambda e, wanted: len(e.isr) >= wanted),
    ),
    # --- moves ---
    "a move to anybody": (
        entries,
        off(rules_moves, "are_targets", lambda d, e, s: all(n in d.nodes and n not in e.copies for n in s.adding)),
    ),
    "a move makes copies everywhere": (entries, off(rules_moves, "is_within_one_more", True)),
    "a move leaves too few": (entries, off(rules_moves, "leaves_enough", True)),
    "a move ends before the newcomer counts": (entries, off(rules_moves, "are_in_sync", True)),
    "a move ends while the leaver counts": (entries, off(rules_moves, "are_out_of_sync", True)),
    "changes do not raise the version": (
        entries,
        off(map_edit, "raised_version", lambda before: before.partition_version),
    ),
    # --- R5, R5a ---
    "R5: nobody is ever silent": (deaths, off(Liveness, "is_silent", False)),
    "R5: half of T_session": (deaths, off(Liveness, "is_silent", lambda self, n, t: self.silence_ms(n, t) >= 1_000)),
    "R5, F7: no grace by a new leader": (deaths, off(Liveness, "lead", None)),
    "R5: a registration is no word": (deaths, off(Liveness, "_follow_nodes", None)),
    "F40: who slept buries everybody": (deaths, off(Liveness, "tick", None)),
    "R5a: one refusal": (deaths, off(liveness, "is_conclusive", lambda e, apart: e.is_broken)),
    "R5a: without a broken connection": (
        deaths,
        off(
            liveness,
            "is_conclusive",
            lambda e, apart: len(e.refused_at_ms) > 1 and e.refused_at_ms[-1] - e.refused_at_ms[0] >= apart,
        ),
    ),
    "R5a: any session": (deaths, off(liveness, "is_of_present_sessions", True)),
    "R5a: one voter is enough": (deaths, off(liveness, "is_majority", lambda said, voters: True)),
    "R5a: half is a majority": (
        deaths,
        off(liveness, "is_majority", lambda said, voters: 2 * len(set(said) & set(voters)) >= len(voters)),
    ),
    "R5a: learners count": (deaths, off(liveness, "is_majority", lambda said, voters: 2 * len(said) > len(voters))),
    "R5a: without the leader": (
        deaths,
        off(Liveness, "is_proven_dead", _without_leader),
    ),
    "R5a: who is heard stays dead": (
        deaths,
        off(Liveness, "record_heartbeat", lambda self, n, t, i, h: self._contact_ms.__setitem__(n, t)),
    ),
    "R5a: reports are not taken back": (deaths, off(Liveness, "withdraw_evidence", None)),
    # --- bounds, fewest moves, throttle ---
    "no bound on copies": (shares_are_kept, off(placement, "share_max", lambda total, nodes: total)),
    "one more than the share": (
        shares_are_kept,
        off(placement, "share_max", lambda total, nodes: -(-total // nodes) + 1),
    ),
    "draining nodes keep what they have": (rest, off(Planner, "may_keep", lambda self, node: node.is_member)),
    "the dead keep their copies": (
        shares_are_kept,
        off(Planner, "may_keep", lambda self, node: node.is_member and not node.is_draining),
    ),
    "the dead lose their copies at once": (
        shares_are_kept,
        off(Planner, "may_keep", lambda self, node: node.is_target),
    ),
    "what cannot move is moved": (rest, off(Planner, "is_pinned", lambda self, e: e.is_moving)),
    "dead copies are given up before others exist": (rest, off(Planner, "copies_left_min", 1)),
    "everything is moved about": (
        shares_are_kept,
        off(placement._Layout, "liked_least", _stirred),
    ),
    "big moves all at once": (shares_are_kept, off(planner._Turns, "take", True)),
    "sizes do not matter": (shares_are_kept, off(planner._Turns, "is_big", False)),
    "hopeless moves go on": (rest, off(Planner, "is_hopeless", False)),
    "moves that min_isr holds go on": (rest, off(Planner, "is_held", False)),
    "moves that wait for a newcomer count as held": (
        rest,
        off(Planner, "is_held", lambda self, e: not rules_moves.are_out_of_sync(e) and len(e.isr) <= e.min_isr),
    ),
    "no successors": (rest, off(Planner, "successor", None)),
    "no overdue successors": (shares_are_kept, off(Planner, "overdue_successors", lambda self: [])),
    "min_isr is never raised": (shares_are_kept, off(Planner, "raises", lambda self: [])),
    "waiting has no reason": (rest, off(Planner, "note_stuck", None)),
    "a choice ignores how much a node leads": (shares_are_kept, off(map_edit.MapEdit, "primaries_on", 0)),
    "what makes up for a lost copy does not go first": (shares_are_kept, off(Planner, "is_urgent", False)),
    "who has not read the table is given copies": (shares_are_kept, off(Planner, "is_at_hand", True)),
    # --- voters ---
    "voters: two are kept": (voters_are_sound, off(voters, "count_wanted", min)),
    "voters: five though three are wanted": (
        voters_are_sound,
        off(voters, "count_wanted", lambda able, wanted: able if able % 2 else able - 1),
    ),
    "voters: not caught up": (
        voters_are_sound,
        off(voters._Group, "is_able", lambda self, n: self.node(n).is_target),
    ),
    "voters: a replacement without health": (voters_are_sound, off(voters._Group, "is_trusted", True)),
    "voters: a restart costs the vote": (
        voters_are_sound,
        off(voters._Group, "is_dead_long", lambda self, n: not self.node(n).is_up),
    ),
    "voters: the dead are never replaced": (
        voters_are_sound,
        off(voters._Group, "is_replaceable", lambda self, n: self.node(n).is_draining),
    ),
    "voters: a vote is given up before somebody else may take it": (
        voters_are_sound,
        off(voters._Group, "stand_ins", lambda self: [n for n in self.by_age(self.view.learners) if self.is_ready(n)]),
    ),
    "voters: nobody waits for who may yet catch up": (voters_are_sound, off(voters._Group, "is_one_coming", False)),
    "voters: who leaves keeps the vote": (voters_are_sound, off(voters._Group, "must_go", False)),
    "voters: an even number is kept": (voters_are_sound, off(voters, "_settle_even", None)),
    "voters: a leader does not hand over": (voters_are_sound, off(voters, "_transfer", None)),
    # --- access tokens ---
    "tokens: any token": (entries, off(soundness, "is_token_sound", True)),
    "tokens: two have one hash": (entries, off(rules_tokens, "is_hash_taken", False)),
    "tokens: a second put stands beside the first": (entries, rule(c.PutToken, _put_beside)),
    "tokens: in any order": (entries, rule(c.PutToken, _put_last)),
    "tokens: a revoked one stays": (entries, rule(c.RevokeToken, lambda edit, command: None)),
    "tokens: the last revocation turns checking off": (entries, rule(c.RevokeToken, _revoke_and_forget)),
    "tokens: their changes are not told": (entries, off(map_edit.MapEdit, "note_token", None)),
    "F44: tokens are kept below their level": (entries, _below_its_level),
    # --- the table itself ---
    "F44: the feature level rises too early": (entries, off(map, "is_supported_by_all", True)),
    "F44: a level that this code cannot apply": (later, off(map, "can_apply", True)),
    "F44: too old a node joins": (entries, off(rules_nodes, "is_feature_level_missing", False)),
    "a node's own handlers are not kept": (upgraded, off(rules_nodes, "is_handlers_news", False)),
    "F44: handlers are kept below their level": (
        upgraded,
        off(rules_nodes, "is_handlers_news", lambda draft, node: node.handlers is HandlerKind.OWN),
    ),
}


NOT_CAUGHT = {
    "moves that wait for a newcomer count as held": "here it comes at once; test_controller: one that waits for its newcomer",
    "voters: nobody waits for who may yet catch up": "nobody is behind but the slow here; test_voters: one that may yet catch up",
    "a choice ignores how much a node leads": "the next look evens primaries out; test_nodes: all its partitions get primaries",
    "what makes up for a lost copy does not go first": "a matter of order; test_controller: one that makes up ... goes first",
    "who has not read the table is given copies": "everybody hears at once here; test_controller: a node that has not read ...",
}
"""By random worlds; with the reason and the test that holds the rule instead."""


QUICK = {world: name for name, (world, _) in sorted(MUTATIONS.items(), reverse=True) if name not in NOT_CAUGHT}.values()
"""One of each world is in ``make test``, the whole table in ``make long``."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.long]) for name in sorted(MUTATIONS)]
)
def test_a_rule_that_is_switched_off_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    world, patch = MUTATIONS[name]
    patch(monkeypatch)
    counts = []
    for base in BASES:
        for number in range(SEEDS if name not in NOT_CAUGHT else SEEDS // 20):
            try:
                world(base + number)
            except (LawBroken, AssertionError, KeyError, ValueError) as why:
                counts.append((number + 1, f"{type(why).__name__}: {why}"[:90]))
                break
        else:
            break
    if name in NOT_CAUGHT:
        assert len(counts) < len(BASES), "it is caught after all"
        print(f"{name:50} {'not':>12}  {NOT_CAUGHT[name]}")
        return
    assert len(counts) == len(BASES), f"not caught in {SEEDS} seeds"
    print(f"{name:50} {'/'.join(str(count) for count, _ in counts):>12}  {counts[0][1]}")


def test_every_rule_of_the_table_exists() -> None:
    for _, patch in MUTATIONS.values():
        with pytest.MonkeyPatch.context() as monkeypatch:
            patch(monkeypatch)


def test_a_settling_without_mutations_is_quiet() -> None:
    for seed in range(5):
        for world in (entries, deaths, rest, shares_are_kept, voters_are_sound, made_up, later, upgraded):
            world(seed)
