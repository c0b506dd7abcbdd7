"""The files of HTTPS at the start: an unfit one is named by its option."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.certificates import HOSTS, make_ca
from tq_node.cli.config import NodeSettings, load
from tq_node.node.https import asking_policy, https_files
from tq_node.runtime.bootstrap.credentials import BadCredentials

OPTIONS = {"http-cert": "node-1.crt", "http-key": "node-1.key", "http-client-ca": "ca.crt", "ca": "ca.crt"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_ca(tmp_path_factory.mktemp("ca"), f"node-1={HOSTS}", "other")


def settings(folder: Path, **given: str | Path) -> NodeSettings:
    said = {name: str(folder / file) for name, file in OPTIONS.items()}
    said |= {name.replace("_", "-"): str(value) for name, value in given.items()}
    return load({name: [value] for name, value in said.items()}, {}, folder)


def test_files_that_fit_are_read_and_watched(folder: Path) -> None:
    assert https_files(settings(folder)) is not None
    assert https_files(load({}, {}, folder)) is None


@pytest.mark.parametrize("option", OPTIONS)
def test_an_unfit_file_is_named(folder: Path, tmp_path: Path, option: str) -> None:
    unfit = tmp_path / "unfit"
    unfit.write_text("nothing")
    unfit.chmod(0o600)
    with pytest.raises(BadCredentials, match=f"^--{option}: {unfit}: holds no "):
        https_files(settings(folder, **{option: unfit}))


def test_a_key_of_another_certificate_is_refused(folder: Path) -> None:
    with pytest.raises(BadCredentials, match=r"^--http-key: .* is not the key of"):
        https_files(settings(folder, http_key=folder / "other.key"))


@pytest.mark.parametrize("insecure", [False, True])
def test_a_key_that_others_can_read_is_refused_unless_insecure_http_is_said(
    folder: Path, tmp_path: Path, insecure: bool
) -> None:
    key = tmp_path / "open.key"
    key.write_bytes((folder / "node-1.key").read_bytes())
    key.chmod(0o644)
    given = settings(folder, http_key=key, insecure_http="true" if insecure else "false")
    if insecure:
        assert https_files(given) is not None
    else:
        with pytest.raises(BadCredentials, match=r"^--http-key: .* can be read"):
            https_files(given)


def test_a_key_that_others_can_read_later_changes_nothing(folder: Path, tmp_path: Path) -> None:
    key = tmp_path / "tls.key"
    key.write_bytes((folder / "node-1.key").read_bytes())
    key.chmod(0o600)
    files = https_files(settings(folder, http_key=key))
    assert files is not None
    key.chmod(0o644)
    files.look()
    files.look()
    assert "can be read" in str(files.trouble)


def test_it_asks_by_https_where_it_is_told_to(folder: Path) -> None:
    assert asking_policy(settings(folder)) is None
    assert asking_policy(settings(folder, join="localhost:8080")) is None
    policy = asking_policy(settings(folder, join="localhost:8080,https://localhost:8081"))
    assert policy is not None
    policy.creatorForNetloc(b"localhost", 8081)
