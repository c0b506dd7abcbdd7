"""``python -m tests.chaos.flood``: so many connections from a process of its own, each sending one submit after another, whatever
it hears; what was asked and heard goes to a file, a line each, for the history."""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from tests.support.harness import PROJECT, clean_environment
from tests.support.history import Call, History, outcome_of

CONNECTIONS_MAX = 512
"""Of all processes of a flood together; it is about load, not about how many sockets there are."""
AGAIN_S = 0.05
"""After a refusal, or a broken connection. A polite client would wait for as long as ``Retry-After`` says."""
CALL_S = 30.0


class Caller:
    def __init__(self, name: str, port: int, batch: int, payload_bytes: int, sink: IO[str]) -> None:
        self.name, self.port, self.batch = name, port, batch
        self.payload = "x" * payload_bytes
        self.sink = sink
        self.serial = 0

    async def run(self, until_s: float) -> None:
        while time.monotonic() < until_s:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=2**24)
            except OSError:
                await asyncio.sleep(AGAIN_S)
                continue
            try:
                while time.monotonic() < until_s:
                    await self._call(reader, writer)
            except (OSError, asyncio.IncompleteReadError, TimeoutError):
                await asyncio.sleep(AGAIN_S)
            finally:
                writer.close()

    async def _call(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """:raises OSError, IncompleteReadError, TimeoutError: what became of it is not known."""
        ids = [f"{self.name}-{self.serial + number}" for number in range(self.batch)]
        self.serial += self.batch
        tasks = [{"id": task_id, "type": "noop", "payload": self.payload} for task_id in ids]
        path, body = ("submit", tasks[0]) if self.batch == 1 else ("batch", {"tasks": tasks})
        content = json.dumps(body).encode()
        head = f"POST /tasks/{path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n"
        began_s = time.monotonic()
        http, retry_after = 0, False
        answers: list[dict[str, Any]] = [{}] * len(ids)
        try:
            writer.write(head.encode() + content)
            async with asyncio.timeout(CALL_S):
                http, retry_after, answer = await _answer(reader)
            answers = answer["results"] if "results" in answer else [answer] * len(ids)
        finally:
            ended_s = time.monotonic()
            for task_id, one in zip(ids, answers, strict=True):
                error = one.get("error") or one
                status = http if "error" not in one else error["status"]
                status = 201 if http == 200 and "error" not in one else status  # an item's birth: no id is sent twice
                self.sink.write(
                    json.dumps(
                        [task_id, began_s, ended_s, status, error.get("code", ""), retry_after or self.batch > 1]
                    )
                    + "\n"
                )
        if http != 200 and http != 201:
            await asyncio.sleep(AGAIN_S)


async def _answer(reader: asyncio.StreamReader) -> tuple[int, bool, dict[str, Any]]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    length = next(int(line.split(":")[1]) for line in head.splitlines() if line.startswith("content-length:"))
    answer = json.loads(await reader.readexactly(length))
    return int(head.split(" ", 2)[1]), "\nretry-after:" in head, answer


async def _flood(options: argparse.Namespace) -> None:
    until_s = time.monotonic() + options.seconds
    ports = [int(port) for port in options.ports.split(",")]
    with options.out.open("w") as sink:
        callers = [
            Caller(f"{options.prefix}-{number}", ports[number % len(ports)], options.batch, options.payload, sink)
            for number in range(options.connections)
        ]
        async with asyncio.TaskGroup() as group:
            for caller in callers:
                group.create_task(caller.run(until_s))


# --- for the scenario ---
class Beside:
    """Processes that load the cluster beside a scenario; each writes what it heard to a file of its own."""

    def __init__(self, module: str, directory: Path, name: str, processes: int, said: list[str]) -> None:
        """:param said: to all of them; what is added says who each one is."""
        self._outs = [directory / f"{name}-{number}" for number in range(processes)]
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-m", module, *said, "--prefix", out.name, "--out", str(out)],
                cwd=PROJECT,
                env=clean_environment(),
            )
            for out in self._outs
        ]

    def heard(self, within_s: float) -> Iterator[Path]:
        """What each has heard, once it has ended."""
        for process, out in zip(self._processes, self._outs, strict=True):
            assert process.wait(within_s) == 0, f"{out.name} has failed"
            yield out

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait(30)


class Flood(Beside):
    """:param connections: of all its processes together, spread over the nodes."""

    def __init__(
        self,
        directory: Path,
        name: str,
        ports: Mapping[str, int],
        *,
        connections: int,
        seconds: float,
        processes: int = 2,
        batch: int = 1,
        payload_bytes: int = 100,
    ) -> None:
        assert connections <= CONNECTIONS_MAX
        self.connections, self.seconds = connections, seconds
        said = ["--ports", ",".join(map(str, ports.values())), "--seconds", str(seconds), "--batch", str(batch)]
        said += ["--payload", str(payload_bytes), "--connections", str(connections // processes)]
        super().__init__("tests.chaos.flood", directory, name, processes, said)

    def end(self, history: History) -> list[Call]:
        """Wait for it. What it heard, which the history now has."""
        calls = []
        for out in self.heard(self.seconds + CALL_S + 30):
            for line in out.read_text().splitlines():
                task_id, began_s, ended_s, http, code, retry_after = json.loads(line)
                call = Call("submit", task_id, began_s, out.name, http=http, code=code, retry_after=retry_after)
                call.outcome = outcome_of("submit", http, code) if http else "unknown"
                if call.outcome != "unknown":
                    call.ended_s = ended_s
                call.code = call.code or ("" if http else "no answer")
                calls.append(history.add(call))
        return calls


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, kind in (("ports", str), ("prefix", str), ("connections", int), ("seconds", float), ("batch", int),
                       ("payload", int), ("out", Path)):  # fmt: skip
        parser.add_argument(f"--{name}", type=kind, required=True)
    asyncio.run(_flood(parser.parse_args()))


if __name__ == "__main__":
    main()
