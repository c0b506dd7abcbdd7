"""Runs a scenario: a small script over real cores, with what happened written below each command.

A file is a list of commands; ``----`` and the golden output follow each, up to an empty line. ``#`` begins a comment.
``python -m tests.scenarios.runner [--rewrite] [NAME ...]`` checks them, or writes what happens now for review.

Commands::

    cluster n1 n2 n3 [learners n4] [spares n5] [NAME=BYTES ...]   voters from the start; settings by name
    log n1 TERM TERM ...        (before anything else) entries of these terms behind the founding one, on disk
    campaign n1 | force n1      ask for pre-votes | campaign for real, at once
    tick n1 [COUNT]             time passes
    propose n1 WORD [BYTES]     a proposal (padded to so many bytes)
    change n1 add n4            add (as learner), promote, demote, remove
    transfer n1 n2              read n1               dead n1 n2: n1 has evidence that n2 died
    wake n1                     the time has come that n1 asked to be woken at
    deliver n1->n2 [COUNT]      the oldest messages of a link, or all of them
    drop n1->n2                 they are lost          cut n1->n2 / join n1->n2: from now on / no more
    isolate n1 / heal           all links of a node, both ways / all links of all
    double n1->n2               what is under way comes twice
    stabilize                   deliver everything until nothing is under way
    hold n1 / sync n1           its disk waits / has everything
    crash n1 / restart n1       what waits for the disk is gone
    compact n1 KEEP             take a snapshot of what is applied, keep so many entries behind it
    show [n1]                   role, term, vote, leader, log, configuration
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.simulation.raft.node import Durable
from tq_node.errors import TaskQueueError
from tq_node.raft.core import RaftCore, founding
from tq_node.raft.messages import (
    Append,
    AppendReply,
    Change,
    ChangeKind,
    Configuration,
    Entry,
    EntryKind,
    HardState,
    Heartbeat,
    HeartbeatReply,
    Message,
    Persisted,
    ReadReply,
    ReadRequest,
    Ready,
    Snapshot,
    SnapshotChunk,
    SnapshotReply,
    Vote,
    VoteReply,
    decode_change,
)
from tq_node.raft.settings import RaftSettings
from tq_node.types import NodeId

SCENARIOS = Path(__file__).parent
SEPARATOR = "----"
CHANGES = {
    "add": ChangeKind.ADD_LEARNER,
    "promote": ChangeKind.PROMOTE,
    "demote": ChangeKind.DEMOTE,
    "remove": ChangeKind.REMOVE,
}
STEPS_MAX = 2_000


def of_entry(entry: Entry) -> str:
    if entry.kind == EntryKind.NO_OP:
        what = "no-op"
    elif entry.kind == EntryKind.CONFIGURATION:
        what = of_configuration(decode_change(entry).configuration)
    else:
        what = entry.data.rstrip(b".").decode()
    return f"{entry.log_index}/{entry.term} {what}"


def of_configuration(configuration: Configuration) -> str:
    learners = f" learners {' '.join(configuration.learners)}" if configuration.learners else ""
    return f"({' '.join(configuration.voters)}{learners})"


def of_message(message: Message) -> str:
    text = f"{message.source}->{message.target} {type(message).__name__} term {message.term}"
    match message:
        case Vote():
            flags = (" pre" if message.pre else "") + (" force" if message.force else "")
            text += f"{flags} log {message.last_log_index}/{message.last_log_term}"
        case VoteReply():
            text += f"{' pre' if message.pre else ''} {'granted' if message.granted else 'refused'}"
        case Append():
            entries = "".join(f" [{of_entry(entry)}]" for entry in message.entries)
            text += f" after {message.prev_log_index}/{message.prev_log_term}{entries} commit {message.commit_index}"
        case AppendReply() if message.rejected:
            text += f" rejected after {message.log_index} hint {message.hint_index}/{message.hint_term}"
        case AppendReply():
            text += f" has {message.log_index}"
        case Heartbeat():
            text += f" round {message.round} commit {message.commit_index}"
        case HeartbeatReply():
            text += f" round {message.round}"
        case SnapshotChunk():
            text += f" of {message.log_index}/{message.log_term} bytes {message.offset}+{len(message.data)}/{message.total_bytes}"
        case SnapshotReply():
            text += f" of {message.log_index} wants byte {message.offset}"
        case ReadReply():
            text += f" read {message.read_id & 0xFFFF} at {message.log_index}"
        case ReadRequest():
            text += f" read {message.read_id & 0xFFFF}"
    return text


class Scenario:
    """The nodes, their disks and what is under way between them. ``lines`` collects what happened."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.settings = RaftSettings()
        self.durable: dict[str, Durable] = {}
        self.cores: dict[str, RaftCore] = {}
        self.under_way: list[Message] = []
        self.cut: list[tuple[str, str]] = []
        self.held: dict[str, list[Ready]] = {}
        self.now_ms = 0
        self._leaders: dict[int, str] = {}
        self._committed: dict[int, int] = {}
        self._seen: dict[str, int] = {}

    def say(self, line: str) -> None:
        self.lines.append(line)

    # --- the driver ---
    def pump(self) -> None:
        for name, core in self.cores.items():
            while core.has_ready:
                self._do(name, core, core.ready())
            self._judge(name, core)

    def _do(self, name: str, core: RaftCore, ready: Ready) -> None:
        if ready.soft_state is not None:
            soft = ready.soft_state
            self.say(f"{name} is {soft.role.label} in term {soft.term}, leader {soft.leader or 'none'}")
        for message in ready.messages:
            self._send(message)
        if name in self.held:
            self.held[name].append(ready)
        else:
            self._persist(name, core, ready)
        if ready.committed:
            self.say(f"{name} applies " + ", ".join(of_entry(entry) for entry in ready.committed))
        for read in ready.read_states:
            self.say(f"{name} read {read.read_id & 0xFFFF} at {read.log_index}")

    def _persist(self, name: str, core: RaftCore, ready: Ready) -> None:
        self.durable[name].store(ready)
        if ready.snapshot is not None:
            self.say(f"{name} installs the snapshot of {ready.snapshot.log_index}")
        core.persisted(ready.number)
        for message in ready.messages_after_persist:
            self._send(message)

    def _send(self, message: Message) -> None:
        lost = (message.source, message.target) in self.cut
        self.say(of_message(message) + (" (lost)" if lost else ""))
        if not lost:
            self.under_way.append(message)

    def _judge(self, name: str, core: RaftCore) -> None:
        if core.is_leader and self._leaders.setdefault(core.term, name) != name:
            self.say(f"!! two leaders in term {core.term}: {self._leaders[core.term]} and {name}")
        for index in range(max(self._seen.get(name, 1), core.log.offset_index) + 1, core.commit_index + 1):
            term = core.log.term(index)
            assert term is not None
            if self._committed.setdefault(index, term) != term:
                self.say(f"!! {name} commits {index}/{term}, but {index}/{self._committed[index]} was committed")
        self._seen[name] = core.commit_index

    def start(self, name: str) -> None:
        stored = self.durable[name]
        self.cores[name] = RaftCore(
            NodeId(name),
            Persisted(stored.hard_state, stored.snapshot, tuple(stored.entries)),
            seed=sum(name.encode()),
            settings=self.settings,
        )

    # --- commands ---
    def run(self, command: str) -> list[str]:
        self.lines = []
        word, *arguments = command.split()
        getattr(self, f"do_{word}")(*arguments)
        self.pump()
        return self.lines or ["(nothing)"]

    def do_cluster(self, *words: str) -> None:
        kind = "voters"
        names: dict[str, list[str]] = {"voters": [], "learners": [], "spares": []}
        bounds = {}
        for word in words:
            if word in names:
                kind = word
            elif "=" in word:
                key, _, value = word.partition("=")
                bounds[key] = int(value)
            else:
                names[kind].append(word)
        self.settings = RaftSettings(**bounds)
        hard_state, snapshot = founding([NodeId(name) for name in names["voters"]])
        learners = tuple(NodeId(name) for name in names["learners"])
        configuration = Configuration(snapshot.configuration.voters, learners)
        snapshot = Snapshot(snapshot.log_index, snapshot.term, configuration, snapshot.configuration_index)
        for name in (*names["voters"], *names["learners"], *names["spares"]):
            spare = name in names["spares"]
            self.durable[name] = Durable(HardState() if spare else hard_state, Snapshot() if spare else snapshot)
            self.start(name)

    def do_log(self, name: str, *terms: str) -> None:
        durable = self.durable[name]
        durable.entries = [
            Entry(int(term), index, EntryKind.DATA, b"%d" % int(term)) for index, term in enumerate(terms, 2)
        ]
        durable.hard_state = HardState(max(int(term) for term in terms))
        self.start(name)

    def do_campaign(self, name: str) -> None:
        self.cores[name]._election.campaign()

    def do_force(self, name: str) -> None:
        self.cores[name]._election.campaign_for_real()

    def do_tick(self, name: str, count: str = "1") -> None:
        for _ in range(int(count)):
            self.now_ms += 100
            self.cores[name].tick(self.now_ms)
            self.pump()

    def do_wake(self, name: str) -> None:
        due = self.cores[name].wake_at_ms
        self.say(f"{name} asked to be woken" if due is not None else f"{name} did not ask to be woken")
        self.now_ms = due or self.now_ms
        self.cores[name].wake(self.now_ms)

    def do_dead(self, name: str, dead: str) -> None:
        self.cores[name].leader_died(NodeId(dead), self.now_ms)

    def _try(self, call: Callable[[], Any], done: Callable[[Any], str]) -> None:
        try:
            self.say(done(call()))
        except TaskQueueError as refused:
            self.say(f"refused: {refused.detail}")

    def do_propose(self, name: str, word: str, size: str = "0") -> None:
        data = word.encode().ljust(int(size), b".")
        self._try(lambda: self.cores[name].propose(data), lambda index: f"{name} proposes {word} at {index}")

    def do_change(self, name: str, kind: str, node: str) -> None:
        change = Change(CHANGES[kind], NodeId(node))
        self._try(
            lambda: self.cores[name].propose_change(change),
            lambda index: f"{name} proposes to {kind} {node} at {index}",
        )

    def do_transfer(self, name: str, target: str) -> None:
        self._try(
            lambda: self.cores[name].transfer_leadership(NodeId(target)), lambda _: f"{name} hands over to {target}"
        )

    def do_read(self, name: str) -> None:
        self._try(self.cores[name].read_index, lambda read_id: f"{name} asks for read {read_id & 0xFFFF}")

    def _of_link(self, link: str) -> list[Message]:
        source, _, target = link.partition("->")
        return [message for message in self.under_way if (message.source, message.target) == (source, target)]

    def _remove(self, message: Message) -> None:
        position = next(number for number, other in enumerate(self.under_way) if other is message)
        del self.under_way[position]

    def do_deliver(self, link: str, count: str = "1000") -> None:
        messages = self._of_link(link)[: int(count)]
        for message in messages:
            self._remove(message)
        for message in messages:
            self._deliver(message)

    def _deliver(self, message: Message) -> None:
        if message.target in self.cores:
            self.cores[message.target].step(message, self.now_ms)
            self.pump()

    def do_drop(self, link: str) -> None:
        for message in self._of_link(link):
            self._remove(message)
            self.say(f"lost: {of_message(message)}")

    def do_double(self, link: str) -> None:
        self.under_way += self._of_link(link)

    def do_cut(self, link: str) -> None:
        source, _, target = link.partition("->")
        self.cut.append((source, target))

    def do_join(self, link: str) -> None:
        source, _, target = link.partition("->")
        self.cut.remove((source, target))

    def do_isolate(self, name: str) -> None:
        for other in self.durable:
            if other != name:
                self.cut += [(name, other), (other, name)]
        self.under_way = [message for message in self.under_way if name not in (message.source, message.target)]

    def do_heal(self) -> None:
        self.cut.clear()

    def do_stabilize(self) -> None:
        for _ in range(STEPS_MAX):
            if not self.under_way:
                return
            self._deliver(self.under_way.pop(0))
        self.say("!! does not come to rest")

    def do_hold(self, name: str) -> None:
        self.held[name] = []

    def do_sync(self, name: str) -> None:
        for ready in self.held.pop(name):
            self._persist(name, self.cores[name], ready)

    def do_crash(self, name: str) -> None:
        del self.cores[name]
        self.held.pop(name, None)
        self.under_way = [message for message in self.under_way if name not in (message.source, message.target)]

    def do_restart(self, name: str) -> None:
        self.start(name)
        self._seen.pop(name, None)
        self.do_show(name)

    def do_compact(self, name: str, keep: str) -> None:
        core = self.cores[name]
        snapshot = core.snapshot_at(core.log.applied_index, b"table of " + b"x" * 100)
        assert snapshot is not None
        self.durable[name].store(snapshot)
        first_kept = core.compact(snapshot, snapshot.log_index - int(keep) + 1)
        self.durable[name].store(first_kept)
        self.say(f"{name} has a snapshot of {snapshot.log_index} and entries from {first_kept}")

    def do_show(self, *names: str) -> None:
        for name in names or tuple(self.cores):
            core = self.cores[name]
            log = core.log
            entries = " ".join(f"{entry.log_index}/{entry.term}" for entry in log.entries) or "none"
            self.say(
                f"{name}: {core.role.label}, term {core.term}, vote {core.state.vote or 'none'}, "
                f"leader {core.leader or 'none'}, entries {entries}, commit {log.commit_index}, "
                f"{of_configuration(core.configuration)}"
            )


def rewritten(text: str) -> str:
    """The text with the output of each command as it is now."""
    scenario = Scenario()
    output: list[str] = []
    in_golden = False
    for line in text.splitlines():
        if in_golden:
            in_golden = bool(line.strip())
        elif line == SEPARATOR:
            in_golden = True
        elif not line.strip() or line.startswith("#"):
            output.append(line)
        else:
            output += [line, SEPARATOR, *scenario.run(line), ""]
    # An empty line after a block stands for its end: not twice.
    tidy: list[str] = []
    for line in output:
        if line or (tidy and tidy[-1]):
            tidy.append(line)
    return "\n".join(tidy).rstrip() + "\n"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.scenarios.runner", description=__doc__)
    parser.add_argument("--rewrite", action="store_true")
    parser.add_argument("names", nargs="*")
    options = parser.parse_args(arguments)
    names = options.names or sorted(path.stem for path in SCENARIOS.glob("*.txt"))
    wrong = 0
    for name in names:
        path = SCENARIOS / f"{name}.txt"
        now = rewritten(path.read_text())
        if now != path.read_text():
            wrong += 1
            print(f"{name}: {'rewritten' if options.rewrite else 'differs'}")
            if options.rewrite:
                path.write_text(now)
    return 1 if wrong and not options.rewrite else 0


if __name__ == "__main__":
    sys.exit(main())
