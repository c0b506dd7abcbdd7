"""A codec between client and node, through both faces: what is sent, what is read, and what can't be decoded."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.support.harness import NodeProcess
from tq_node.client import (
    AsyncQueue,
    BatchRefused,
    IdConflict,
    NewTask,
    NotDecoded,
    NotFinished,
    Queue,
    TaskFailed,
    TaskInfo,
    Undecoded,
)

pytestmark = pytest.mark.cluster
WAIT_S = 30.0


class Wrapped:
    """Puts a value beside its place, and takes nothing from another place. A payload counts as a result, for ``echo``."""

    def __init__(self) -> None:
        self.encoded: list[str] = []

    def encode(self, value: Any, place: str) -> Any:
        self.encoded.append(place)
        return {"of": place.partition("/")[2], "is": value}

    def decode(self, value: Any, place: str) -> Any:
        if value["of"] != place.partition("/")[2]:
            raise LookupError(f"of {value['of']}")
        return value["is"]


def at(node: NodeProcess) -> str:
    return f"localhost:{node.http_port}"


def test_a_payload_is_sent_encoded_and_read_decoded(node: NodeProcess) -> None:
    codec = Wrapped()
    with Queue(at(node), codec=codec) as queue:
        task = queue.submit("echo", {"a": [1, None]})
        assert task.result(WAIT_S) == {"a": [1, None]}
        assert codec.encoded == [f"payload/{task.id}"]
        for read in (task.get(), task.wait(WAIT_S), *queue.list(q=task.id)):
            assert (read.payload, read.result) == ({"a": [1, None]}, {"a": [1, None]})
        with Queue(at(node)) as plain:
            assert plain.get(task.id).payload == {"of": task.id, "is": {"a": [1, None]}}


def test_many_at_once(node: NodeProcess) -> None:
    with Queue(at(node), codec=Wrapped()) as queue:
        tasks = queue.submit_many(NewTask("echo", number) for number in range(20))
        assert [task.result(WAIT_S) for task in tasks] == list(range(20))


def test_from_asyncio(node: NodeProcess) -> None:
    async def told() -> tuple[Any, Any, list[TaskInfo]]:
        async with AsyncQueue(at(node), codec=Wrapped()) as queue:
            task = await queue.submit("echo", "x")
            many = await queue.submit_many([NewTask("echo", "y", id="codec-many")])
            listed = [one async for one in queue.list(q=task.id)]
            return await task.result(WAIT_S), await many[0].result(WAIT_S), listed

    result, of_many, listed = asyncio.run(told())
    assert (result, of_many, [one.payload for one in listed]) == ("x", "y", ["x"])


def test_a_null_is_encoded_and_what_is_null_stays_null(node: NodeProcess) -> None:
    with Queue(at(node), codec=Wrapped()) as queue, Queue(at(node)) as plain:
        task = queue.submit("echo")
        assert task.result(WAIT_S) is None
        assert plain.get(task.id).payload == {"of": task.id, "is": None}
        bare = plain.submit("echo")
        assert queue.result(bare.id, WAIT_S) is None


def test_what_the_codec_did_not_make_is_told_from_what_it_did(node: NodeProcess) -> None:
    with Queue(at(node), codec=Wrapped()) as queue, Queue(at(node)) as plain:
        mine = queue.submit("echo", "mine")
        mine.result(WAIT_S)
        stolen = plain.submit("echo", plain.get(mine.id).payload)
        with pytest.raises(NotDecoded, match=f"LookupError: of {mine.id}") as told:
            queue.result(stolen.id, WAIT_S)
        assert told.value.task.payload == Undecoded({"of": mine.id, "is": "mine"}, f"LookupError: of {mine.id}")
        assert isinstance(next(iter(queue.list(q=stolen.id))).result, Undecoded)


def test_tasks_that_failed_or_still_wait_are_decoded_too(node: NodeProcess) -> None:
    with Queue(at(node), codec=Wrapped()) as queue:
        with pytest.raises(TaskFailed) as failed:
            queue.submit("refuse", "it").result(WAIT_S)
        assert failed.value.task.payload == "it"
        with pytest.raises(NotFinished) as waiting:
            queue.submit("echo", "later", delay=60).result(0.1)
        assert waiting.value.task.payload == "later"


def test_a_codec_that_never_says_the_same_twice_can_t_repeat_a_submit(node: NodeProcess) -> None:
    class Counting(Wrapped):
        def encode(self, value: Any, place: str) -> Any:
            return {**super().encode(value, place), "count": len(self.encoded)}

    with Queue(at(node), codec=Counting()) as queue:
        queue.submit("echo", 1, id="codec-own")
        with pytest.raises(IdConflict):
            queue.submit("echo", 1, id="codec-own")
        with pytest.raises(BatchRefused):
            queue.submit_many([NewTask("echo", 1, id="codec-own")])


@pytest.mark.parametrize("made", [object(), {1}, float("nan")])
def test_what_it_encodes_must_be_json_and_what_it_raises_the_submit_raises(node: NodeProcess, made: object) -> None:
    class Wrong(Wrapped):
        def encode(self, value: Any, place: str) -> Any:
            if value == "raise":
                raise LookupError("no key")
            return made

    with Queue(at(node), codec=Wrong()) as queue:
        with pytest.raises((TypeError, ValueError)):
            queue.submit("echo")
        with pytest.raises(LookupError, match="no key"):
            queue.submit("echo", "raise")
