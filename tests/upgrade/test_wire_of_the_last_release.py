"""N talks to N - 1, on the wire: what the last release said can be read, and what today's nodes say it can read.

Its code is not here. ``releases/`` has what its nodes said to one another (``transcript.jsonl``) and a description of all that
they could say (``wire.json``).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.upgrade import describe
from tests.upgrade.frozen import Frozen, Unreadable
from tests.upgrade.taps import Said, boxes
from tests.upgrade.versions import Recorded, every_recorded, last_recorded, line_of, said_in
from tests.upgrade.wire_rules import breaks
from tq_node.cluster import commands as table
from tq_node.cluster.records import ACCESS_LEVEL
from tq_node.partition.entries import (
    LogEntry,
    _Body,
    decode_effects,
    encode_spec,
)
from tq_node.raft import messages as raft
from tq_node.runtime import peer_calls
from tq_node.runtime.bootstrap.credentials import read_secrets
from tq_node.runtime.replication.replicator import messages_in
from tq_node.types import Backoff, NodeId, TaskId, TaskSpec
from tq_node.wire import bounds, codec, commands, errors, handshake
from tq_node.wire.handshake import INTRODUCTIONS

BEFORE_ACCESS = [one for one in every_recorded() if one.description["features"][1] < ACCESS_LEVEL]
LATER = 99
"""A feature level of a release to come."""
COMMANDS = {kind.commandName.decode(): kind for kind in vars(commands).values() if hasattr(kind, "commandName")}


@pytest.fixture(scope="module")
def recorded() -> Recorded:
    return last_recorded()


@pytest.fixture(scope="module")
def today() -> dict[str, Any]:
    described: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(describe.describe()))
    return described


def ids(said: Said) -> str:
    return f"{said.connection}-{said.who}-{said.command}-{said.what}"


# --- what it said ---
def test_the_transcript_holds_every_command_in_both_directions(recorded: Recorded) -> None:
    said = recorded.transcript()
    for name, command in recorded.description["commands"].items():
        assert any((one.command, one.what) == (name, "command") for one in said), name
        assert not command["answered"] or any((one.command, one.what) == (name, "answer") for one in said), name
    lanes = {
        INTRODUCTIONS.decode(one.box["hello"]).lane for one in said if (one.command, one.what) == ("Hello", "command")
    }
    assert lanes == set(commands.Lane)


@pytest.mark.parametrize("said", last_recorded().transcript(), ids=ids)
def test_todays_code_reads_each_recorded_box(said: Said) -> None:
    box = {key.encode(): value for key, value in said.box.items()}
    if said.what == "error":
        errors.decode_error(said.box["_error_code"].decode(), said.box["_body"])
        return
    command = COMMANDS[said.command]
    read = command.parseArguments(box, None) if said.what == "command" else command.parseResponse(box, None)
    READERS.get((said.command, said.what), lambda values, said: None)(read, said)


def _hello(values: dict[str, Any], said: Said) -> None:
    who = INTRODUCTIONS.decode(values["hello"])
    assert handshake.identity(who, "here").protocol == min(who.protocol_max, bounds.PROTOCOL_MAX)
    assert who.name == (said.dialler if said.who == "dialler" else said.listener)


def _raft(values: dict[str, Any], said: Said) -> None:
    """Sender and receiver are ids, which only the messages themselves say here."""
    loose = msgspec.msgpack.decode(values["messages"][1:])
    source, target = (NodeId(loose[0][at]) for at in (1, 2))
    for message in codec.decode_messages(values["messages"], source, target):
        for entry in getattr(message, "entries", ()):
            if entry.kind is raft.EntryKind.DATA:
                table.decode(entry.data)
            elif entry.kind is raft.EntryKind.CONFIGURATION:
                raft.decode_change(entry)


def _data(values: dict[str, Any], said: Said) -> None:
    for message in messages_in(values["body"]):
        for entry in getattr(message, "entries", ()):
            assert isinstance(entry, LogEntry)
            for effect in decode_effects(entry.payload):
                if spec := getattr(effect, "spec", None):
                    msgspec.msgpack.decode(spec, type=TaskSpec)
                if body := getattr(effect, "body", None):
                    msgspec.msgpack.decode(body, type=_Body)


def _calls(values: dict[str, Any], said: Said) -> None:
    for call in codec.CALLS.decode(values["calls"]):
        peer_calls.KINDS[call.kind].call.decode(call.body)


def _results(values: dict[str, Any], said: Said) -> None:
    results = codec.RESULTS.decode(values["results"])
    assert len(results) == len(said.calls)
    for kind, result in zip(said.calls, results, strict=True):
        if result.error:
            errors.decode_error(result.error, result.body)
        else:
            peer_calls.KINDS[kind].result.decode(result.body)


def _body(name: str) -> Callable[[dict[str, Any], Said], None]:
    head, kind = describe.BODIES[name]

    def read(values: dict[str, Any], said: Said) -> None:
        (argument,) = (values[key] for key in ("body", "messages") if key in values)
        assert argument.hex().startswith(head)
        msgspec.msgpack.decode(argument[len(head) // 2 :], type=kind)

    return read


READERS: dict[tuple[str, str], Callable[[dict[str, Any], Said], None]] = {
    ("Hello", "command"): _hello,
    ("Hello", "answer"): _hello,
    ("Raft", "command"): _raft,
    ("Data", "command"): _data,
    ("Forward", "command"): _calls,
    ("Forward", "answer"): _results,
    ("Confirm", "command"): _body("Confirm.body"),
    ("Register", "command"): _body("Register.body"),
    ("Register", "answer"): _body("Register.answer.body"),
    ("Heartbeat", "command"): _body("Heartbeat.body"),
    ("Evidence", "command"): _body("Evidence.body"),
    ("Propose", "command"): _body("Propose.body"),
    ("Propose", "answer"): _body("Propose.answer.body"),
}


def test_todays_code_checks_the_recorded_proofs(recorded: Recorded, tmp_path: Path) -> None:
    """The proof covers both introductions byte for byte: what is proven, and how, has not changed."""
    file = tmp_path / "secret"
    file.write_text(recorded.manifest["life"]["secret_file"])
    file.chmod(0o600)
    (secret,) = read_secrets(file)
    by_connection: dict[int, dict[tuple[str, str], bytes]] = {}
    for one in recorded.transcript():
        value = one.box.get("hello") or one.box.get("proof")
        if one.command in ("Hello", "Prove") and value:
            by_connection.setdefault(one.connection, {})[one.command, one.who] = value
    assert len(by_connection) >= 2
    for said in by_connection.values():
        hellos = said["Hello", "dialler"], said["Hello", "listener"]
        handshake.check_proof(secret, handshake.DIALLER, *hellos, said["Prove", "dialler"])
        handshake.check_proof(secret, handshake.LISTENER, *hellos, said["Prove", "listener"])


# --- what it can read ---
def test_its_own_boxes_are_readable_by_the_description(recorded: Recorded) -> None:
    """Else the description would prove nothing."""
    for said in recorded.transcript():
        recorded.frozen().read(said.command, said.what, said.box, said.calls)


def test_today_says_nothing_that_the_last_release_could_not_read(recorded: Recorded, today: dict[str, Any]) -> None:
    """New arguments are optional, new fields stand at the end with a default, new kinds come with a feature level."""
    assert not breaks(recorded.description, today)


def _changed(today: dict[str, Any], change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    altered = copy.deepcopy(today)
    change(altered)
    return altered


BREAKING: dict[str, Callable[[dict[str, Any]], object]] = {
    "a command is gone": lambda new: new["commands"].pop("Confirm"),
    "an argument is gone": lambda new: new["commands"]["Ping"]["arguments"].pop("session"),
    "an argument that must be there": lambda new: new["commands"]["Ping"]["arguments"].update(
        when={"kind": "Number", "optional": False, "most": 9}
    ),
    "an argument of another kind": lambda new: new["commands"]["Ping"]["arguments"]["session"].update(kind="Word"),
    "a longer argument": lambda new: new["commands"]["Register"]["arguments"]["body"].update(bytes_max=10**9),
    "another lane": lambda new: new["commands"]["Data"].update(lanes=["consensus"]),
    "no answer any more": lambda new: new["commands"]["Register"].update(answered=False),
    "another version of bodies": lambda new: new["bodies"]["Confirm.body"].update(head="02"),
    "another type of a body": lambda new: new["bodies"]["forward get"].update(type="str"),
    "no common protocol": lambda new: new.update(protocol=[new["protocol"][1] + 1] * 2),
    "no common feature level": lambda new: new.update(features=[new["features"][1] + 1] * 2),
    "a field in the middle": lambda new: new["structs"]["tq_node.partition.messages.Append"]["fields"].insert(
        1, ["new", "int", False]
    ),
    "a field that must be there": lambda new: new["structs"]["tq_node.partition.messages.Ack"]["fields"].append(
        ["new", "int", True]
    ),
    "a field is gone": lambda new: new["structs"]["tq_node.partition.messages.Ack"]["fields"].pop(),
    "another type of a field": lambda new: new["structs"]["tq_node.facade.Accepted"]["fields"][0].__setitem__(
        1, "bytes"
    ),
    "a field of another name": lambda new: new["structs"]["tq_node.cluster.refusals.Refused"]["fields"][0].__setitem__(
        0, "x"
    ),
    "another tag": lambda new: new["structs"]["tq_node.partition.messages.Ack"].update(tag=99),
    "maps in place of arrays": lambda new: new["structs"]["tq_node.partition.messages.Ack"].update(array=False),
    "a new field where unknown ones are refused": lambda new: new["structs"]["tq_node.cluster.records.NodeEntry"][
        "fields"
    ].append(["new", "int", False]),
    "a new message among those that each must know": lambda new: (
        new["structs"].update({"new.Message": {"tag": 77, "array": True, "strict": False, "fields": []}}),
        new["bodies"]["Confirm.body"]["type"].append(["struct", "new.Message"]),
    ),
    "a new field of the table without a feature level": lambda new: new["structs"][
        "tq_node.cluster.records.ClusterMap"
    ]["fields"].append(["new", "int", False]),
    "a new field of the table at a level that the other takes for known": lambda new: (
        new["structs"]["tq_node.cluster.records.ClusterMap"]["fields"].append(["new", "int", False]),
        new.setdefault("feature levels of table fields", {}).update(new=new["features"][1]),
    ),
    "a word with another number": lambda new: new["enums"]["tq_node.types.State"].update(PENDING=7),
    "a new command of the table without a feature level": lambda new: new["kinds of table commands"].update(New=99),
}


@pytest.mark.parametrize("what", BREAKING)
def test_the_rule_notices(what: str, recorded: Recorded) -> None:
    altered = _changed(recorded.description, BREAKING[what])
    assert breaks(recorded.description, altered), what


ALLOWED: dict[str, Callable[[dict[str, Any]], object]] = {
    "nothing": lambda new: None,
    "a new command, which the other refuses": lambda new: new["commands"].update(
        New={"lanes": ["bulk"], "answered": True, "arguments": {}, "answer": {}}
    ),
    "an argument that may be left out": lambda new: new["commands"]["Ping"]["arguments"].update(
        when={"kind": "Number", "optional": True, "most": 9}
    ),
    "fields that go by name in another order": lambda new: new["structs"]["tq_node.cluster.refusals.Refused"][
        "fields"
    ].reverse(),
    "a field at the end": lambda new: new["structs"]["tq_node.cluster.liveness.Health"]["fields"].append(
        ["new", "int", False]
    ),
    "a new kind of call, which the other refuses": lambda new: new["bodies"].update(
        {"forward new": {"head": "01", "type": "int"}, "forward new.answer": {"head": "01", "type": "int"}}
    ),
    "a new error, which the other takes for a refusal": lambda new: new["errors"].append("new"),
    "a wider range of protocols": lambda new: new.update(protocol=[new["protocol"][0], new["protocol"][1] + 1]),
    "a new command of the table with a feature level": lambda new: (
        new["kinds of table commands"].update(New=99),
        new["feature levels of table commands"].update(New=LATER),
        new.update(features=[1, LATER]),
    ),
    "a new field of the table with a feature level": lambda new: (
        new["structs"]["tq_node.cluster.records.ClusterMap"]["fields"].append(["new", "int", False]),
        new.setdefault("feature levels of table fields", {}).update(new=LATER),
        new.update(features=[1, LATER]),
    ),
}


@pytest.mark.parametrize("what", ALLOWED)
def test_the_rule_allows(what: str, recorded: Recorded) -> None:
    assert not breaks(recorded.description, _changed(recorded.description, ALLOWED[what]))


# --- the readers themselves ---
def test_what_the_last_release_would_refuse_is_refused(recorded: Recorded) -> None:
    frozen = recorded.frozen()
    first = {one.command: one for one in reversed(recorded.transcript()) if one.what == "command"}
    with pytest.raises(Unreadable, match="no command"):
        frozen.read("Claim", "command", {})
    with pytest.raises(Unreadable, match="is missing"):
        frozen.read("Ping", "command", {})
    with pytest.raises(Unreadable, match="is no Number"):
        frozen.read("Ping", "command", {"session": b"-1"})
    with pytest.raises(Unreadable, match="begins with 02"):
        frozen.read(
            "Heartbeat", "command", first["Heartbeat"].box | {"body": b"\2" + first["Heartbeat"].box["body"][1:]}
        )
    with pytest.raises(Unreadable):
        frozen.read("Data", "command", {"body": b"\xdd\0\0\0\1\x93\x63\1\1"})


def test_a_later_introduction_is_read_without_what_is_new_in_it(recorded: Recorded) -> None:
    """F44: the next release may add fields to its ``Hello``; a range of protocols that includes ours is what counts."""
    (hello, *_) = (one.box["hello"] for one in recorded.transcript() if (one.command, one.what) == ("Hello", "command"))
    fields = msgspec.msgpack.decode(hello[1:])
    later = [*fields[:8], bounds.PROTOCOL_MAX + 1, *fields[9:], "something new"]
    data = hello[:1] + msgspec.msgpack.encode(later)
    assert handshake.identity(INTRODUCTIONS.decode(data), "there").protocol == bounds.PROTOCOL_MAX
    recorded.frozen().read("Hello", "command", {"hello": data})
    only_later = [*fields[:7], bounds.PROTOCOL_MAX + 1, bounds.PROTOCOL_MAX + 2, *fields[9:]]
    strange = INTRODUCTIONS.decode(hello[:1] + msgspec.msgpack.encode(only_later))
    with pytest.raises(errors.NoCommonProtocol, match=f"speaks protocols {bounds.PROTOCOL_MAX + 1} to"):
        handshake.identity(strange, "there")


@pytest.mark.parametrize("recorded", BEFORE_ACCESS, ids=repr)
def test_a_tasks_maker_and_who_gave_an_order_are_skipped_by_who_knows_neither(recorded: Recorded) -> None:
    frozen = recorded.frozen()
    spec = TaskSpec(TaskId("a"), "t", b"1", "q", 5, 3, None, Backoff(), {"a": "b"}, 7, b"hash")
    nobodys = frozen.decode("spec", encode_spec(spec))
    assert frozen.decode("spec", encode_spec(msgspec.structs.replace(spec, made_by="ann"))) == nobodys
    assert nobodys.content_hash == b"hash"
    order = frozen.decode("command", table.encode(table.PauseQueue("q", "ann")))
    assert (order.queue, len(order.__struct_fields__)) == ("q", 1)


def test_lines_of_a_transcript_are_what_was_said(recorded: Recorded) -> None:
    for said in recorded.transcript():
        assert said_in(line_of(said)) == said


def test_boxes_are_cut_as_amp_says() -> None:
    data = b"\0\1a\0\2bc\0\1d\0\0\0\0" + b"\0\1e\0\1f\0\0" + b"\0\1g\0\5h"
    assert list(boxes(data)) == [{"a": b"bc", "d": b""}, {"e": b"f"}]


def test_the_description_of_today_can_be_read(today: dict[str, Any]) -> None:
    """What is recorded of this release will be of use to the next."""
    Frozen(today)
    assert set(today["commands"]) <= set(COMMANDS)
