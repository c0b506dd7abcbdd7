"""The tokens file: what is read, what is refused, and how tokens come in and go out."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tq_node import limits
from tq_node.cli import tokens_file
from tq_node.cli.tokens_file import BadTokensFile
from tq_node.tokens import Quotas, Role, TokenEntry, hash_of

HASH = "sha256:" + "ab" * 32
ONE = f"""
[[token]]
name = "ops"
hash = "{HASH}"
roles = ["admin"]
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "tokens.toml"
    made.write_text(ONE)
    made.chmod(0o600)
    return made


def entry(name: str = "new", **fields: object) -> TokenEntry:
    return TokenEntry(name, hash_of(name), (Role.VIEW,), **fields)  # type: ignore[arg-type]


class TestReading:
    def test_each_field_is_taken(self, path: Path) -> None:
        path.write_text(
            ONE
            + f"""
[[token]]
name = "mail"
hash = "sha256:{"01" * 32}"
roles = ["submit", "work"]
queues = ["mail", "\u00e9"]
expires = 2030-01-31T00:00:00+01:00
quotas = {{ requests = 2.5, open_tasks = 7 }}
"""
        )
        ops, mail = tokens_file.read(path)
        assert ops == TokenEntry("ops", bytes.fromhex("ab" * 32), (Role.ADMIN,))
        expires_us = 1_896_044_400_000_000
        assert mail == TokenEntry(
            "mail",
            bytes.fromhex("01" * 32),
            (Role.SUBMIT, Role.WORK),
            ("mail", "\u00e9"),
            expires_us,
            Quotas(requests=2.5, open_tasks=7),
        )

    def test_a_file_may_hold_none(self, path: Path) -> None:
        path.write_text("# nobody\n")
        assert tokens_file.read(path) == ()

    @pytest.mark.parametrize("mode", [0o600, 0o640, 0o400, 0o440])
    def test_modes_that_do(self, path: Path, mode: int) -> None:
        path.chmod(mode)
        assert len(tokens_file.read(path)) == 1

    @pytest.mark.parametrize("mode", [0o644, 0o660, 0o602, 0o601, 0o700, 0o610])
    def test_modes_that_do_not(self, path: Path, mode: int) -> None:
        path.chmod(mode)
        with pytest.raises(BadTokensFile, match=f"its mode is {mode:04o}"):
            tokens_file.read(path)

    def test_a_file_of_another_user_is_refused(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        me = path.stat().st_uid
        monkeypatch.setattr(os, "geteuid", lambda: me + 1)
        if me != 0:
            with pytest.raises(BadTokensFile, match=f"belongs to user {me}"):
                tokens_file.read(path)
            return
        assert tokens_file.read(path), "root's is fine"
        os.chown(path, 4321, -1)
        with pytest.raises(BadTokensFile, match="belongs to user 4321"):
            tokens_file.read(path)

    def test_only_a_plain_file_is_read(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            tokens_file.read(tmp_path / "none")
        with pytest.raises(BadTokensFile):
            tokens_file.read(tmp_path)
        os.mkfifo(tmp_path / "pipe", 0o600)
        with pytest.raises(BadTokensFile, match="no plain file"):
            tokens_file.read(tmp_path / "pipe")

    @pytest.mark.parametrize(
        ("text", "why"),
        [
            ("[[token]", "not TOML"),
            ("a = " + "[" * 5_000, "not TOML"),
            ("other = 1", "unknown field `other`"),
            (ONE + "role = 1", "unknown field `role`"),
            (ONE.replace("roles", "role"), "unknown field `role`"),
            (ONE.replace('["admin"]', '["root"]'), "'root'|root"),
            (ONE.replace('["admin"]', "[]"), "it has no role"),
            (ONE.replace('["admin"]', '["view", "view"]'), "one of them twice"),
            (ONE.replace('"ops"', '"a b"'), "is no name"),
            (ONE.replace('"ops"', '"a\\n"'), "is no name"),
            (ONE.replace("sha256:", ""), "not sha256: and 64 digits"),
            (ONE.replace("abab", "abAB"), "not sha256: and 64 digits"),
            (ONE.replace("abab", ""), "not sha256: and 64 digits"),
            (ONE + ONE, "there twice"),
            (ONE + ONE.replace("ops", "other"), "there twice"),
            (ONE + ONE.replace("abab", "cdcd"), "there twice"),
            (ONE + 'queues = [""]', "its queues"),
            (ONE + 'queues = ["a", "a"]', "its queues"),
            (ONE + f'queues = ["{"q" * 101}"]', "its queues"),
            (ONE + f"queues = {[str(n) for n in range(limits.TOKEN_QUEUES_MAX + 1)]}", "its queues"),
            (ONE + "expires = 2030-01-31T00:00:00", "says no zone"),
            (ONE + "quotas = { requests = -1 }", "a quota"),
            (ONE + "quotas = { requests = inf }", "a quota"),
            (ONE + "quotas = { requests = nan }", "a quota"),
            (ONE + "quotas = { waits = 1.5 }", "Expected `int"),
            (ONE + "quotas = { other = 1 }", "unknown field `other`"),
            ("#" * (limits.TOKENS_FILE_BYTES_MAX + 1), "no file of tokens"),
        ],
        ids=lambda value: str(value)[-30:],
    )
    def test_what_is_no_file_of_tokens_is_refused_in_one_line(self, path: Path, text: str, why: str) -> None:
        path.write_text(text)
        with pytest.raises(BadTokensFile, match=why) as refused:
            tokens_file.read(path)
        assert str(refused.value).startswith(str(path))
        assert HASH not in str(refused.value)

    def test_neither_are_bytes_that_are_no_text(self, path: Path) -> None:
        path.write_bytes(b"\xff")
        with pytest.raises(BadTokensFile, match="not UTF-8"):
            tokens_file.read(path)

    def test_as_many_as_it_may_hold_are_read_while_nobody_waits(self, path: Path) -> None:
        """It is read in the reactor."""
        queues = tuple(f"{'q' * 10}{number}" for number in range(20))
        many = [entry(f"n{number}", queues=queues, expires_us=10**15) for number in range(limits.TOKENS_OF_FILE_MAX)]
        path.write_text("".join(map(tokens_file.written, many)))
        assert 0.7 * limits.TOKENS_FILE_BYTES_MAX < path.stat().st_size < limits.TOKENS_FILE_BYTES_MAX
        begun_ns = cpu_ns()
        assert list(tokens_file.read(path)) == many
        assert cpu_ns() - begun_ns < 1e6 * limits.LOOP_HELD_MS
        path.write_text(path.read_text() + tokens_file.written(entry("more")))
        with pytest.raises(BadTokensFile, match="at most 100"):
            tokens_file.read(path)


class TestWriting:
    def test_what_is_written_is_read(self, path: Path) -> None:
        for one in (
            entry("a", queues=('q"\\\u2028\u00e9', "\x7f"), expires_us=1_896_044_400_000_000),
            entry("b", queues=(), quotas=Quotas(0.25, 1, 2, 3, 4, 5)),
        ):
            assert tokens_file.parse(tokens_file.written(one), "x") == (one,)

    def test_a_new_file_is_its_owner_s_alone(self, tmp_path: Path) -> None:
        made = tmp_path / "new.toml"
        tokens_file.with_token(made, entry())
        assert stat.S_IMODE(made.stat().st_mode) == 0o600
        assert tokens_file.read(made) == (entry(),)
        assert os.listdir(tmp_path) == ["new.toml"]

    def test_a_token_is_added_behind_what_is_there(self, path: Path) -> None:
        path.chmod(0o640)
        path.write_text(f"# mine\n{ONE.rstrip()}")
        tokens_file.with_token(path, entry())
        assert path.read_text().startswith(f"# mine\n{ONE.rstrip()}\n\n[[token]]")
        assert [one.name for one in tokens_file.read(path)] == ["ops", "new"]
        assert stat.S_IMODE(path.stat().st_mode) == 0o640

    def test_not_more_than_it_may_hold(self, path: Path) -> None:
        path.write_text("".join(tokens_file.written(entry(f"n{n}")) for n in range(limits.TOKENS_OF_FILE_MAX)))
        before = path.read_text()
        with pytest.raises(BadTokensFile, match="at most 100"):
            tokens_file.with_token(path, entry())
        assert path.read_text() == before

    def test_not_under_a_name_that_is_there(self, path: Path) -> None:
        before = path.read_text()
        with pytest.raises(BadTokensFile, match="revoke it first"):
            tokens_file.with_token(path, entry("ops"))
        assert path.read_text() == before

    @pytest.mark.parametrize("name", ["a", "b", "c"])
    def test_one_is_taken_out_and_nothing_else(self, path: Path, name: str) -> None:
        one, two, three = (entry(known, quotas=Quotas(waits=1)) for known in "abc")
        path.write_text(
            "# first\n"
            + tokens_file.written(one)
            + "  [[ token ]]  # two\n"
            + tokens_file.written(two).partition("\n")[2]
            + tokens_file.written(three)
        )
        tokens_file.without_token(path, name)
        assert [left.name for left in tokens_file.read(path)] == [known for known in "abc" if known != name]
        assert path.read_text().startswith("# first\n")

    def test_a_table_of_its_own_goes_with_its_token(self, path: Path) -> None:
        path.write_text(ONE + "[token.quotas]\nwaits = 1\n" + tokens_file.written(entry()))
        tokens_file.without_token(path, "ops")
        assert tokens_file.read(path) == (entry(),)

    def test_what_is_not_there_can_not_be_taken_out(self, path: Path) -> None:
        with pytest.raises(BadTokensFile, match="no token 'x'"):
            tokens_file.without_token(path, "x")
        with pytest.raises(FileNotFoundError):
            tokens_file.without_token(path.with_name("none"), "x")

    def test_a_file_that_can_not_be_cut_is_left_alone(self, path: Path) -> None:
        text = f'token = [{{ name = "ops", hash = "{HASH}", roles = ["admin"] }}]\n'
        path.write_text(text)
        with pytest.raises(BadTokensFile, match="by hand"):
            tokens_file.without_token(path, "ops")
        assert path.read_text() == text

    @pytest.mark.parametrize("change", [tokens_file.with_token, lambda path, _: tokens_file.without_token(path, "ops")])
    def test_one_that_can_not_be_read_is_not_written(
        self, path: Path, change: Callable[[Path, TokenEntry], None]
    ) -> None:
        path.chmod(0o666)
        with pytest.raises(BadTokensFile, match="mode"):
            change(path, entry())
        assert path.read_text() == ONE

    def test_a_link_stays_a_link(self, path: Path) -> None:
        link = path.with_name("link")
        link.symlink_to(path)
        tokens_file.with_token(link, entry())
        assert link.is_symlink()
        assert len(tokens_file.read(path)) == 2

    def test_a_write_that_fails_leaves_what_was_there(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(fd: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            tokens_file.with_token(path, entry())
        assert path.read_text() == ONE
        assert os.listdir(path.parent) == [path.name]


def cpu_ns() -> int:
    import time

    return time.thread_time_ns()
