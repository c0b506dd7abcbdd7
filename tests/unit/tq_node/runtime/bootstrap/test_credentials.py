"""The files that peers know one another by: what is read, and what is refused in one line that names the option."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from twisted.logger import LogEvent, globalLogPublisher

from tests.support.certificates import revoke
from tests.support.wire_kinds import make_cluster_ca
from tq_node.certificates import serial_of
from tq_node.runtime.bootstrap.credentials import (
    SECRET_BYTES_MAX,
    BadCredentials,
    peer_tls,
    read_secrets,
    reread_certificates,
    reread_secrets,
)
from tq_node.wire import bounds
from tq_node.wire.authentication import Shown

SECRET = b"a secret of some bytes"
OTHER = b"the secret that takes its place"


@pytest.fixture
def file(tmp_path: Path) -> Callable[[bytes], Path]:
    def make(content: bytes, mode: int = 0o600) -> Path:
        path = tmp_path / "secret"
        path.write_bytes(content)
        path.chmod(mode)
        return path

    return make


@pytest.mark.parametrize(
    ("content", "secrets"),
    [
        (SECRET, (SECRET,)),
        (SECRET + b"\n", (SECRET,)),
        (SECRET + b"\r\n", (SECRET,)),
        (SECRET + b"\n\n", (SECRET,)),
        (b" " + SECRET + b" ", (b" " + SECRET + b" ",)),
        (SECRET + b"\n" + OTHER, (SECRET, OTHER)),
        (b"\n" + OTHER + b"\r\n\r\n" + SECRET + b"\r\n", (OTHER, SECRET)),
        (SECRET + b"\n" + SECRET + b"\n", (SECRET,)),
        (b"\0" * bounds.SECRET_BYTES_MIN, (b"\0" * bounds.SECRET_BYTES_MIN,)),
        (b"\xff" + SECRET + b"\n" + OTHER + b"\r\n", (b"\xff" + SECRET + b"\n" + OTHER,)),
    ],
)
def test_each_line_of_a_text_is_a_secret_and_other_bytes_are_one(
    file: Callable[[bytes], Path], content: bytes, secrets: tuple[bytes, ...]
) -> None:
    assert read_secrets(file(content)) == secrets


def test_a_file_is_read_again_and_a_bad_one_changes_nothing(file: Callable[[bytes, int], Path]) -> None:
    reread = reread_secrets(file(SECRET, 0o600))
    taken: list[tuple[bytes, ...]] = []
    reread.on_change.append(taken.append)
    for content, mode in ((b"short", 0o600), (OTHER + b"\n" + SECRET + b"\n" + OTHER[::-1], 0o600), (OTHER, 0o644)):
        file(content, mode)
        reread.look()
        reread.look()
        assert reread.trouble is not None
        assert reread.trouble.startswith("--secret-file: ")
        assert OTHER.decode() not in reread.trouble
        assert reread.value == (SECRET,)
    file(OTHER + b"\n" + SECRET + b"\n", 0o600)
    reread.look()
    assert reread.trouble is None
    assert taken == [(OTHER, SECRET)]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "holds 0 bytes; a secret has at least 16"),
        (b"x" * 15 + b"\n", "holds 15 bytes"),
        (SECRET + b"\n" + b"x" * 15, "holds 15 bytes"),
        (SECRET + b"\n" + OTHER + b"\n" + SECRET * 2, "holds 3 lines"),
        (b"x" * (SECRET_BYTES_MAX + 1), "not a secret"),
    ],
)
def test_what_is_no_secret(file: Callable[[bytes], Path], content: bytes, why: str) -> None:
    with pytest.raises(BadCredentials, match=f"^--secret-file: .*{why}"):
        read_secrets(file(content))


def test_a_file_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(BadCredentials, match=r"^--secret-file: .*No such file"):
        read_secrets(tmp_path / "gone")


def said(read: Callable[[], object]) -> list[str]:
    """The events in the log meanwhile."""
    seen: list[LogEvent] = []
    observer: Any = seen.append
    globalLogPublisher.addObserver(observer)
    try:
        read()
    finally:
        globalLogPublisher.removeObserver(observer)
    return [event["event"] for event in seen]


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o640, 0o440])
def test_the_owner_and_its_group_may_read_it(file: Callable[[bytes, int], Path], mode: int) -> None:
    assert said(lambda: read_secrets(file(SECRET, mode))) == []


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o660, 0o602])
def test_a_file_that_others_can_read_is_refused_unless_insecure(file: Callable[[bytes, int], Path], mode: int) -> None:
    path = file(SECRET, mode)
    with pytest.raises(BadCredentials, match=f"^--secret-file: .*mode {mode:o}.*chmod 600"):
        read_secrets(path)
    assert said(lambda: read_secrets(path, insecure=True)) == ["secret_exposed"]


# --- certificates ---
@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("ca") / "ours"
    assert make_cluster_ca(made, "a", "b").returncode == 0
    return made


def test_no_certificates_no_tls() -> None:
    assert reread_certificates(None, None, None) is None


def test_the_three_files_make_mutual_tls(folder: Path) -> None:
    assert peer_tls(folder / "a.crt", folder / "a.key", folder / "ca.crt") is not None


@pytest.mark.parametrize(
    ("names", "option"),
    [
        (("a.key", "a.key", "ca.crt"), "--peer-cert"),
        (("a.crt", "a.crt", "ca.crt"), "--peer-key"),
        (("a.crt", "b.key", "ca.crt"), "--peer-key"),
        (("a.crt", "a.key", "a.key"), "--peer-ca"),
        (("gone", "a.key", "ca.crt"), "--peer-cert"),
    ],
)
def test_a_file_that_does_not_do_is_named_with_its_option(
    folder: Path, names: tuple[str, str, str], option: str
) -> None:
    certificate, key, authority = (folder / name for name in names)
    with pytest.raises(BadCredentials) as caught:
        peer_tls(certificate, key, authority)
    line = str(caught.value)
    assert line.startswith(f"{option}: {folder}")
    assert "\n" not in line


def test_a_list_of_revoked_certificates_that_is_none_is_named_with_its_option(folder: Path) -> None:
    with pytest.raises(BadCredentials, match=r"^--peer-crl: .*/a.crt: holds no list"):
        peer_tls(folder / "a.crt", folder / "a.key", folder / "ca.crt", folder / "a.crt")


def test_a_list_that_changes_counts_for_who_is_connected_already(folder: Path, tmp_path: Path) -> None:
    crl = revoke(folder, tmp_path / "crl")
    reread = reread_certificates(folder / "a.crt", folder / "a.key", folder / "ca.crt", crl)
    assert reread is not None
    in_use = reread.value
    reread.on_change.append(in_use.follow)
    told: list[bool] = []
    certificate = x509.load_pem_x509_certificate((folder / "b.crt").read_bytes())
    shown = Shown(serial=serial_of(certificate))
    in_use.on_change.append(lambda: told.append(in_use.is_revoked(shown)))
    assert not in_use.is_revoked(shown)
    revoke(folder, tmp_path / "next", "b")
    (tmp_path / "next").replace(crl)
    reread.look()
    assert told == [True]


def test_a_private_key_that_others_can_read_is_refused_unless_insecure(folder: Path, tmp_path: Path) -> None:
    key = tmp_path / "a.key"
    key.write_bytes((folder / "a.key").read_bytes())
    key.chmod(0o644)
    with pytest.raises(BadCredentials, match=r"^--peer-key: .*mode 644"):
        peer_tls(folder / "a.crt", key, folder / "ca.crt")
    assert said(lambda: peer_tls(folder / "a.crt", key, folder / "ca.crt", insecure=True)) == ["secret_exposed"]
