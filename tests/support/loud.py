"""``python -m tests.support.loud HOST:PORT SOURCE CONNECTIONS PAUSE_S SECONDS [TOKEN]``: a caller at an address of its own.

Each of its connections sends one submit after another, after a refusal with a pause; what became of them is printed as JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

BODY = b'{"type":"never","delay":3600}'
WARM_S = 1.5
"""Not counted at the beginning: until then not all are there."""


class Caller:
    def __init__(self, host: str, port: int, source: str, pause_s: float, seconds: float, token: str) -> None:
        line = f"Authorization: Bearer {token}\r\n" if token else ""
        head = f"POST /tasks/submit HTTP/1.1\r\nHost: localhost\r\n{line}Content-Length: {len(BODY)}\r\n\r\n"
        self.request = head.encode() + BODY
        self.host, self.port, self.source, self.pause_s = host, port, source, pause_s
        self.from_s = time.monotonic() + WARM_S
        self.until_s = self.from_s + seconds
        self.admitted = self.refused = 0
        self.latencies_ms: list[float] = []
        self.odd: list[str] = []

    async def run(self) -> None:
        reader, writer = await asyncio.open_connection(self.host, self.port, local_addr=(self.source, 0))
        while (began_s := time.monotonic()) < self.until_s:
            writer.write(self.request)
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            await reader.readexactly(length)
            status = int(head[9:12])
            if began_s >= self.from_s:
                self.admitted += status == 201
                self.refused += status == 429
                if status == 201:
                    self.latencies_ms.append((time.monotonic() - began_s) * 1_000)
                elif status != 429:
                    self.odd.append(head[:40].decode("latin-1"))
            if status != 201:
                await asyncio.sleep(self.pause_s)
        writer.close()


async def main(address: str, source: str, connections: int, pause_s: float, seconds: float, token: str = "") -> None:
    host, _, port = address.rpartition(":")
    caller = Caller(host, int(port), source, pause_s, seconds, token)
    await asyncio.gather(*(caller.run() for _ in range(connections)))
    found = sorted(caller.latencies_ms) or [0.0]
    print(
        json.dumps(
            {
                "admitted": caller.admitted,
                "refused": caller.refused,
                "p99_ms": found[int(len(found) * 0.99)],
                "odd": caller.odd[:5],
            }
        )
    )


if __name__ == "__main__":
    asyncio.run(
        main(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), float(sys.argv[5]), *sys.argv[6:7])
    )
