"""``docs/howto/three-machines.md``, typed line by line on three machines: what comes back is what the page says."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.howto.conftest import Page
from tests.support import machines
from tests.support.harness import until
from tests.support.machines import Machines

pytestmark = pytest.mark.long

PAGE = "three-machines"
URL = "https://10.20.0."
KNOWN_S = 1.0
"""Within so long each node that reaches a majority knows that a token has ended (section 12 of the contract)."""
PROMPT = re.compile(r"(desk|each|node-[123])([$#]) (.*)")


class Line(NamedTuple):
    """A command of the page, and what it shows below it."""

    section: str
    where: str
    command: str
    shown: str


def lines_of(page: Page) -> Iterator[Line]:
    """What the page has people type, in its order."""
    for section, text in re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", page.text, re.MULTILINE | re.DOTALL):
        for block in re.findall(r"^```\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            yield from _lines_of_block(section, block)


def _lines_of_block(section: str, block: str) -> Iterator[Line]:
    rest = block.splitlines()
    while rest:
        match = PROMPT.fullmatch(rest.pop(0))
        assert match is not None, f"{section}: a block begins with a prompt"
        command = match[3]
        if here := re.search(r"<<'?(\w+)'?$", command):
            end = rest.index(here[1]) + 1
            command, rest = "\n".join([command, *rest[:end]]), rest[end:]
        shown = []
        while rest and not PROMPT.fullmatch(rest[0]):
            shown.append(rest.pop(0))
        yield Line(section, match[1], command, "\n".join(shown))


def fits(shown: str, said: str) -> bool:
    """Whether that is what the page shows; ``…`` stands for anything, and blanks at the end of lines for nothing."""
    pattern = ".*".join(re.escape(part) for part in shown.split("…"))
    return re.fullmatch(pattern, re.sub(r"[ \t]+$", "", said, flags=re.MULTILINE).strip("\n"), re.DOTALL) is not None


@pytest.fixture(scope="module")
def typed(page: Page, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    """The three machines as they are after the page was typed, but for its last section."""
    if why := machines.missing():
        pytest.skip(why)
    made = Machines(Path(tmp_path_factory.mktemp("machines")))
    try:
        lines = list(lines_of(page))
        installing = [line for line in lines if line.section.startswith("1.")]
        for done in made.install([line.command for line in installing]):
            assert done.code == 0, done
        made.boot()
        for line in lines[len(installing) :]:
            type_line(made, line)
        yield made
    finally:
        made.close()


def type_line(three: Machines, line: Line) -> None:
    for where in three.names if line.where == "each" else [line.where]:
        done = three.type(where, line.command)
        print(f"{where}> {line.command}\n{done.said}")
        assert fits(line.shown, done.said), f"{where}> {line.command}\n{done}\nbut the page shows:\n{line.shown}"
        assert line.shown or done.code == 0, f"{where}> {line.command}\n{done}"


def said(three: Machines, where: str, command: str) -> str:
    done = three.type(where, command)
    assert done.code == 0, f"{where}> {command}\n{done}"
    return done.said


def statuses(three: Machines, token: str, request: str) -> list[str]:
    """Of the answers of all nodes."""
    return [
        said(
            three, "desk", f"tq {token} -o answer -w '%{{http_code}}' {request.replace('NODE', f'{URL}{number}:8080')}"
        )
        for number in (1, 2, 3)
    ]


def test_the_page_has_all_that_it_is_to_show(page: Page) -> None:
    lines = list(lines_of(page))
    assert {line.section.partition(".")[0] for line in lines} == set("12345678")
    assert {line.where for line in lines} == {"desk", "each", "node-1", "node-2", "node-3"}
    for shown in ("401", "403", "503", "does not follow", "Email sent", "HEALTHY", "15\n15\n15"):
        assert any(shown in line.shown for line in lines), shown
    assert not fits("200 200 200", "200 200 401")
    assert not fits("a…b", "a b c")


def test_read_changes_nothing_and_view_sees_no_payload(typed: Machines) -> None:
    """Which routes there are is asked of a node; each is tried at each."""
    routes = json.loads(said(typed, "desk", f"tq ops {URL}1:8080/openapi.json"))["paths"]
    changing = [path for path, methods in routes.items() if "post" in methods and path != "/cluster/join"]
    assert len(changing) > 12
    counting = f"tq report '{URL}1:8080/tasks/stats?scope=cluster'"
    before = until(lambda: '"partitions_missing":[]' in (now := said(typed, "desk", counting)) and now, what="all led")
    for path in changing:
        body = """ -d '{"type":"email"}'""" if path in ("/tasks/submit", "/tasks/batch") else " -X POST"
        assert statuses(typed, "report", f"NODE{path}{body}") == ["403"] * 3, path
    assert said(typed, "desk", counting) == before
    print(f"read: {3 * len(changing)} changes refused, over {len(changing)} routes at each node")
    for number in (1, 2, 3):
        for path in ("tasks/list?limit=50", "tasks/status?id=order-1", "tasks/dead"):
            seen = said(typed, "desk", f"tq wall '{URL}{number}:8080/{path}'")
            assert "example.com" not in seen
            assert "payload" not in seen
    following = f"tq wall -N '{URL}2:8080/tasks/events?scope=cluster'"
    said(typed, "desk", f'timeout 5 bash -c "$(declare -f tq); {following}" > events & sleep 1')
    said(typed, "desk", "python shop.py; wait $!; grep -c completed events; ! grep -e example.com -e payload events")


COUNTED = """
import json, ssl, sys, threading, time, urllib.error, urllib.request
context = ssl.create_default_context(cafile="tls/ca.crt")
ops, token = (open(name + ".token").read().strip() for name in ("ops", sys.argv[1]))
def ask(node, path, shown, body=None):
    url = f"https://10.20.0.{node}:8080{path}"
    request = urllib.request.Request(url, body, {"Authorization": "Bearer " + shown}, method="GET" if body is None else "POST")
    try:
        return urllib.request.urlopen(request, timeout=5, context=context).status
    except urllib.error.HTTPError as answer:
        return answer.code
last = {}
def watch(node):
    while (status := ask(node, "/cluster", token)) == 200:
        last[node] = time.monotonic()
    last[node] = (last[node], status)
threads = [threading.Thread(target=watch, args=(node,)) for node in (1, 2, 3)]
for thread in threads: thread.start()
time.sleep(0.5)
if len(sys.argv) > 2:
    end = time.monotonic() + float(sys.argv[2]) - time.time()
else:
    end = time.monotonic()
    assert ask(1, f"/tokens/revoke?name={sys.argv[1]}", ops, b"") == 200
for thread in threads: thread.join()
print(json.dumps({str(node): [at - end, status] for node, (at, status) in last.items()}))
"""
"""Asks all nodes with a token until they refuse it: how long after the order to end it, or after its end, it still counted."""


def test_what_is_revoked_or_expired_counts_for_less_than_a_second_more(typed: Machines) -> None:
    (typed.desk_folder / "counted.py").write_text(COUNTED)
    said(
        typed,
        "desk",
        "ask new --name late --role view > late.token; ask new --name short --role view --expires-in 4s > short.token",
    )
    listed = said(typed, "desk", f"tq ops {URL}1:8080/tokens/list")
    (expires_at,) = (one["expires_at"] for one in json.loads(listed)["tokens"] if one["name"] == "short")
    ends = datetime.fromisoformat(expires_at).timestamp()
    for command in ("python counted.py late", f"python counted.py short {ends}"):
        last = json.loads(said(typed, "desk", command))
        print(command, last)
        assert {status for _, status in last.values()} == {401}
        assert max(late_s for late_s, _ in last.values()) < KNOWN_S


def test_a_command_that_fails_is_seen_to_fail(typed: Machines) -> None:
    for where in ("desk", "node-1"):
        assert [typed.type(where, command).code for command in ("false", "(exit 7)", "true", "echo a; ! true")] == [
            1,
            7,
            0,
            1,
        ]


def test_what_is_secret_lies_nowhere_else_and_others_get_nowhere(typed: Machines) -> None:
    """Tokens, as shown, and the secret: not in stores, logs, journals; files of nodes: not for another user of the machine."""
    tokens = said(typed, "desk", "cat *.token").split()
    assert len(tokens) >= 5
    secret = said(typed, "node-1", "cat /etc/taskqueue/node-1/secret").strip()
    assert re.fullmatch("[0-9a-f]{64}", secret)
    for name in typed.names:
        said(typed, name, "{ journalctl --output=cat; cat /var/log/taskqueue/*/*; } > /root/logs")
        for needle in (*tokens, secret):
            done = typed.type(
                name, f"grep --recursive --text --files-with-matches {needle} /root/logs /var/lib/taskqueue"
            )
            assert (done.code, done.said) == (1, ""), "found"
        assert said(typed, name, "grep --count '\"outcome\":401' /root/logs") != "0", "it is looked at the right ones"
        node = said(typed, name, "systemctl show --property=MainPID --value taskqueue@$HOSTNAME")
        for path in (
            "/etc/taskqueue/$HOSTNAME/secret", "/run/credentials/taskqueue@$HOSTNAME.service/tls.key",
            "/var/lib/taskqueue/$HOSTNAME/taskqueue.sqlite3", "/var/log/taskqueue/$HOSTNAME/audit.jsonl", f"/proc/{node}/environ",
        ):  # fmt: skip
            said(typed, name, f"head -c 1 {path}")
            refused = typed.type(name, f"setpriv --reuid=nobody --regid=nogroup --clear-groups head -c 1 {path}")
            assert "Permission denied" in refused.said, (path, refused)
    for number in (1, 2, 3):
        assert typed.type("desk", f"curl -sS -k -m 1 {URL}{number}:9080").code == 28, "the firewall drops it"
        refused = typed.type("node-2", f"curl -sS -k -m 5 {URL}{number}:9080")
        assert refused.code in (35, 56), refused
        assert "alert" in refused.said, "no peer without a certificate"


LOAD = """
import itertools, threading
from tq_node.client import Queue
nodes = "https://10.20.0.1:8080,https://10.20.0.2:8080,https://10.20.0.3:8080"
over, done, failed = threading.Event(), [], []
def work(queue):
    while not over.is_set():
        try:
            done.append(queue.submit("email", "load").get().id)
        except Exception as why:
            failed.append(repr(why))
with Queue(nodes, ca="tls/ca.crt", token_file="load.token") as queue:
    threads = [threading.Thread(target=work, args=(queue,)) for _ in range(2)]
    for thread in threads: thread.start()
    input()
    over.set()
    for thread in threads: thread.join()
    print(2 * len(done), "calls,", len(failed), "failed", *failed[:5])
"""


def test_certificates_secret_and_token_change_under_load_as_the_last_section_says(typed: Machines) -> None:
    """Node by node, by a restart; the client has all three addresses. Its token is replaced on the way, the old one revoked.

    With `submit` alone the new one would not know of the task that the old one has just submitted.
    """
    (typed.desk_folder / "load.py").write_text(LOAD)
    say = functools.partial(said, typed)
    say("desk", "ask new --name load-1 --role submit --role read > load.token")
    say("desk", "mkfifo end; python load.py < end > load.out 2>&1 & exec 9> end")
    (typed.desk_folder / "old").write_text(say("node-1", "cat /etc/taskqueue/node-1/secret").strip() + "\n")
    say("desk", "openssl rand -hex 32 > new")
    for step, secret in enumerate(("old new", "new old", "new"), 1):
        say("desk", f"cat {secret} > secret")
        for number, name in enumerate(typed.names, 1):
            if step == 2:
                say("desk", f"rm tls/{name}.*; deploy/make-cluster-ca tls {name}=10.20.0.{number}")
                say("desk", f"cp tls/{name}.crt tls.crt; cp tls/{name}.key tls.key")
                say("desk", f"scp -q tls.crt tls.key root@10.20.0.{number}:/etc/taskqueue/{name}")
            say("desk", f"scp -q secret root@10.20.0.{number}:/etc/taskqueue/{name}")
            say(name, f"systemctl restart taskqueue@{name}")
            asking = f"tq report {URL}{number}:8080/ready || true"
            until(lambda asking=asking: '"ready":true' in say("desk", asking), deadline_s=30, what=name)  # type: ignore[misc]
        if step == 2:
            say("desk", "ask new --name load-2 --role submit --role read > load.next; mv load.next load.token; sleep 2")
            say("desk", "ask revoke load-1")
    say("desk", "echo >&9; exec 9>&-; wait")
    counted = say("desk", "cat load.out")
    print(f"nine restarts, three new certificates, a new secret, a new token: {counted}")
    match = re.fullmatch(r"(\d+) calls, 0 failed", counted)
    assert match is not None, counted
    assert int(match[1]) > 100
