"""Bodies of requests: what a submitter may send, checked field by field, turned into
``facade.Submission``.

These structs are the one source: they validate, and ``openapi`` publishes them. A valid request
costs one typed decode; only one that is refused is read a second time, to name the field
(``json_pointer``). ``null`` counts as not sent."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from tq_node import limits
from tq_node.api.batch_cutter import BatchCutter
from tq_node.api.json_pointer import refusal
from tq_node.api.names import NAME_PATTERN, refuse_unshown
from tq_node.errors import FieldError, InvalidField, Malformed, PayloadTooLarge, TaskQueueError
from tq_node.facade import Submission
from tq_node.slices import Pace
from tq_node.types import Backoff

TASK_ID_PATTERN = f"^[A-Za-z0-9._:-]{{1,{limits.TASK_ID_CHARS_MAX}}}$"
_id_chars = f"[A-Za-z0-9._:-]{{1,{limits.TASK_ID_CHARS_MAX}}}"
IDEMPOTENCY_KEY_SCHEMA = {
    "type": "string",
    "pattern": f'^({_id_chars}|"{_id_chars}")$',
    "description": "the same as `id`, where the body has none; plain or in double quotes",
}
RUN_AT_S_MAX = 253_402_300_799
"""The last second of the year 9999, which is the last that RFC 3339 can write."""

TaskIdText = Annotated[
    str, Meta(pattern=TASK_ID_PATTERN, description="own id; the same id with the same content is the same task")
]
_NAME_SCHEMA = {"pattern": NAME_PATTERN}
"""Published only; ``refuse_unshown`` checks it, for less than a pattern costs."""
TypeText = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=limits.TASK_TYPE_CHARS_MAX,
        description="which handler runs the task",
        extra_json_schema=_NAME_SCHEMA,
    ),
]
QueueText = Annotated[str, Meta(min_length=1, max_length=limits.QUEUE_CHARS_MAX, extra_json_schema=_NAME_SCHEMA)]
BackoffSeconds = Annotated[float, Meta(ge=0, le=limits.BACKOFF_S_MAX)]
Whole = Annotated[float, Meta(multiple_of=1, extra_json_schema={"type": "integer"})]
"""An integer as JSON Schema defines it: 3.0 is one, too."""
TagName = Annotated[str, Meta(min_length=1, max_length=limits.TAG_CHARS_MAX)]
TagValue = Annotated[str, Meta(max_length=limits.TAG_CHARS_MAX)]


class BackoffRequest(msgspec.Struct, forbid_unknown_fields=True, frozen=True, gc=False):
    """How long a failed attempt waits for the next; times in seconds."""

    kind: Literal["exponential", "linear", "constant"] = "exponential"
    base: BackoffSeconds = 1.0
    cap: BackoffSeconds = 3_600.0
    jitter: bool = True


class SubmitRequest(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """One task to be run."""

    type: TypeText
    # Not validated here: Raw takes any JSON value as it stands, and Payloads looks into it. The
    # default of a Raw field
    # can't be a Raw, which has no JSON Schema; None is what it means.
    payload: Annotated[msgspec.Raw, Meta(description="any JSON value")] = None  # type: ignore[assignment]
    id: TaskIdText | None = None
    priority: Annotated[Whole, Meta(ge=0, le=limits.PRIORITY_MAX, description="9 first; 5 where not given")] | None = (
        None
    )
    delay: (
        Annotated[float, Meta(ge=0, le=limits.DELAY_S_MAX, description="seconds from now; not with run_at")] | None
    ) = None
    run_at: (
        Annotated[datetime, Meta(tz=True, description="RFC 3339, or Unix seconds; not with delay")]
        | Annotated[float, Meta(le=RUN_AT_S_MAX)]
        | None
    ) = None
    max_attempts: Annotated[Whole, Meta(ge=1, le=limits.MAX_ATTEMPTS_MAX)] | None = None
    timeout: Annotated[float, Meta(gt=0, le=limits.TIMEOUT_S_MAX, description="seconds for one attempt")] | None = None
    backoff: BackoffSeconds | BackoffRequest | None = None
    queue: QueueText | None = None
    tags: Annotated[dict[TagName, TagValue], Meta(max_length=limits.TAGS_MAX)] | None = None


class BatchRequest(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """Up to 10,000 tasks; each is accepted or refused by itself."""

    tasks: Annotated[list[SubmitRequest], Meta(max_length=limits.BATCH_TASKS_MAX)]


# --- payloads ---
_decode_value = msgspec.json.Decoder().decode
_encode_value = msgspec.json.Encoder().encode
_DIGITS_TO_ZEROS = bytes(ord("0") if byte in b"0123456789" else ord(" ") for byte in range(256))
_LONG_NUMBER = b"0" * 19
"""The fewest digits beyond 64 bits, translated. Inside a string they are harmless, but worth a
look. A regular expression takes fourteen times as long for text."""
_json_string = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\Z)', re.DOTALL)
_empty_container = re.compile(rb"\[\s*\]|\{\s*\}")
_INT_MIN, _INT_MAX = -(1 << 63), (1 << 64) - 1


_SHALLOW_BYTES = 2 * limits.JSON_DEPTH_MAX
"""A payload up to this size can't be nested too deep: each level takes two bytes at least."""
_VALUES_UNCOUNTED_BYTES = 2 * limits.PAYLOAD_VALUES_MAX
"""A payload up to this size can't hold too many values: each takes two bytes at least."""


class Payloads:
    """Turns the JSON of a payload into compact and valid JSON.

    What is stored must be readable by every handler in every language, so a payload is decoded and
    encoded again: whitespace goes, of equal keys in an object the last stays, bad UTF-8 and numbers
    that no double holds are refused."""

    def __init__(self, bytes_max: int, field: str = "payload") -> None:
        """:param field: its name, for what is refused."""
        self._bytes_max = bytes_max
        self._field = field

    def parse(self, raw: msgspec.Raw, at: str) -> tuple[object, bytes]:
        """The value and its compact JSON.

        :param at: JSON Pointer of the task in the body, for what is refused.
        :raises PayloadTooLarge: as sent or as stored it is over the bound.
        :raises Malformed: it is not JSON in UTF-8.
        :raises InvalidField: a number out of range, nesting deeper than ``limits.JSON_DEPTH_MAX``,
            or more values than ``limits.PAYLOAD_VALUES_MAX``."""
        size = len(raw)
        if size > self._bytes_max:
            raise self._too_large(size)
        if size > _VALUES_UNCOUNTED_BYTES:
            _check_count(bytes(raw), at, self._field)
        try:
            value = _decode_value(raw)
        except msgspec.ValidationError as why:
            raise InvalidField(f"{self._field}: {str(why)[:200].lower()}", field=f"{at}/{self._field}") from None
        except RecursionError:
            raise _too_deep(at, self._field) from None
        except ValueError as why:
            raise Malformed(f"{self._field}: {str(why)[:200]}") from None
        encoded = _encode_value(value)
        size = len(encoded)
        if size >= 19 and (
            encoded.translate(_DIGITS_TO_ZEROS).find(_LONG_NUMBER) >= 0
            or (size > _SHALLOW_BYTES and encoded.count(b"[") + encoded.count(b"{") > limits.JSON_DEPTH_MAX)
        ):
            _check_shape(value, at, self._field)
        if size > self._bytes_max:
            raise self._too_large(size)
        return value, encoded

    def _too_large(self, size: int) -> PayloadTooLarge:
        return PayloadTooLarge(f"a {self._field} of {size} bytes; at most {self._bytes_max} are allowed")


def _check_count(raw: bytes, at: str, field: str) -> None:
    """Refuse a payload of too many values before it is decoded, which is what would cost. Each
    element but the first of its container stands behind a comma. Strings may hold commas, too: if
    that could matter, they are removed first."""
    if raw.count(b",") + raw.count(b"[") + raw.count(b"{") < limits.PAYLOAD_VALUES_MAX:
        return
    bare = _json_string.sub(b"", raw)
    values = 1 + bare.count(b",")
    if values <= limits.PAYLOAD_VALUES_MAX:  # else it is refused in any case, and empty ones need not be found
        values += bare.count(b"[") + bare.count(b"{") - len(_empty_container.findall(bare))
    if values > limits.PAYLOAD_VALUES_MAX:
        raise InvalidField(
            f"{field}: {values} values; at most {limits.PAYLOAD_VALUES_MAX} are allowed", field=f"{at}/{field}"
        )


def _check_shape(value: object, at: str, field: str) -> None:
    """Refuse integers beyond 64 bits and deep nesting. No recursion: the input sets the depth."""
    level: list[object] = [value]
    depth = 0
    while level:
        deeper: list[object] = []
        containers = False
        for item in level:
            kind = type(item)
            if kind is dict:
                containers = True
                deeper.extend(item.values())  # type: ignore[attr-defined]  # its type was just looked at
            elif kind is list:
                containers = True
                deeper.extend(item)  # type: ignore[arg-type]  # its type was just looked at
            elif kind is int and not _INT_MIN <= item <= _INT_MAX:  # type: ignore[operator]  # as above
                raise InvalidField(f"{field}: an integer beyond 64 bits", field=f"{at}/{field}")
        depth += containers
        if depth > limits.JSON_DEPTH_MAX:
            raise _too_deep(at, field)
        level = deeper


def _too_deep(at: str, field: str) -> InvalidField:
    return InvalidField(f"{field}: nested deeper than {limits.JSON_DEPTH_MAX} levels", field=f"{at}/{field}")


# --- from bodies to submissions ---
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_RUN_AT_US_MAX = RUN_AT_S_MAX * 1_000_000 + 999_999
_is_task_id = re.compile(TASK_ID_PATTERN.strip("^$")).fullmatch
_encode_in_order = msgspec.json.Encoder(order="deterministic").encode
_empty_hash = blake2b(digest_size=16)


class Bodies:
    """Turns bodies of requests into submissions; decoders are built once. Each method may raise a
    ``TaskQueueError`` that names the field; none raises a decoder's error."""

    def __init__(self, payload_bytes_max: int = limits.PAYLOAD_BYTES_MAX) -> None:
        self._decode_one = msgspec.json.Decoder(SubmitRequest).decode
        self.item_bytes_max = payload_bytes_max + limits.ITEM_BYTES_MORE
        self._items = BatchCutter(self.item_bytes_max)
        self._payload = Payloads(payload_bytes_max).parse

    def submission(self, body: bytes, key: str | None = None) -> Submission:
        """The task in the body of ``/tasks/submit``, decoded in one piece.

        A body over ``limits.LARGE_BODY_BYTES`` goes to ``large_submission``.

        :param key: of the ``Idempotency-Key`` header: the task's id if the body has none."""
        try:
            task = self._decode_one(body)
        except (ValueError, RecursionError) as why:
            raise refusal(body, SubmitRequest, why) from None
        return self._convert(task, "", key)

    async def large_submission(self, body: bytes, key: str | None, pace: Pace) -> Submission:
        """The task in a large body of ``/tasks/submit``, in slices; else as ``submission``."""
        return await self._large(body, "", key, pace)

    async def batch(self, body: bytes, pace: Pace) -> list[Submission | TaskQueueError]:
        """The items of a body ``{"tasks":[…]}``: each a submission, or why it is refused."""
        return await self._read(await self._items.of_array(body, pace), pace)

    async def lines(self, body: bytes, pace: Pace) -> list[Submission | TaskQueueError]:
        """Each non-empty line of newline-delimited JSON: a submission, or why it is refused."""
        return await self._read(await self._items.of_lines(body, pace), pace)

    async def _read(self, items: list[msgspec.Raw], pace: Pace) -> list[Submission | TaskQueueError]:
        results: list[Submission | TaskQueueError] = []
        refused_count = 0
        for place, item in enumerate(items):
            if pace.is_over():
                await pace.turn()
            try:
                if len(item) > limits.LARGE_BODY_BYTES:
                    results.append(await self._large(bytes(item), f"/tasks/{place}", None, pace))
                    continue
                try:
                    task = self._decode_one(item)
                except (ValueError, RecursionError) as why:
                    refused_count += 1
                    within = refused_count <= limits.BATCH_REFUSALS_WITHIN_MAX
                    results.append(refusal(bytes(item), SubmitRequest, why, f"/tasks/{place}", within=within))
                    continue
                results.append(self._convert(task, "", None))
            except TaskQueueError as refused:
                if isinstance(refused, FieldError) and not refused.field.startswith("/tasks/"):
                    refused.field = f"/tasks/{place}{refused.field}"
                results.append(refused)
        return results

    async def _large(self, body: bytes, at: str, key: str | None, pace: Pace) -> Submission:
        """A large task in three slices: decode, payload, rest. ``at``: its JSON Pointer."""
        if len(body) > self.item_bytes_max:
            raise PayloadTooLarge(
                f"a task of {len(body)} bytes; at most {self.item_bytes_max} are allowed with all its fields"
            )
        try:
            task = self._decode_one(body)
        except (ValueError, RecursionError) as why:
            refused: Exception = why
            if pace.is_over():
                await pace.turn()
            raise refusal(body, SubmitRequest, refused, at) from None
        parsed = None
        if task.payload is not None:
            if pace.is_over():
                await pace.turn()
            parsed = self._payload(task.payload, at)
            if pace.is_over():
                await pace.turn()
        return self._convert(task, at, key, parsed)

    def _convert(
        self, task: SubmitRequest, at: str, key: str | None, parsed: tuple[object, bytes] | None = None
    ) -> Submission:
        """The submission of a decoded task. ``parsed``: its payload, if that is parsed already."""
        raw = task.payload
        value, payload = parsed or (self._payload(raw, at) if raw is not None else (None, b"null"))
        task_id = task.id
        if task_id is None:
            task_id = key
        elif not _is_task_id(task_id):
            # The pattern's $ lets one newline at the end pass.
            raise InvalidField("id: characters other than A-Z a-z 0-9 . _ : -", field=at + "/id")
        delay, run_at, timeout, backoff = task.delay, task.run_at, task.timeout, task.backoff
        delay_us = run_at_us = timeout_ms = None
        if delay is not None:
            if run_at is not None:
                raise InvalidField("delay and run_at exclude one another", field=at + "/run_at")
            delay_us = round(delay * 1_000_000)
        elif run_at is not None:
            run_at_us = _instant_us(run_at, at)
        if timeout is not None:
            timeout_ms = max(1, round(timeout * 1_000))
        if not task.type.isprintable():
            refuse_unshown("type", task.type, at)
        if task.queue is not None and not task.queue.isprintable():
            refuse_unshown("queue", task.queue, at)
        return Submission(
            task.type,
            payload,
            task_id,
            task.queue,
            None if task.priority is None else int(task.priority),
            delay_us,
            run_at_us,
            None if task.max_attempts is None else int(task.max_attempts),
            timeout_ms,
            None if backoff is None else backoff_of(backoff),
            task.tags,
            # Also for ids made here: a client told one as "outcome unknown" may send it again (P4).
            content_hash(task, value),
        )


def idempotency_key(header: bytes) -> str:
    """The id of an ``Idempotency-Key``, plain or quoted; raises ``InvalidField`` if it is none."""
    text = header.decode("latin-1").strip()
    if len(text) >= 2 and text[0] == text[-1] == '"':
        text = text[1:-1]
    if not _is_task_id(text):
        raise InvalidField(
            f"Idempotency-Key: 1 to {limits.TASK_ID_CHARS_MAX} characters of A-Z a-z 0-9 . _ : - are allowed",
            field="/id",
        )
    return text


def content_hash(task: SubmitRequest, payload: object) -> bytes:
    """16 bytes over all fields as sent but ``id``: tells a repeated submit from a different task
    with its id. Hashed is the JSON, with sorted keys, of the fields that are not null. It is
    stored, so part of the data format."""
    sent: dict[str, object] = {"type": task.type}
    if payload is not None:
        sent["payload"] = payload
    # Not in a loop over the names: it would be 4 % of what HTTP costs.
    if task.priority is not None:
        sent["priority"] = task.priority
    if task.delay is not None:
        sent["delay"] = task.delay
    if task.run_at is not None:
        sent["run_at"] = task.run_at
    if task.max_attempts is not None:
        sent["max_attempts"] = task.max_attempts
    if task.timeout is not None:
        sent["timeout"] = task.timeout
    if task.backoff is not None:
        sent["backoff"] = task.backoff
    if task.queue is not None:
        sent["queue"] = task.queue
    if task.tags is not None:
        sent["tags"] = task.tags
    hashed = _empty_hash.copy()
    hashed.update(_encode_in_order(sent))
    return hashed.digest()


def _instant_us(run_at: datetime | float, at: str) -> int:
    """Microseconds since 1970; 0 for earlier times, which are due at once, too."""
    if isinstance(run_at, datetime):
        us = (run_at - _EPOCH) // _MICROSECOND
        if us > _RUN_AT_US_MAX:
            raise InvalidField("run_at: beyond the year 9999", field=at + "/run_at")
        return max(0, us)
    # Compared first: a double may be so low that its microseconds are beyond all doubles.
    return math.floor(run_at * 1_000_000) if run_at > 0 else 0


def backoff_of(sent: BackoffRequest | float) -> Backoff:
    """The back-off that a request means."""
    if isinstance(sent, BackoffRequest):
        return Backoff(sent.kind, round(sent.base * 1_000), round(sent.cap * 1_000), sent.jitter)
    # A plain number is meant to the letter: no jitter, and no cap that would cut it.
    base_ms = round(sent * 1_000)
    return Backoff("constant", base_ms, max(base_ms, Backoff().cap_ms), False)
